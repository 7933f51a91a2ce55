"""BiT and the hybrid stem: counts, numeric details, precision, gradients."""

import chex
from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from vit_jax.models import bit, hybrid_stem, std_conv
from vit_jax.models.bit import BiT
from vit_jax.models.hybrid_stem import BiTV1

TINY = dict(num_classes=5, num_layers=(2, 1), width_factor=0.5)


def init(model, images):
  return jax.jit(lambda k: model.init(k, images, train=False))(
    jax.random.key(0)
  )


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(1), (2, 32, 40, 3))


@pytest.mark.parametrize('inside, eps', [(False, 1e-5), (True, 1e-10)])
def test_std_conv_is_a_convolution_with_a_standardized_kernel(
  inside, eps, images
):
  conv = std_conv.StdConv(8, size=3, stride=2, eps=eps, eps_inside=inside)
  variables = conv.init(jax.random.key(0), images)
  w = np.asarray(variables['params']['kernel'], np.float64)
  centered = w - w.mean((0, 1, 2))
  std = np.sqrt(w.var((0, 1, 2)) + eps) if inside else (w.std((0, 1, 2)) + eps)
  plain = nn.Conv(8, (3, 3), strides=2, use_bias=False)
  want = plain.apply(
    {'params': {'kernel': jnp.float32(centered / std)}}, images
  )
  np.testing.assert_allclose(conv.apply(variables, images), want, atol=1e-4)


def test_std_conv_ignores_scale_and_shift_of_the_kernel(images):
  conv = std_conv.StdConv(8, size=3, eps=1e-10, eps_inside=True)
  kernel = conv.init(jax.random.key(0), images)['params']['kernel']
  moved = kernel * jnp.arange(1.0, 9.0).reshape(1, 1, 1, 8) + 0.3
  apply = lambda k: conv.apply({'params': {'kernel': k}}, images)
  np.testing.assert_allclose(apply(moved), apply(kernel), atol=2e-4)


def test_pool_padding_differs_only_at_negative_borders(images):
  make = lambda padding: bit.RootV2(32, padding)
  variables = make('zero').init(jax.random.key(0), images)
  zero = make('zero').apply(variables, images)
  inf = make('-inf').apply(variables, images)
  chex.assert_shape([zero, inf], (2, 8, 10, 32))
  # With stride 2 and padding 1, only the first row and column have padding.
  np.testing.assert_array_equal(zero[:, 1:, 1:], inf[:, 1:, 1:])
  np.testing.assert_array_equal(zero[:, 0], jnp.maximum(inf[:, 0], 0))
  np.testing.assert_array_equal(zero[:, :, 0], jnp.maximum(inf[:, :, 0], 0))
  assert (inf[:, 0] < 0).any()


@pytest.mark.parametrize('cls', [BiT, BiTV1])
def test_initial_values(cls, images):
  model = cls(**{**TINY, 'num_layers': (2,)}, head_bias=-6.9)
  variables = init(model, images)
  params = flatten_dict(variables['params'], sep='/')
  for name, value in params.items():
    chex.assert_type(value, jnp.float32)
    if name.endswith('/scale'):
      zero = cls is BiTV1 and name.endswith('gn3/scale')
      np.testing.assert_array_equal(value, 0.0 if zero else 1.0, err_msg=name)
    elif name.endswith('/bias') and not name.startswith('head'):
      np.testing.assert_array_equal(value, 0.0, err_msg=name)
    elif name.endswith('/kernel') and not name.startswith('head'):
      fan_in = np.prod(value.shape[:-1])
      assert 0.8 < value.std() * fan_in**0.5 < 1.2, name
  logits, out = jax.jit(lambda v: model.apply(v, images, train=False))(
    variables
  )
  np.testing.assert_array_equal(logits, np.full((2, 5), -6.9, np.float32))
  if cls is BiTV1:  # a unit without a projection is initially the identity
    np.testing.assert_array_equal(out['block1/unit2'], out['block1/unit1'])


@pytest.mark.parametrize('cls', [BiT, BiTV1])
def test_outputs_jit_and_bfloat16(cls, images):
  model = cls(**TINY)
  variables = random_variables(model, images)
  eager = lambda m: m.apply(variables, images, train=False)
  apply = lambda m: jax.jit(lambda: eager(m))()
  logits, out = apply(model)
  chex.assert_shape(logits, (2, 5))
  chex.assert_shape(out['pre_logits_2d'], (2, 4, 5, 256))
  chex.assert_shape(out['pre_logits'], (2, 256))
  unit = 'unit02' if cls is BiT else 'unit2'
  np.testing.assert_array_equal(out['block1'], out[f'block1/{unit}'])
  head = variables['params']['head']
  np.testing.assert_allclose(
    logits, out['pre_logits'] @ head['kernel'] + head['bias'][None], atol=1e-5
  )

  np.testing.assert_allclose(eager(model)[0], logits, atol=1e-4)

  low, low_out = apply(model.clone(dtype=jnp.bfloat16))
  assert low.dtype == jnp.float32
  assert low_out['block2'].dtype == jnp.bfloat16
  np.testing.assert_allclose(low, logits, atol=0.1 * float(logits.std()) + 0.05)

  features, _ = apply(model.clone(num_classes=0))
  np.testing.assert_allclose(features, out['pre_logits'], atol=1e-6)


@pytest.mark.parametrize('num_layers, stride', [((), 4), ((1, 1, 1), 16)])
def test_hybrid_stem_belongs_to_its_caller(num_layers, stride):
  class Caller(nn.Module):
    @nn.compact
    def __call__(self, x):
      return hybrid_stem.hybrid_stem(x, num_layers, 0.5, jnp.float32)

  x = jax.ShapeDtypeStruct((1, 58, 74, 3), jnp.float32)
  (y, out), variables = jax.eval_shape(
    Caller().init_with_output, jax.random.key(0), x
  )
  channels = 128 * 2 ** (len(num_layers) - 1) if num_layers else 32
  chex.assert_shape(y, (1, -(-58 // stride), -(-74 // stride), channels))
  blocks = {f'block{i + 1}' for i in range(len(num_layers))}
  assert set(variables['params']) == {'conv_root', 'gn_root'} | blocks
  assert set(out) == {'gn_root', 'root'} | blocks | {
    f'{b}/unit1' for b in blocks
  }


@pytest.mark.parametrize(
  'fields, root, last',
  [
    (dict(width_factor=1.5), 96, 768),
    (dict(channels=(384, 640)), 32, 640),
    (dict(channels=(256, 384), root_channels=96), 96, 384),
    (dict(channels=(40, 80), root_channels=20, num_groups=10), 20, 80),
  ],
)
def test_any_width_that_the_groups_divide(fields, root, last, images):
  model = BiT(**{**TINY, **fields})
  variables = random_variables(model, images)
  logits, out = jax.jit(lambda v: model.apply(v, images, train=False))(
    variables
  )
  assert out['root'].shape[-1] == root and out['pre_logits'].shape[-1] == last
  assert np.isfinite(logits).all() and logits.std() > 0


@pytest.mark.parametrize('cls', [BiT, BiTV1])
def test_head_is_float32_under_bfloat16(cls, images):
  """With a bias of -10, bfloat16 logits would be multiples of 0.0625."""
  model = cls(**TINY, head_bias=-10.0, dtype=jnp.bfloat16)
  variables = random_variables(model, images)
  variables['params']['head']['bias'] = jnp.full(5, -10.0)
  logits, out = jax.jit(lambda v: model.apply(v, images, train=False))(
    variables
  )
  assert out['pre_logits'].dtype == jnp.float32
  assert (np.abs(logits / 0.0625 - np.round(logits / 0.0625)) > 0.01).any()


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(width_factor=0.3), '19 channels cannot be split into the 32 groups'),
    (dict(channels=(128, 192)), '48 channels cannot be split into the 32'),
    (dict(channels=(128, 130)), 'allowed: multiples of 4'),
    (dict(channels=(128,)), 'channels has 1 widths for 2 stages'),
    (dict(root_channels=48), '48 channels cannot be split'),
    (dict(num_layers=(1, 0)), 'a stage has at least one unit'),
    (dict(remat='some'), "remat='some'; allowed: none, full"),
    (dict(pool_padding='same'), "pool_padding='same'; allowed: zero, -inf"),
  ],
)
def test_wrong_fields(fields, message, images):
  model = BiT(**{**TINY, **fields})
  with pytest.raises(ValueError, match=message):
    model.init(jax.random.key(0), images, train=False)
