"""Area attention: its definition, its implementations, its use in models."""

import functools

from hypothesis import assume, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.area import attention as attention_lib
from vit_jax.models.area import explicit
from vit_jax.models.area.areas import Areas, num_areas
from vit_jax.models.area.fused import fused
from vit_jax.models.attention import MultiHeadDotProductAttention, attend
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh

area_attention = functools.partial(
  jax.jit,
  static_argnames=(
    'memory_shape',
    'max_area',
    'separate_first',
    'key_mode',
    'value_mode',
    'top_k',
    'dropout',
    'impl',
    'weights',
  ),
)(attention_lib.area_attention)


def inputs(
  areas,
  batch=2,
  queries=4,
  heads=2,
  width=6,
  value_width=5,
  seed=0,
  scale=1.0,
  dtype=jnp.float32,
):
  keys = jax.random.split(jax.random.key(seed), 3)
  shapes = (
    (batch, queries, heads, width),
    (batch, areas.items, heads, width),
    (batch, areas.items, heads, value_width),
  )
  q, k, v = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
  return [x.astype(dtype) for x in (q * scale, k, v)]


def definition(x, areas):
  """The items of every area, a list of arrays (n, ...), found by loops."""
  rows, columns = areas.memory_shape
  lead = int(areas.separate_first)
  items = [x[:1]] if lead else []
  for h in range(1, areas.max_area[0] + 1):
    for w in range(1, areas.max_area[1] + 1):
      for r in range(rows - h + 1):
        for c in range(columns - w + 1):
          items.append(
            np.stack(
              [
                x[lead + (r + i) * columns + c + j]
                for i in range(h)
                for j in range(w)
              ]
            )
          )
  return items


@pytest.mark.parametrize(
  'memory, max_area, separate, count',
  [
    ((1, 197), (1, 2), False, 393),
    ((1, 197), (1, 3), False, 588),
    ((1, 197), (1, 4), False, 782),
    ((1, 196), (1, 2), False, 391),
    ((14, 14), (2, 2), False, 729),
    ((14, 14), (3, 3), False, 1521),
    ((1, 4), (1, 3), False, 9),
    ((14, 14), (2, 2), True, 730),
  ],
)
def test_number_of_areas(memory, max_area, separate, count):
  assert num_areas(memory, max_area, separate) == count


@pytest.mark.parametrize(
  'areas',
  [
    Areas((1, 9), (1, 3)),
    Areas((4, 5), (2, 3)),
    Areas((3, 4), (3, 2), separate_first=True),
  ],
)
def test_statistics_are_those_of_an_explicit_loop(areas):
  x = np.random.default_rng(0).normal(size=(areas.items, 3)) * 9
  items = definition(x, areas)
  want = {
    'sum': [i.sum(0) for i in items],
    'mean': [i.mean(0) for i in items],
    'max': [i.max(0) for i in items],
    'std': [np.sqrt(i.var(0) + 1e-6) for i in items],
  }
  for name in explicit.STATISTICS:
    got = explicit.area_statistic(
      jnp.asarray(x, jnp.float32)[None], areas, name
    )
    np.testing.assert_allclose(got[0], want[name], rtol=2e-6, atol=1e-6)
  assert areas.sizes.tolist() == [len(i) for i in items]


def test_statistics_of_bfloat16_are_exact():
  areas = Areas((1, 577), (1, 4))
  x = jnp.asarray(
    np.random.default_rng(0).normal(size=(1, 577, 2)) * 50, jnp.bfloat16
  )
  got = explicit.area_statistic(x, areas, 'sum')[0]
  want = np.stack(
    [i.sum(0) for i in definition(np.asarray(x[0], np.float64), areas)]
  )
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


def test_spread_is_the_adjoint_of_the_sum():
  areas = Areas((3, 4), (2, 3), separate_first=True)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(areas.items,)).astype(np.float32)
  y = rng.normal(size=areas.sizes.shape).astype(np.float32)
  left = jnp.vdot(areas.reduce(jnp.asarray(x), sum), y)
  np.testing.assert_allclose(
    left, jnp.vdot(x, areas.spread(jnp.asarray(y))), rtol=1e-5
  )


@st.composite
def layouts(draw):
  rows = draw(st.sampled_from([1, 1, 2, 3]))
  columns = draw(st.integers(2, 6))
  return Areas(
    (rows, columns),
    (draw(st.integers(1, rows)), draw(st.integers(1, min(4, columns)))),
    draw(st.booleans()),
  )


def check_equal(areas, args, g, tolerance=1e-5, **options):
  """Values, weights and gradients of both implementations agree."""

  def values_and_gradients(impl, args, g):
    fn = functools.partial(
      attention_lib.area_attention,
      memory_shape=areas.memory_shape,
      max_area=areas.max_area,
      separate_first=areas.separate_first,
      impl=impl,
      **options,
    )
    (out, weights), pullback = jax.vjp(fn, *args)
    return (out, weights, *pullback((g, jnp.zeros_like(weights))))

  results = jax.jit(
    lambda *x: [
      values_and_gradients(impl, *x) for impl in ('explicit', 'factored')
    ]
  )
  for a, b in zip(*results(args, g)):
    assert np.all(np.isfinite(b))
    scale = max(1.0, float(jnp.abs(a).max()))
    np.testing.assert_allclose(b, a, atol=tolerance * scale, rtol=0)


def check_plain(areas, value_mode, scale, seed):
  args = inputs(areas, seed=seed, scale=scale)
  g = jax.random.normal(jax.random.key(seed), (*args[0].shape[:3], 5))
  # The gradient of a sharp softmax enlarges the rounding errors of the logits.
  args[1] /= max(1.0, scale)
  check_equal(areas, args, g, value_mode=value_mode)


def check_options(areas, value_mode, masked, top_k, rate, seed):
  args = inputs(areas, seed=seed)
  rng = np.random.default_rng(seed)
  mask = None
  if masked:
    mask = rng.random((2, 1, 1, areas.items)) < 0.7
    mask[..., 0] = True
    mask = jnp.asarray(mask)
  if top_k:  # two areas are never so close that rounding orders them
    logits = areas.reduce(explicit.item_logits(*args[:2]), explicit.mean)
    assume(float(jnp.diff(jnp.sort(logits), axis=-1).min()) > 1e-5)
  dropout = None
  if rate:

    def dropout(probs):
      keep = jax.random.bernoulli(jax.random.key(seed), 1 - rate, probs.shape)
      return jnp.where(keep, probs / (1 - rate), 0.0)

  g = jnp.asarray(rng.normal(size=(*args[0].shape[:3], 5)), jnp.float32)
  check_equal(
    areas,
    args,
    g,
    value_mode=value_mode,
    mask=mask,
    top_k=top_k,
    dropout=dropout,
  )


PLAIN = dict(
  areas=layouts(),
  value_mode=st.sampled_from(['sum', 'mean']),
  scale=st.sampled_from([0.0, 1.0, 30.0]),
  seed=st.integers(0, 99),
)
OPTIONS = dict(
  areas=layouts(),
  value_mode=st.sampled_from(['sum', 'mean']),
  masked=st.booleans(),
  top_k=st.sampled_from([0, 1, 3, 1000]),
  rate=st.sampled_from([0.0, 0.4]),
  seed=st.integers(0, 99),
)


@settings(max_examples=4, deadline=None)
@given(**PLAIN)
def test_factored_is_explicit(**kwargs):
  check_plain(**kwargs)


@settings(max_examples=4, deadline=None)
@given(**OPTIONS)
def test_factored_is_explicit_with_mask_top_k_and_dropout(**kwargs):
  check_options(**kwargs)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**PLAIN)
def test_factored_is_explicit_at_length(**kwargs):
  check_plain(**kwargs)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**OPTIONS)
def test_factored_is_explicit_with_options_at_length(**kwargs):
  check_options(**kwargs)


@pytest.mark.parametrize(
  'areas', [Areas((1, 12), (1, 4)), Areas((4, 4), (3, 3), separate_first=True)]
)
def test_large_logits_stay_finite_and_right(areas):
  """The exponentials of logits of 100 overflow, those of -100 underflow."""
  q, k, v = inputs(areas, queries=2, width=4)
  sign = jnp.where(jnp.arange(areas.items) % 3 == 0, 1.0, -1.0)
  k = (
    jnp.zeros_like(k)
    .at[..., 0]
    .set(jnp.broadcast_to(sign[None, :, None], k.shape[:3]) + 0.01 * k[..., 0])
  )
  q = jnp.zeros_like(q).at[..., 0].set(200.0)  # / sqrt(4): logits near +-100
  g = jax.random.normal(jax.random.key(1), (*q.shape[:3], 5))
  check_equal(areas, [q, k, v], g, tolerance=1e-4)


@pytest.mark.parametrize('value_mode', ['sum', 'mean'])
def test_without_areas_equals_the_form_with_their_probabilities(value_mode):
  q, k, v = inputs(Areas((4, 4), (2, 3)))
  apply = functools.partial(
    area_attention,
    q,
    k,
    v,
    memory_shape=(4, 4),
    max_area=(2, 3),
    value_mode=value_mode,
  )
  out, weights = apply()
  window, window_weights = apply(mask=jnp.ones((1, 1, 1, 16), bool))
  np.testing.assert_allclose(out, window, atol=1e-5)
  np.testing.assert_allclose(weights, window_weights, atol=1e-6)


@pytest.mark.parametrize(
  'areas, value_mode',
  [
    (Areas((1, 9), (1, 3)), 'sum'),
    (Areas((3, 4), (2, 2), separate_first=True), 'mean'),
  ],
)
def test_kernel_is_the_jnp_program(areas, value_mode):
  """The interpreted kernel has the values and gradients of the jnp program."""
  args = inputs(areas, heads=3)
  g = jax.random.normal(jax.random.key(1), (*args[0].shape[:3], 5))

  @functools.partial(jax.jit, static_argnums=0)
  def both(program, args, g):
    out, pullback = jax.vjp(
      lambda *x: fused(*x, areas, value_mode, program), *args
    )
    return (out, *pullback(g))

  for a, b in zip(both('jnp', args, g), both('kernel', args, g)):
    np.testing.assert_allclose(b, a, atol=2e-6)


def test_kernel_runs_on_each_device_of_a_mesh():
  areas = Areas((1, 6), (1, 2))
  args = inputs(areas, batch=4)
  mesh = make_mesh('fsdp_tensor', fsdp=2)  # 2 x 2 x 2
  run = jax.jit(
    lambda *x: jax.vjp(lambda *y: fused(*y, areas, 'sum', 'kernel'), *x)[1](
      jnp.ones((4, 4, 2, 5))
    )
  )
  want = run(*args)
  with jax.set_mesh(mesh):
    spec = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    lowered = run.lower(*jax.device_put(args, spec))
    got = lowered.compile()(*jax.device_put(args, spec))
  assert 'all-gather' not in lowered.compile().as_text()
  for a, b in zip(want, got):
    np.testing.assert_allclose(b, a, atol=1e-6)


def test_gradient_keeps_no_matrix_of_logits():
  areas = Areas((1, 64), (1, 2))
  q, k, v = inputs(areas, queries=64, width=8, value_width=8)
  fn = lambda *args: attention_lib.area_attention(
    *args, memory_shape=(1, 64), max_area=(1, 2), weights=False
  )[0]
  kept = [
    x.size
    for x in jax.tree.leaves(
      jax.eval_shape(lambda *args: jax.vjp(fn, *args)[1], q, k, v)
    )
  ]
  assert max(kept) <= q.size and sum(kept) <= 5 * q.size

  def memory(layers_):  # memory of the compiled program
    def loss(x):
      for _ in range(layers_):
        x = fn(x, x, x)
      return x.sum()

    return (
      jax.jit(jax.grad(loss))
      .lower(q)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  matrix = 2 * 2 * 64 * 64 * 4
  # If a layer kept its matrix of logits, two layers would need two matrices.
  assert memory(4) - memory(2) < 2 * matrix


def test_work_is_that_of_the_plain_vit():
  area, plain = [
    forward_macs(create_model('aa_vit_ti16', area_sizes=sizes), 224, 224)
    for sizes in (((1, 2), (1, 2)), ())
  ]
  assert plain <= area < 1.002 * plain


def test_areas_of_one_are_ordinary_attention():
  areas = Areas((2, 6), (1, 1))
  q, k, v = inputs(areas)
  want, probs = attend(q, k, v)
  for impl in ('explicit', 'factored'):
    out, weights = attention_lib.area_attention(
      q, k, v, memory_shape=(2, 6), max_area=(1, 1), impl=impl
    )
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(weights, probs, atol=1e-6)


def test_weights_mix_the_values():
  areas = Areas((1, 8), (1, 3))
  q, k, v = inputs(areas)
  out, weights = attention_lib.area_attention(
    q, k, v, memory_shape=(1, 8), max_area=(1, 3), value_mode='mean'
  )
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
  np.testing.assert_allclose(
    out, jnp.einsum('bhts,bshv->bthv', weights, v), atol=1e-5
  )


def test_a_masked_item_does_not_matter():
  areas = Areas((1, 8), (1, 3))
  q, k, v = inputs(areas)
  mask = jnp.arange(8).reshape(1, 1, 1, 8) != 3
  apply = functools.partial(
    area_attention, memory_shape=(1, 8), max_area=(1, 3), mask=mask
  )
  np.testing.assert_array_equal(
    apply(q, k, v)[0], apply(q, k.at[:, 3].add(9), v.at[:, 3].add(9))[0]
  )


def test_top_k_keeps_ties():
  areas = Areas((1, 4), (1, 2))
  q, k, v = inputs(areas)
  out, _ = attention_lib.area_attention(
    q * 0, k, v, memory_shape=(1, 4), max_area=(1, 2), top_k=1
  )
  full, _ = attention_lib.area_attention(
    q * 0, k, v, memory_shape=(1, 4), max_area=(1, 2)
  )
  np.testing.assert_allclose(out, full, atol=1e-6)  # all areas are equal


@pytest.mark.parametrize('impl', ['explicit', 'factored'])
def test_bfloat16(impl):
  areas = Areas((1, 33), (1, 2))
  args = inputs(areas, dtype=jnp.bfloat16)
  exact, _ = attention_lib.area_attention(
    *[x.astype(jnp.float32) for x in args],
    memory_shape=(1, 33),
    max_area=(1, 2),
  )
  out, _ = attention_lib.area_attention(
    *args, memory_shape=(1, 33), max_area=(1, 2), impl=impl
  )
  assert out.dtype == jnp.bfloat16
  assert float(jnp.abs(out - exact).max()) < 0.03


@pytest.mark.parametrize('mode', explicit.KEY_MODES)
def test_module_of_every_key_mode(mode):
  """The parameters are those of section 7.1, and all heads share them."""
  attention = attention_lib.AreaAttention((2, 3), (3, 4), key_mode=mode)
  model = MultiHeadDotProductAttention(2, attend_fn=attention)
  x = jax.random.normal(jax.random.key(0), (2, 13, 8))
  variables = model.init(jax.random.key(1), x, x, False)
  area = variables['params'].pop('attend_fn', {})
  inputs = {'concat': 12, 'max_concat': 8, 'sample_concat': 8}.get(mode, 4)
  want = (
    {}
    if mode in ('mean', 'max', 'sample')
    else {
      'height_embedding': (2, 2),
      'width_embedding': (3, 2),
      'Dense_0': {'kernel': (inputs, 4), 'bias': (4,)},
      'Dense_1': {'kernel': (4, 4), 'bias': (4,)},
    }
  )
  assert jax.tree.map(jnp.shape, area) == want
  variables['params']['attend_fn'] = area
  apply = lambda **kw: model.apply(variables, x, x, False, **kw)[0]
  out = apply()
  assert out.shape == x.shape and np.all(np.isfinite(out))
  drawn = apply(rngs={'dropout': jax.random.key(2)})
  assert bool(jnp.any(drawn != out)) == mode.startswith('sample')


def test_sampled_keys_have_the_area_mean_and_deviation():
  areas = Areas((1, 6), (1, 3))
  k = jax.random.normal(jax.random.key(0), (1, 6, 1, 2))
  draws = jax.vmap(
    lambda key: explicit.area_keys(k, areas, 'sample', noise=key)
  )(jax.random.split(jax.random.key(1), 4000))
  for name, got in (('mean', draws.mean(0)), ('std', draws.std(0))):
    np.testing.assert_allclose(
      got, explicit.area_statistic(k, areas, name), atol=0.06
    )


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(max_area=(1, 9)), r'max_area=\(1, 9\)'),
    (dict(max_area=(2, 2)), 'does not fit'),
    (dict(memory_shape=(1, 7)), '8 keys'),
    (dict(key_mode='median'), 'key_mode'),
    (dict(value_mode='std'), 'value_mode'),
    (dict(impl='fast'), 'impl'),
    (dict(key_mode='max', impl='factored'), "key_mode='mean'"),
    (dict(key_mode='concat'), 'parameters'),
  ],
)
def test_errors_name_the_value(options, words):
  q, k, v = inputs(Areas((1, 8), (1, 2)))
  with pytest.raises(ValueError, match=words):
    attention_lib.area_attention(
      q, k, v, **{**dict(memory_shape=(1, 8), max_area=(1, 2)), **options}
    )


def test_grid_that_is_not_the_patches():
  q, k, v = inputs(Areas((1, 8), (1, 2)))
  with pytest.raises(ValueError, match='6 patches and does not fit 8 tokens'):
    attention_lib.area_attend((2, 2), (2, 3))(q, k, v)


@pytest.mark.parametrize(
  'size, pool', [((1, 2), 'token'), ((2, 2), 'token'), ((2, 2), 'gap')]
)
def test_in_a_vit(size, pool):
  """Areas of the leading blocks are in the sequence or in the patch grid."""
  fields = dict(
    num_classes=3,
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=16,
    patch_size=4,
    pool=pool,
  )
  model = create_model('aa_vit_ti16', area_sizes=(size,), **fields)
  plain = create_model('aa_vit_ti16', area_sizes=(), **fields)
  images = jax.random.normal(jax.random.key(0), (1, 16, 12, 3))
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(1), images
  )
  logits, other = jax.jit(
    lambda *args: [m.apply(*args, train=False)[0] for m in (model, plain)]
  )(variables, images)
  assert float(jnp.abs(logits - other).max()) > 1e-4
