"""Optimizers against closed forms, PyTorch and plain numpy."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.recipe.keys import default_config
from vit_jax.training import optimizers, rates
from vit_jax.training.schedules import make_schedule


def recipe(optim_fields=()):
  c = default_config()
  c.optim.update(dict(optim_fields))
  return c


def tree(seed=0, depth=3):
  """A small ViT-like tree of random parameters."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  block = lambda: {
    'LayerNorm_0': {'scale': draw(4), 'bias': draw(4)},
    'MlpBlock_0': {'Dense_0': {'kernel': draw(4, 6), 'bias': draw(6)}},
  }
  return {
    'cls': draw(1, 1, 4),
    'embedding': {'kernel': draw(2, 2, 3, 4), 'bias': draw(4)},
    'Transformer': {
      'posembed_input': {'pos_embedding': draw(1, 5, 4)},
      **{f'encoderblock_{i}': block() for i in range(depth)},
      'encoder_norm': {'scale': draw(4), 'bias': draw(4)},
    },
    'head': {'kernel': draw(4, 3), 'bias': draw(3)},
  }


def run(fields, params, steps=5, lr=lambda step: 0.1, grads=None):
  """Parameters after some steps with random gradients of seeds 1, 2, ..."""
  tx = optimizers.make_optimizer(
    recipe({'lr': 0.1, **fields}).optim, lr, params
  )

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for i in range(steps):
    params, state = step(params, state, grads or tree(i + 1))
  return params, state


def torch_run(make, params, steps=5):
  """The same with a torch optimizer; kernels are the first group."""
  torch = pytest.importorskip('torch')
  flat = {
    k: torch.nn.Parameter(torch.tensor(np.array(v)))
    for k, v in rates.flat_paths(params).items()
  }
  kernels = [p for k, p in flat.items() if k.endswith('/kernel')]
  rest = [p for k, p in flat.items() if not k.endswith('/kernel')]
  optimizer = make(torch, kernels, rest)
  for i in range(steps):
    for k, g in rates.flat_paths(tree(i + 1)).items():
      flat[k].grad = torch.tensor(np.array(g))
    optimizer.step()
  return {k: p.detach().numpy() for k, p in flat.items()}


def test_adamw_equals_torch():
  params, _ = run({'weight_decay': 0.3, 'b2': 0.99}, tree())
  expected = torch_run(
    lambda torch, kernels, rest: torch.optim.AdamW(
      [
        {'params': kernels, 'weight_decay': 0.3},
        {'params': rest, 'weight_decay': 0.0},
      ],
      lr=0.1,
      betas=(0.9, 0.99),
    ),
    tree(),
  )
  chex.assert_trees_all_close(rates.flat_paths(params), expected, atol=2e-5)


def test_sgd_equals_torch():
  params, _ = run({'name': 'sgd'}, tree())
  expected = torch_run(
    lambda torch, kernels, rest: torch.optim.SGD(
      kernels + rest, lr=0.1, momentum=0.9
    ),
    tree(),
  )
  chex.assert_trees_all_close(rates.flat_paths(params), expected, atol=2e-5)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_with_coupled_decay_equals_torch(nesterov):
  """timm's `sgd` and `momentum`: the decay passes through the momentum."""
  fields = {'nesterov': nesterov, 'decay_style': 'coupled', 'weight_decay': 0.3}
  params, _ = run({'name': 'sgd', **fields}, tree())
  expected = torch_run(
    lambda torch, kernels, rest: torch.optim.SGD(
      [
        {'params': kernels, 'weight_decay': 0.3},
        {'params': rest, 'weight_decay': 0.0},
      ],
      lr=0.1,
      momentum=0.9,
      nesterov=nesterov,
    ),
    tree(),
  )
  chex.assert_trees_all_close(rates.flat_paths(params), expected, atol=2e-5)


@pytest.mark.parametrize('name', ['adamw', 'adam', 'sgd', 'adafactor'])
def test_decay_styles_agree_at_constant_lr(name):
  """Styles agree if lr * wd is the same: AdamW's 0.1 at lr 1e-3 is 1e-4."""
  a, _ = run({'name': name, 'weight_decay': 0.3}, tree())
  b, _ = run(
    {'name': name, 'weight_decay': 0.03, 'decay_style': 'schedule'}, tree()
  )
  plain, _ = run({'name': name}, tree())
  chex.assert_trees_all_close(a, b, atol=1e-6)
  for path, value in rates.flat_paths(a).items():
    changed = np.any(value != rates.flat_paths(plain)[path])
    assert changed == path.endswith('/kernel')


def test_rmsprop_is_tensorflows():
  """Mean square from 1, epsilon in the root, the rate inside the momentum."""
  fields = dict(name='rmsprop', b2=0.9, eps=1e-3, momentum=0.9)
  decay = dict(decay_style='coupled', weight_decay=0.1, decay_mask='head/.*')
  schedule = lambda step: 0.1 / (1 + step)
  params = tree()
  got, _ = run({**fields, **decay}, params, lr=schedule)
  for keys, factor in ((('head', 'bias'), 0.1), (('embedding', 'bias'), 0.0)):
    leaf = lambda x, keys=keys: np.asarray(x[keys[0]][keys[1]], np.float64)
    p, square, momentum = leaf(params), 1.0, 0.0
    for i in range(5):
      g = leaf(tree(i + 1)) + factor * p
      square = 0.9 * square + 0.1 * g**2
      momentum = 0.9 * momentum + schedule(i) * g / np.sqrt(square + 1e-3)
      p = p - momentum
    np.testing.assert_allclose(leaf(got), p, rtol=1e-5, atol=1e-6)


def test_lamb_is_timms():
  """Decay is part of the direction, which gets the length of the parameter."""
  fields = dict(name='lamb', eps=1e-6, weight_decay=0.02)
  params = tree()
  got, _ = run(fields, params)
  for key, decay in (('kernel', 0.02), ('bias', 0.0)):
    leaf = lambda x, key=key: np.asarray(x['head'][key], np.float64)
    p, m, v = leaf(params), 0.0, 0.0
    for i in range(5):
      g = leaf(tree(i + 1))
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      direction = m / (1 - 0.9 ** (i + 1))
      direction /= np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-6
      direction = direction + decay * p
      if decay:
        direction *= np.linalg.norm(p) / np.linalg.norm(direction)
      p = p - 0.1 * direction
    np.testing.assert_allclose(leaf(got), p, rtol=1e-4, atol=1e-6)


def test_decay_styles_along_a_schedule():
  """Without gradients only the decay acts, by factors of (1 - decay)."""
  c = default_config()
  c.optim.lr, c.schedule.name = 0.4, 'linear'
  fn = make_schedule(
    c.schedule, c.optim, total_steps=6, steps_per_epoch=1, batch_size=1
  )
  zeros = jax.tree.map(jnp.zeros_like, tree())
  factors = np.asarray(fn(jnp.arange(5)))
  for style, wd, unit in (('lr', 0.1, 1.0), ('schedule', 0.1, 0.4)):
    params, _ = run(
      {'name': 'sgd', 'lr': 0.4, 'weight_decay': wd, 'decay_style': style},
      tree(),
      lr=fn,
      grads=zeros,
    )
    chex.assert_trees_all_close(
      params['head']['kernel'],
      tree()['head']['kernel'] * np.prod(1 - wd * factors / unit),
      rtol=1e-5,
    )
    chex.assert_trees_all_equal(params['head']['bias'], tree()['head']['bias'])


def test_clipping_by_the_global_norm():
  params, grads = tree(), tree(1)
  norm = float(optax.tree.norm(grads))
  for clip, factor in ((1.0, 1 / norm), (2 * norm, 1.0)):
    new, _ = run({'name': 'sgd', 'clip': clip}, params, 1, grads=grads)
    chex.assert_trees_all_close(
      new,
      jax.tree.map(lambda p, g: p - 0.1 * factor * g, params, grads),
      atol=1e-6,
    )


def test_state_dtype():
  for name, moment in (('adam', 'mu'), ('sgd', 'trace'), ('adafactor', 'ema')):
    fields = {'name': name, 'lr': 0.01}
    half, state = run({**fields, 'state_dtype': 'bfloat16'}, tree())
    full, _ = run(fields, tree())
    flat = rates.flat_paths(state)
    kept = [v for k, v in flat.items() if f'/{moment}/' in f'/{k}']
    assert kept and all(v.dtype == jnp.bfloat16 for v in kept)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(half))
    chex.assert_trees_all_close(half, full, atol=0.02)
    if name == 'adam':  # the second moment stays float32
      assert all(
        v.dtype == jnp.float32 for k, v in flat.items() if '/nu/' in f'/{k}'
      )


def test_a_bfloat16_momentum_decays_by_a_bfloat16_number():
  """optax: 0.9 is 0.8984375 then; the sum is float32 before it is stored."""
  grads = {'a': {'kernel': jnp.array([1.0, 1 / 3])}}
  params = {'a': {'kernel': jnp.zeros(2)}}
  fields = {'name': 'sgd', 'state_dtype': 'bfloat16'}
  new, _ = run(fields, params, steps=2, grads=grads)
  g = np.asarray(grads['a']['kernel'])
  stored = g.astype(jnp.bfloat16).astype(np.float32)
  moved = -0.1 * (g + (0.8984375 * stored + g))
  np.testing.assert_allclose(new['a']['kernel'], moved, rtol=1e-6)
  assert np.abs(moved / (-0.1 * (g + 0.9 * stored + g)) - 1).max() > 5e-4


def test_googles_first_update_changes_nothing():
  """Schedules count from 0, and the decay follows the schedule."""
  config = recipe(
    {'lr': 0.5, 'weight_decay': 0.1, 'decay_style': 'schedule', 'clip': 1.0}
  )
  config.schedule.warmup_steps = 4
  fn = make_schedule(
    config.schedule,
    config.optim,
    total_steps=9,
    steps_per_epoch=1,
    batch_size=1,
  )
  fields = {'weight_decay': 0.1, 'decay_style': 'schedule', 'lr': 0.5}
  first, _ = run(fields, tree(), steps=1, lr=fn)
  chex.assert_trees_all_equal(first, tree())
  second, _ = run(fields, tree(), steps=2, lr=fn)
  assert np.all(second['head']['kernel'] != tree()['head']['kernel'])


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_moments_mirror_the_parameters(name):
  params = tree()
  _, state = run({'name': name}, params, 0)
  shapes = {k: v.shape for k, v in rates.flat_paths(params).items()}
  seen = 0
  for path, leaf in rates.flat_paths(state).items():
    owner = [p for p in shapes if path.endswith('/' + p)]
    if owner:
      assert leaf.shape == shapes[max(owner, key=len)]
      seen += 1
    else:
      assert leaf.ndim == 0
  assert seen == len(shapes) * (2 if name == 'adamw' else 1)


def test_adafactor_factors_and_matches_numpy():
  rng = np.random.default_rng(0)
  params = {'a': {'kernel': jnp.zeros((32, 40))}}
  grads = [
    {'a': {'kernel': jnp.asarray(rng.normal(size=(32, 40)), jnp.float32)}}
    for _ in range(3)
  ]
  tx = optimizers.make_optimizer(
    recipe({'name': 'adafactor', 'b1': 0.0, 'b2': 0.4}).optim,
    lambda s: 0.1,
    params,
  )
  state = tx.init(params)
  assert max(x.size for x in jax.tree.leaves(state)) == 40
  rows, columns = np.zeros(32), np.zeros(40)
  for t, grad in enumerate(grads):
    update, state = tx.update(grad, state, params)
    g = np.asarray(grad['a']['kernel'], np.float64)
    beta = min(0.4, 1 - (t + 1.0) ** -0.8)
    rows = beta * rows + (1 - beta) * (g**2).mean(1)
    columns = beta * columns + (1 - beta) * (g**2).mean(0)
    expected = -0.1 * g / np.sqrt(np.outer(rows, columns) / rows.mean())
    np.testing.assert_allclose(update['a']['kernel'], expected, rtol=1e-4)


def test_settings_of_adafactor():
  params = {'a': {'kernel': jnp.zeros((32, 40))}}
  grad = {'a': {'kernel': jnp.linspace(-1, 4, 1280).reshape(32, 40)}}

  def update(**own):
    config = recipe({'name': 'adafactor', 'b1': 0.0})
    config.optim.adafactor.update(own)
    tx = optimizers.make_optimizer(config.optim, lambda s: 1.0, params)
    state = tx.init(params)
    for _ in range(2):
      updates, state = tx.update(grad, state, params)
    return np.asarray(updates['a']['kernel'], np.float64), state

  plain, _ = update()
  clipped, _ = update(update_clip=0.5)
  assert np.sqrt((plain**2).mean()) > 0.8
  np.testing.assert_allclose(
    clipped, plain * 0.5 / np.sqrt((plain**2).mean()), rtol=1e-5
  )
  whole, state = update(min_factored=33)
  assert max(x.size for x in jax.tree.leaves(state)) == 1280
  np.testing.assert_allclose(np.abs(whole), 1, rtol=1e-5)
  g = np.asarray(grad['a']['kernel'], np.float64)
  large_eps, _ = update(min_factored=33, eps=1.0)
  np.testing.assert_allclose(large_eps, -g / np.sqrt(g**2 + 1), rtol=1e-5)
  # The second update of a constant gradient, from moments that began as 0: the
  # offset makes its decay that of the first, with which nothing is kept.
  late, _ = update(min_factored=33, eps=1.0, decay_offset=-1)
  decay = [1 - t**-0.8 for t in (2, 3)]
  moment = ((1 - decay[0]) * decay[1] + 1 - decay[1]) * (g**2 + 1)
  np.testing.assert_allclose(late, -g / np.sqrt(moment), rtol=1e-4)


def test_adam_with_nesterovs_momentum():
  """The first step: (b1 m / (1 - b1^2) + g) / |g| with m = (1 - b1) g."""
  params = {'a': {'kernel': jnp.zeros((2,))}}
  grads = {'a': {'kernel': jnp.array([3.0, -0.5])}}
  new, _ = run({'nesterov': True, 'b1': 0.8}, params, steps=1, grads=grads)
  size = 0.1 * (0.8 * 0.2 / (1 - 0.8**2) + 1)
  np.testing.assert_allclose(new['a']['kernel'], [-size, size], rtol=1e-5)


def test_frozen_parameters_do_not_move_and_have_no_state():
  groups = ((r'head/.*', {'lr': 1.0}), (r'.*', {'lr': 0.0}))
  fields = {'groups': groups, 'weight_decay': 0.1, 'clip': 1.0}
  params, state = run(fields, tree())
  chex.assert_trees_all_equal(
    *({k: v for k, v in p.items() if k != 'head'} for p in (params, tree()))
  )
  assert np.all(params['head']['kernel'] != tree()['head']['kernel'])
  sizes = [x.size for x in jax.tree.leaves(state)]
  head = sum(x.size for x in jax.tree.leaves(tree()['head']))
  assert sum(s for s in sizes if s > 1) == 2 * head
  # Frozen gradients do not count in the clipped norm: the head changes as if it
  # were alone.
  alone, _ = run(
    {'weight_decay': 0.1, 'clip': 1.0},
    {'head': tree()['head']},
    grads=None,
    steps=0,
  )
  tx = optimizers.make_optimizer(
    recipe({'lr': 0.1, 'weight_decay': 0.1, 'clip': 1.0}).optim,
    lambda s: 0.1,
    alone,
  )
  moments = tx.init(alone)
  for i in range(5):
    updates, moments = tx.update({'head': tree(i + 1)['head']}, moments, alone)
    alone = optax.apply_updates(alone, updates)
  chex.assert_trees_all_close(params['head'], alone['head'], atol=1e-6)


def test_state_survives_serialization():
  groups = ((r'cls', {'lr': 0.0}),)
  for name in optimizers.OPTIMIZERS:
    _, state = run({'name': name, 'groups': groups}, tree(), 2)
    plain = flax.serialization.to_state_dict(state)
    back = flax.serialization.from_state_dict(
      jax.tree.map(jnp.zeros_like, state), plain
    )
    chex.assert_trees_all_equal(back, state)


def test_group_factors_of_the_first_match():
  groups = (
    (r'head/.*', {'lr': 0.1}),
    (r'.*kernel', {'lr': 3.0, 'decay': 2.0}),
    (r'.*', {'decay': 9.0}),
  )
  params, _ = run(
    {'name': 'sgd', 'weight_decay': 0.5, 'groups': groups},
    tree(),
    1,
    grads=tree(1),
  )
  p, g = tree(), tree(1)
  chex.assert_trees_all_close(
    params['head']['kernel'],
    p['head']['kernel']
    - 0.01 * (g['head']['kernel'] + 0.5 * p['head']['kernel']),
    atol=1e-6,
  )
  chex.assert_trees_all_close(
    params['embedding']['kernel'],
    p['embedding']['kernel']
    - 0.3 * (g['embedding']['kernel'] + 1.0 * p['embedding']['kernel']),
    atol=1e-6,
  )
  # A decay factor changes nothing for parameters outside of the decay mask.
  chex.assert_trees_all_close(
    params['cls'], p['cls'] - 0.1 * g['cls'], atol=1e-6
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'groups': ((r'hed/.*', {'lr': 0.1}),)}, 'near it: .*head/'),
    ({'groups': ((r'head', {'lr': 0.1}),)}, 'head/\\.\\*.*head/kernel'),
    ({'groups': ((r'zzz', {'lr': 0.1}),)}, 'matches no parameter.*there are'),
    ({'groups': ((r'(', {'lr': 0.1}),)}, 'regular expression'),
    ({'groups': ((r'.*', {'rate': 0.1}),)}, "rate.*allowed: 'lr', 'decay'"),
    ({'groups': ((r'.*', {'lr': -1.0}),)}, 'negative'),
    ({'groups': ((r'.*', {'lr': 0.0}),)}, 'freezes every'),
    ({'weight_decay': 0.1, 'decay_mask': r'kernel'}, 'decay_mask.*kernel'),
    ({'name': 'lion'}, 'lion.*adamw, adam, sgd, adafactor'),
    ({'name': 'lamb', 'weight_decay': 0.1, 'decay_style': 'coupled'}, "'lr'"),
    ({'name': 'rmsprop', 'weight_decay': 0.1}, "decay_style='coupled'"),
    ({'decay_style': 'l2'}, 'l2.*lr, schedule, coupled'),
    ({'state_dtype': 'float16'}, 'float16.*float32, bfloat16'),
    ({'clip': -1.0}, 'clip'),
  ],
)
def test_optimizer_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make_optimizer(recipe(fields).optim, lambda s: 0.1, tree())


def test_layer_decay_values():
  by_path = rates.parameter_rates(recipe({'layer_decay': 0.5}).optim, tree())
  expected = {
    'cls': 4,
    'embedding/kernel': 4,
    'head/bias': 0,
    'Transformer/posembed_input/pos_embedding': 4,
    'Transformer/encoderblock_0/LayerNorm_0/scale': 3,
    'Transformer/encoderblock_2/LayerNorm_0/scale': 1,
    'Transformer/encoder_norm/scale': 0,
  }
  for path, power in expected.items():
    assert by_path[path].lr == 0.5**power, path
  params, _ = run({'name': 'sgd', 'layer_decay': 0.5}, tree(), 1, grads=tree(1))
  chex.assert_trees_all_close(
    params['cls'], tree()['cls'] - 0.1 / 16 * tree(1)['cls'], atol=1e-6
  )


def test_layer_decay_of_scanned_blocks_equals_unrolled():
  def stack(params):
    blocks = [params['Transformer'][f'encoderblock_{i}'] for i in range(3)]
    rest = {
      k: v
      for k, v in params['Transformer'].items()
      if not k.startswith('encoderblock')
    }
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    return {**params, 'Transformer': {**rest, 'encoderblock': stacked}}

  fields = {
    'layer_decay': 0.7,
    'weight_decay': 0.1,
    'groups': ((r'Transformer/encoderblock.*', {'lr': 0.5}),),
  }
  unrolled, _ = run(fields, tree(), 1, grads=tree(1))
  scanned, _ = run(fields, stack(tree()), 1, grads=stack(tree(1)))
  chex.assert_trees_all_close(stack(unrolled), scanned, atol=1e-6)


@pytest.mark.parametrize(
  'paths',
  [
    # From the input to the head; equal positions are in one tuple.
    [
      ('root_block/conv_root/kernel',),
      ('block1/unit01/conv1/kernel',),
      ('block1/unit02/gn1/scale',),
      ('block2/unit01/conv_proj/kernel',),
      ('norm-pre-head/scale', 'head/kernel'),
    ],
    [
      ('conv_root/kernel', 'gn_root/scale', 'embedding/kernel', 'cls'),
      ('block1/unit1/conv1/kernel',),
      ('block2/unit1/conv1/kernel',),
      ('Transformer/encoderblock_0/LayerNorm_0/scale',),
      ('Transformer/encoderblock_1/LayerNorm_0/scale',),
      ('Transformer/encoder_norm/bias', 'pre_logits/kernel', 'head/bias'),
    ],
    [
      ('stem/conv_0/kernel', 'pos_embedding', 'cls', 'downsample/kernel'),
      ('outlooker_0/attn/v/kernel',),
      ('outlooker_1/attn/v/kernel',),
      ('block_0/LayerNorm_0/scale',),
      ('block_10/LayerNorm_0/scale',),
      ('cls_block_0/attn/query/kernel',),
      ('cls_block_1/attn/query/kernel',),
      ('encoder_norm/scale', 'head/kernel', 'aux_head/kernel'),
    ],
    [
      ('stem/kernel',),
      ('MixerBlock_2/LayerNorm_0/scale',),
      ('MixerBlock_10/LayerNorm_0/scale',),
      ('pre_head_layer_norm/scale', 'head/kernel'),
    ],
    [
      ('i2t/conv/kernel', 'cls', 'dist_token', 'pos_embedding'),
      ('block_0/leff/conv1/kernel',),
      ('block_1/leff/bn1/scale',),
      ('lca/attn/query/kernel', 'pos_layer_embedding', 'head_dist/kernel'),
    ],
  ],
)
def test_block_positions_of_every_family(paths):
  nested = flax.traverse_util.unflatten_dict(
    {p: jnp.zeros((2, 2)) for group in paths for p in group}, sep='/'
  )
  positions = rates.block_positions(nested)
  for i, group in enumerate(paths):
    assert {positions[p] for p in group} == {i}, group


def test_layer_decay_needs_blocks():
  with pytest.raises(ValueError, match='no stack of blocks.*head/kernel'):
    rates.parameter_rates(
      recipe({'layer_decay': 0.5}).optim,
      {'head': {'kernel': jnp.zeros((2, 2))}},
    )
