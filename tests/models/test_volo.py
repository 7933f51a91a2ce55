"""VOLO: sizes, outlook attention, MixToken, heads, released names."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.models import mix_token, outlook, volo
from vit_jax.models.flops import forward_macs
from vit_jax.models.platform import traced_for
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.weights import from_state_dict, released_shapes, to_state_dict

# Numbers of parameters for 224, 384, 448 and 512 px, and of statistics.
COUNTS = {
  'd1': (26_632_040, 26_777_960, 26_857_832, 26_949_992, 384),
  'd2': (58_678_336, 58_872_896, 58_979_392, 59_102_272, 384),
  'd3': (86_325_072, 86_519_632, 86_626_128, 86_749_008, 384),
  'd4': (192_961_520, 193_253_360, 193_413_104, 193_597_424, 384),
  'd5': (295_455_584, 295_747_424, 295_907_168, 296_091_488, 768),
}
# Numbers of outlookers and of transformer blocks, widths, heads, MLP ratio.
PLANS = {
  'd1': (4, 14, 192, 384, 6, 12, 3),
  'd2': (6, 18, 256, 512, 8, 16, 3),
  'd3': (8, 28, 256, 512, 8, 16, 3),
  'd4': (8, 28, 384, 768, 12, 16, 3),
  'd5': (12, 36, 384, 768, 12, 16, 4),
}


def tiny(**fields):
  return volo.VOLO(
    **{
      **dict(
        num_classes=5,
        patch_size=4,
        layers=(2, 1, 2),
        embed_dims=(8, 12, 12),
        num_heads=(2, 3, 3),
        mlp_ratios=(2, 2, 2),
        outlook_attention=(True, False, False),
        downsamples=(True, False, False),
        post_layers=('ca',),
        stem_hidden_dim=4,
      ),
      **fields,
    }
  )


@functools.cache
def tiny_setup():
  images = np.random.default_rng(0).standard_normal((4, 16, 24, 3))
  images = jnp.asarray(images, jnp.float32)
  return images, random_variables(tiny(), images)


def apply(variables, images, **fields):
  return jax.jit(functools.partial(tiny(**fields).apply, train=False))(
    variables, images
  )


def stacked(variables):
  """The variables with stacked blocks, for a scanned model."""
  params = dict(variables['params'])
  for name, number in (('outlooker', 2), ('block', 3)):
    blocks = [params.pop(f'{name}_{i}') for i in range(number)]
    params[name] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
  return {**variables, 'params': params}


def test_registered():
  assert list_models('volo') == [f'volo_{s}' for s in COUNTS]
  info = model_info('volo_d5')
  assert (
    info.preprocessing.normalize == 'imagenet'
    and info.preprocessing.crop == 1.15
  )
  assert 'd5_512_87.07.pth.tar' in info.released
  assert 'volo_d5_512.sail_in1k' in info.released
  assert model_info('volo_d3').preprocessing.crop == 0.96


@pytest.mark.parametrize(
  'size,image_size,gmacs',
  [('d1', 224, 6.919), ('d1', 384, 22.680), ('d5', 224, 72.301)],
)
def test_multiply_accumulates(size, image_size, gmacs):
  model = create_model(f'volo_{size}', scan=True)
  macs = forward_macs(model, image_size, image_size)
  # Outlook attention has matrix products in the paper, and none here.
  windows = (image_size // 16) ** 2
  macs += model.layers[0] * windows * 81 * model.embed_dims[0]
  assert round(macs / 1e9, 3) == gmacs


@pytest.mark.parametrize('size', PLANS)
def test_stage_plan(size):
  outlookers, blocks, narrow, wide, heads1, heads2, ratio = PLANS[size]
  first, down, rest = create_model(f'volo_{size}').plan()
  assert (first.kind, first.width, first.num_heads, first.mlp_dim) == (
    'outlooker',
    narrow,
    heads1,
    narrow * ratio,
  )
  assert (down.kind, down.width) == ('downsample', wide)
  assert (rest.kind, rest.width, rest.num_heads, rest.mlp_dim) == (
    'block',
    wide,
    heads2,
    wide * ratio,
  )
  assert (len(first.rates), len(rest.rates)) == (outlookers, blocks)
  assert (first.add_posemb, down.add_posemb, rest.add_posemb) == (
    False,
    False,
    True,
  )


def test_drop_path_schedule():
  """Outlookers have rate 0; the other rates are linear in the block number."""
  model = create_model('volo_d1', drop_path=0.17)
  first, _, rest = model.plan()
  assert first.rates == (0.0,) * 4
  np.testing.assert_allclose(rest.rates, [0.01 * i for i in range(4, 18)])


@pytest.mark.parametrize('layout', ['official', 'timm'])
def test_released_names(layout):
  name = {'official': 'volo_d1', 'timm': 'timm_volo_d1_224'}[layout]
  got = released_shapes(create_model('volo_d1'), 224, layout)
  assert got == tsv_shapes(name)


def test_weights_round_trip():
  _images, variables = tiny_setup()
  released = to_state_dict(variables, tiny(), 'official')
  for fields in ({}, {'scan': True}):
    model = tiny(**fields)
    loaded, report = from_state_dict(
      model, {f'module.{k}': v for k, v in released.items()}, (16, 24)
    )
    assert len(report.loaded) == len(report.records)
    want = stacked(variables) if fields else variables
    chex.assert_trees_all_equal(loaded, want)
    again = to_state_dict(loaded, model, 'official')
    assert again.keys() == released.keys()
    for name, x in again.items():
      np.testing.assert_array_equal(x, released[name])


def test_position_table_is_resized():
  """The grid of tokens is resized by PyTorch's bicubic kernel."""
  _, variables = tiny_setup()
  released = to_state_dict(variables, tiny(), 'official')
  assert released['pos_embed'].shape == (1, 2, 3, 12)
  loaded, report = from_state_dict(tiny(), released, (32, 40))
  assert [e.path for e in report.resized] == ['params/pos_embedding']
  torch = pytest.importorskip('torch')
  want = (
    torch.nn.functional.interpolate(
      torch.tensor(np.asarray(released['pos_embed'])).permute(0, 3, 1, 2),
      size=(4, 5),
      mode='bicubic',
    )
    .permute(0, 2, 3, 1)
    .numpy()
  )
  np.testing.assert_allclose(loaded['params']['pos_embedding'], want, atol=1e-5)


def windows(weights, v):
  """Outlook attention by its definition, in loops over windows and entries."""
  out = np.zeros(v.shape)
  height, width = v.shape[1:3]
  for i, j in np.ndindex(weights.shape[1:3]):
    for q in range(9):
      y, x = 2 * i + q // 3 - 1, 2 * j + q % 3 - 1
      if not (0 <= y < height and 0 <= x < width):
        continue
      for k in range(9):
        a, b = 2 * i + k // 3 - 1, 2 * j + k % 3 - 1
        if 0 <= a < height and 0 <= b < width:
          out[:, y, x] += weights[:, i, j, :, q, k, None] * v[:, a, b]
  return out


@pytest.mark.parametrize(
  'height,width,heads,head_width',
  [(1, 1, 1, 1), (2, 4, 2, 3), (3, 1, 1, 2), (4, 5, 2, 1), (5, 3, 1, 3)],
)
def test_outlook_is_its_definition(height, width, heads, head_width):
  rng = np.random.default_rng(height)
  v = rng.standard_normal((2, height, width, heads, head_width))
  weights = rng.standard_normal(
    (2, -(-height // 2), -(-width // 2), heads, 9, 9)
  )
  v, weights = v.astype(np.float32), weights.astype(np.float32)
  got = jax.jit(outlook.outlook)(jnp.asarray(weights), jnp.asarray(v))
  np.testing.assert_allclose(got, windows(weights, v), atol=1e-4)


@pytest.mark.parametrize('size', [(4, 6), (5, 7)])
def test_outlook_gradients(size):
  """The gradients are those of unfolding, a matrix product, and folding."""
  from benchmarks.outlook_attention import unfold_fold

  keys = jax.random.split(jax.random.key(0), 3)
  v = jax.random.normal(keys[0], (2, *size, 2, 3))
  weights = jax.random.normal(
    keys[1], (2, (size[0] + 1) // 2, (size[1] + 1) // 2, 2, 9, 9)
  )
  target = jax.random.normal(keys[2], v.shape)
  results = [
    jax.jit(
      jax.value_and_grad(lambda w, v, f=f: jnp.vdot(f(w, v), target), (0, 1))
    )(weights, v)
    for f in (outlook.outlook, unfold_fold)
  ]
  chex.assert_trees_all_close(*results, atol=1e-4)


def test_outlook_attention_pools_what_is_there():
  """At an odd border, the mean of the last window has fewer positions."""
  x = jax.random.normal(jax.random.key(0), (1, 3, 3, 4))
  module = outlook.OutlookAttention(2)
  (_, probs), variables = jax.jit(
    lambda x: module.init_with_output(jax.random.key(1), x, False)
  )(x)
  assert probs.shape == (1, 2, 4, 9, 9)
  np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
  dense = variables['params']['attn']
  want = (x[0, 2, 2] @ dense['kernel'] + dense['bias']).reshape(2, 9, 9)
  chex.assert_trees_all_close(
    probs[0, :, 3], jax.nn.softmax(want * 2**-0.5), atol=1e-5
  )


def test_outputs():
  images, variables = tiny_setup()
  logits, out = apply(variables, images, return_attention=True)
  chex.assert_shape([logits, out['logits_class']], (4, 5))
  chex.assert_shape(out['logits_aux'], (4, 6, 5))
  chex.assert_shape(out['stem'], (4, 4, 6, 8))
  chex.assert_shape([out['downsample'], out['with_posemb']], (4, 2, 3, 12))
  chex.assert_shape(out['outlooker_01'], (4, 4, 6, 8))
  chex.assert_shape(out['block_02'], (4, 6, 12))
  chex.assert_shape([out['tokens'], out['cls_block_00']], (4, 7, 12))
  chex.assert_shape(out['pre_logits'], (4, 12))
  chex.assert_shape(out['attention'], (4, 3, 6, 6))
  chex.assert_shape(out['attention_outlook'], (4, 2, 6, 9, 9))
  chex.assert_shape(out['attention_cls'], (4, 3, 1, 7))
  assert [
    len(out[k]) for k in ('attention', 'attention_outlook', 'attention_cls')
  ] == [3, 2, 1]
  chex.assert_trees_all_close(
    logits, out['logits_class'] + 0.5 * out['logits_aux'].max(1), atol=1e-6
  )
  assert 'mix_box' not in out
  same, plain = tiny().apply(variables, images, train=False)  # without jit
  chex.assert_trees_all_close(same, logits, atol=1e-4)
  assert not any(k.startswith('attention') for k in plain)


def test_heads():
  images, variables = tiny_setup()
  _, out = apply(variables, images)
  params = dict(variables['params'])
  aux, head = params.pop('aux_head'), params.pop('head')
  features, _ = apply({**variables, 'params': params}, images, num_classes=0)
  chex.assert_trees_all_close(features, out['pre_logits'], atol=1e-5)
  chex.assert_trees_all_close(
    out['logits_aux'],
    out['tokens'][:, 1:] @ aux['kernel'] + aux['bias'].reshape(1, 1, -1),
    atol=1e-4,
  )
  plain = {**variables, 'params': {**params, 'head': head}}
  logits, plain_out = apply(plain, images, return_dense=False)
  chex.assert_trees_all_close(logits, out['logits_class'], atol=1e-5)
  assert 'logits_aux' not in plain_out
  logits, _ = apply(plain, images, return_dense=False, return_mean=True)
  chex.assert_trees_all_close(
    logits,
    out['tokens'].mean(1) @ head['kernel'] + head['bias'].reshape(1, -1),
    atol=1e-4,
  )


# --- MixToken ---------------------------------------------------------------


def test_mix_box_lies_on_the_grid():
  boxes = np.stack(
    jax.jit(jax.vmap(lambda key: jnp.stack(mix_token.mix_box(key, (6, 9)))))(
      jax.random.split(jax.random.key(0), 2000)
    )
  )
  row1, column1, row2, column2 = boxes.T
  assert (row1 >= 0).all() and (row2 <= 6).all() and (row1 <= row2).all()
  assert (column1 >= 0).all() and (column2 <= 9).all()
  assert row2.max() == 6 and column2.max() == 9 and row1.min() == 0
  # λ is uniform, so the area of a box before rounding and cutting, a share of
  # 1 - λ, is uniform too. Small and large boxes both occur.
  area = (row2 - row1) * (column2 - column1) / 54
  assert (area == 0).mean() > 0.02 and (area > 0.4).mean() > 0.05


def test_swap_box():
  x = jnp.arange(2.0).reshape(2, 1, 1, 1) + jnp.zeros((2, 4, 6, 1))
  got = mix_token.swap_box(x, (0, 1, 1, 3), scale=2)
  want = np.array(x)
  want[:, 0:2, 2:6] = want[::-1, 0:2, 2:6]
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(
    mix_token.swap_box(got, (0, 1, 1, 3), scale=2), x
  )
  np.testing.assert_array_equal(mix_token.swap_box(x, (1, 1, 1, 3)), x)


@functools.cache
def training_setup():
  """A model and larger images: on a grid of two rows, every box is empty."""
  images = np.random.default_rng(1).standard_normal((4, 32, 48, 3))
  images = jnp.asarray(images, jnp.float32)
  return images, random_variables(tiny(), images)


def training(keys, **fields):
  """Logits and intermediates in training, for one PRNG key."""
  images, variables = training_setup()
  run = jax.jit(
    functools.partial(tiny(**fields).apply, train=True, mutable=['batch_stats'])
  )
  return [
    run(variables, images, rngs={'dropout': jax.random.key(key)})[0]
    for key in keys
  ]


def test_mix_token():
  """The logits of exchanged tokens are returned to their own image."""
  boxes = 0
  head = training_setup()[1]['params']['aux_head']
  for logits, out in training(range(4)):
    np.testing.assert_array_equal(out['logits_class'], logits)
    row1, column1, row2, column2 = (int(b) for b in out['mix_box'])
    boxes += row2 > row1 and column2 > column1
    # The head on the mixed tokens, with the box exchanged again.
    mixed = out['tokens'][:, 1:] @ head['kernel'] + head['bias'].reshape(
      1, 1, -1
    )
    want = np.array(mixed.reshape(4, 4, 6, 5))
    inside = (slice(None), slice(row1, row2), slice(column1, column2))
    want[inside] = want[::-1][inside].copy()
    np.testing.assert_allclose(
      out['logits_aux'], want.reshape(4, 24, 5), atol=1e-4
    )
  assert boxes
  assert 'mix_box' not in training([0], mix_token=False)[0][1]


def test_drop_path_spares_outlookers():
  # The rate of the last block is drop_path, that of earlier ones is lower.
  ((_, out),) = training([0], drop_path=0.99999, mix_token=False)
  np.testing.assert_array_equal(out['block_02'], out['block_01'])
  assert np.abs(out['outlooker_01'] - out['outlooker_00']).max() > 1e-3


# --- Variants of the same computation ---------------------------------------


@pytest.mark.parametrize('size', [(6, 8), (5, 7)])
def test_outlook_is_the_same_on_every_platform(size):
  """Planes are slices on accelerators, and splits on a CPU."""
  height, width = size
  random = np.random.default_rng(0)
  windows = (height + 1) // 2, (width + 1) // 2
  weights = random.normal(size=(2, *windows, 3, 9, 9)).astype('f4')
  v = random.normal(size=(2, height, width, 3, 4)).astype('f4')

  def run(platform):
    with traced_for(platform):
      loss = lambda w, v: (outlook.outlook(w, v) ** 2).sum()
      program = jax.make_jaxpr(loss)(weights, v)
      return str(program), jax.value_and_grad(loss, argnums=(0, 1))(weights, v)

  on_cpu, values = run('cpu')
  for platform in ('tpu', 'gpu'):
    program, others = run(platform)
    assert program != on_cpu
    chex.assert_trees_all_close(others, values, rtol=1e-5, atol=1e-5)
