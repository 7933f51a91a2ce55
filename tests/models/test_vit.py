"""ViT: parameter counts, schemes, scan, remat, dtypes, properties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.position import POSEMBS, sincos2d
from vit_jax.models.registry import create_model
from vit_jax.models.vit import POOLS, ViT

SMALL = dict(
  num_classes=5, patch_size=8, width=32, depth=3, num_heads=4, mlp_dim=48
)


def images(batch=2, height=32, width=48):
  return jax.random.normal(jax.random.key(7), (batch, height, width, 3))


def init(model, x=None, key=0):
  x = images() if x is None else x
  return jax.jit(lambda: model.init(jax.random.key(key), x, train=False))()


def randomize(variables, scale=0.1):
  """Random values for all parameters, so that each of them has an effect."""
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return jax.tree.unflatten(
    tree,
    [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)],
  )


@pytest.mark.parametrize('pool', POOLS)
def test_pools(pool):
  model = ViT(**SMALL, pool=pool)
  x = images()
  logits, out = model.apply(randomize(init(model)), x, train=False)
  tokens = 24 + (pool == 'token')
  chex.assert_shape(out['tokens'], (2, tokens, 32))
  if pool == 'none':
    chex.assert_shape(logits, (2, tokens, 5))
  else:
    chex.assert_shape(logits, (2, 5))
    chex.assert_shape(out['pre_logits'], (2, 32))


@pytest.mark.parametrize(
  'posemb_at', ['stem', 'every_layer', 'every_layer_shared']
)
@pytest.mark.parametrize('scheme', POSEMBS)
def test_scan_equals_unrolled(scheme, posemb_at):
  if scheme in ('relative', 'none') and posemb_at != 'stem':
    with pytest.raises(ValueError, match='posemb_at'):
      init(ViT(**SMALL, posemb=scheme, posemb_at=posemb_at))
    return
  unrolled = ViT(**SMALL, posemb=scheme, posemb_at=posemb_at)
  scanned = ViT(**SMALL, posemb=scheme, posemb_at=posemb_at, scan=True)
  variables = randomize(init(unrolled))
  params = dict(variables['params'])
  blocks = [params['Transformer'][f'encoderblock_{i}'] for i in range(3)]
  params['Transformer'] = {
    **{
      k: v
      for k, v in params['Transformer'].items()
      if not k.startswith('encoderblock_')
    },
    'encoderblock': jax.tree.map(lambda *x: jnp.stack(x), *blocks),
  }
  chex.assert_trees_all_equal_shapes(
    params, jax.eval_shape(lambda: init(scanned))['params']
  )
  x = images()
  want, out = unrolled.apply(variables, x, train=False)
  got, scan_out = scanned.apply({'params': params}, x, train=False)
  chex.assert_trees_all_close(got, want, atol=2e-6)
  chex.assert_trees_all_close(scan_out['block_01'], out['block_01'], atol=2e-6)


def test_position_schemes_differ_only_where_they_should():
  """Without positions and class token, patches can be permuted."""
  model = ViT(**SMALL, posemb='none', pool='gap')
  variables = randomize(init(model))
  x = images()
  y = x.reshape(2, 4, 8, 48, 3)[:, ::-1].reshape(x.shape)
  a, _ = model.apply(variables, x, train=False)
  b, _ = model.apply(variables, y, train=False)
  chex.assert_trees_all_close(a, b, atol=1e-5)
  model = ViT(**SMALL, posemb='learn2d', pool='gap')
  variables = randomize(init(model), 0.5)
  a, _ = model.apply(variables, x, train=False)
  b, _ = model.apply(variables, y, train=False)
  assert np.abs(a - b).max() > 1e-3


def test_relative_embedding_matches_its_definition():
  model = ViT(
    **{**SMALL, 'depth': 1},
    posemb='relative',
    pool='gap',
    return_attention=True,
  )
  variables = randomize(init(model))
  x = images(1)
  _, out = model.apply(variables, x, train=False)
  block = variables['params']['Transformer']['encoderblock_0']
  norm = block['LayerNorm_0']
  y = np.asarray(out['with_posemb'][0], np.float64)
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  y = y * np.asarray(norm['scale']) + np.asarray(norm['bias'])
  mha = block['MultiHeadDotProductAttention_0']
  q, k = (
    np.einsum('td,dhk->thk', y, np.asarray(mha[n]['kernel']))
    + np.asarray(mha[n]['bias'])
    for n in ('query', 'key')
  )
  q = q / np.sqrt(q.shape[-1])
  embedding = np.asarray(block['relative_embedding'])
  tokens = q.shape[0]
  logits = np.einsum('thk,shk->hts', q, k)
  for t in range(tokens):
    for s in range(tokens):
      logits[:, t, s] += q[t] @ embedding[s - t + tokens - 1]
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  np.testing.assert_allclose(out['attention'][0][0], probs, atol=1e-5)


def test_sincos2d_last_frequency_and_order():
  table_ = np.asarray(sincos2d(3, 5, 16))[0]
  omega = 10_000.0 ** -(np.arange(4) / 3)
  row, column = 2, 3
  want = np.concatenate(
    [
      np.sin(column * omega),
      np.cos(column * omega),
      np.sin(row * omega),
      np.cos(row * omega),
    ]
  )
  np.testing.assert_allclose(table_[row * 5 + column], want, atol=1e-6)
  with pytest.raises(ValueError, match='multiple of 4'):
    sincos2d(2, 2, 18)


@pytest.mark.parametrize('remat', ['full', 'dots', 'dots_no_batch'])
@pytest.mark.parametrize('scan', [False, True])
def test_remat_keeps_gradients(remat, scan):
  plain = ViT(**SMALL, scan=scan, drop_path=0.3, dropout=0.1)
  other = plain.clone(remat=remat)
  variables = randomize(init(plain))
  x = images()

  def loss(model, v):
    logits, _ = model.apply(
      v, x, train=True, rngs={'dropout': jax.random.key(1)}
    )
    return (logits**2).sum()

  want = jax.jit(jax.grad(lambda v: loss(plain, v)))(variables)
  got = jax.jit(jax.grad(lambda v: loss(other, v)))(variables)
  chex.assert_tree_all_finite(got)
  chex.assert_trees_all_close(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('pool', POOLS)
def test_final_norm_and_head_are_float32_with_bfloat16_compute(pool):
  """As in big_vision: near -10, bfloat16 numbers are 0.0625 apart."""
  model = ViT(**SMALL, pool=pool, head_bias=-10.0, dtype='bfloat16')
  variables = init(model)
  head = variables['params']['head']
  assert set(np.unique(head['bias'])) == {-10.0}
  head['kernel'] = 0.02 * jax.random.normal(jax.random.key(1), (32, 5))
  logits, out = model.apply(variables, images(), train=False)
  assert out['block_02'].dtype == jnp.bfloat16
  for name in ('encoded', 'head_input', 'pre_logits'):
    assert out[name].dtype == jnp.float32
  features = np.asarray(out['pre_logits'], np.float64)
  want = features @ np.asarray(head['kernel'], np.float64) - 10
  np.testing.assert_allclose(logits, want, rtol=1e-6)
  assert np.any(logits != logits.astype(jnp.bfloat16))


def test_drop_path_drops_whole_examples():
  """A branch of an example is either kept and rescaled, or dropped."""
  model = ViT(**SMALL, drop_path=0.5)
  variables = randomize(init(model))
  x = jnp.broadcast_to(images(1), (64, 32, 48, 3))
  logits, _ = model.apply(
    variables, x, train=True, rngs={'dropout': jax.random.key(0)}
  )
  distinct = np.unique(np.round(np.asarray(logits), 4), axis=0)
  # Two blocks with two branches each have a rate above 0: 16 outcomes.
  assert 2 < len(distinct) <= 16


def test_rectangular_patches_and_errors():
  model = ViT(**{**SMALL, 'patch_size': (16, 8)})
  _logits, out = model.apply(init(model), images(), train=False)
  chex.assert_shape(out['stem'], (2, 2, 6, 32))
  with pytest.raises(ValueError, match='larger than the image'):
    init(ViT(**{**SMALL, 'patch_size': 64}))
  with pytest.raises(ValueError, match='pool=.*allowed: token'):
    init(ViT(**SMALL, pool='max'))
  with pytest.raises(ValueError, match='not divisible by num_heads'):
    init(ViT(**{**SMALL, 'num_heads': 5}))


def test_a_last_block_of_the_class_token_alone_changes_nothing():
  """class_token_only has the logits and gradients of the whole block."""
  fields = dict(
    num_classes=5, patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=32
  )
  whole = create_model('vit_s16', **fields)
  short = create_model('vit_s16', class_token_only=True, **fields)
  images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
  variables = whole.init(jax.random.key(1), images, train=False)
  chex.assert_trees_all_equal(
    variables, short.init(jax.random.key(1), images, train=False)
  )
  # The initial head is zero, so all other gradients would be zero.
  variables['params']['head']['kernel'] = jax.random.normal(
    jax.random.key(2), (16, 5)
  )

  def loss(variables, model):
    logits, out = model.apply(variables, images, train=True)
    return jax.nn.log_softmax(logits)[:, 0].sum(), out['tokens'].shape

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (a, tokens), grads = grad(variables, whole)
  (b, token), others = grad(variables, short)
  assert tokens == (2, 10, 16) and token == (2, 1, 16)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  chex.assert_trees_all_close(grads, others, rtol=1e-4, atol=1e-5)
  # In evaluation, all tokens are computed.
  assert short.apply(variables, images, train=False)[1]['tokens'].shape == (
    2,
    10,
    16,
  )
  with pytest.raises(ValueError, match='class_token_only'):
    create_model('vit_s16', class_token_only=True, pool='gap', **fields).init(
      jax.random.key(1), images, train=False
    )
