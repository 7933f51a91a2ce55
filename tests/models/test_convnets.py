"""ResNet, RegNetY, EfficientNet, VGG, DenseNet: counts, names, behavior."""

import csv
import functools
import pathlib
import re

import chex
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny_config
from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.inference import describe, loading
from vit_jax.models.convnet import fan_out_normal
from vit_jax.models.densenet import DenseNet
from vit_jax.models.efficientnet import EfficientNet, scale_width
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import create_model, list_models
from vit_jax.models.regnet import SIZES, RegNetY, stage_shapes
from vit_jax.models.resnet import ResNet
from vit_jax.models.vgg import VGG, adaptive_matrix
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build, make_step
from vit_jax.weights import (
  WeightsError,
  from_state_dict,
  released_shapes,
  to_state_dict,
)
from vit_jax.weights.formats import WeightFile
from vit_jax.weights.metadata import WeightsMetadata

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'
STAGES = ((1, 3, 1, 1, 16), (2, 5, 2, 6, 24), (1, 3, 1, 6, 24))
TINY = {
  'resnet': ResNet(5, num_layers=(2, 1), width=8),
  'resnet_basic': ResNet(5, num_layers=(1, 1), unit='basic', width=8),
  'regnet': RegNetY(
    5, w0=8, wa=8.0, wm=2.0, depth=3, group_size=4, stem_width=8
  ),
  'efficientnet': EfficientNet(
    5, stages=STAGES, stem_channels=8, head_channels=32
  ),
  'vgg': VGG(5, stages=((4,), (8, 8)), hidden=16, batch_norm=True),
  'densenet': DenseNet(5, num_layers=(2, 2), growth=4),
}


def counts():
  """(registered name, image size, parameters, statistics, GMACs)."""
  with open(FIXTURES / 'param_counts_conv.tsv') as file:
    lines = [line for line in file if not line.startswith('#')]
  rows = csv.DictReader(lines, delimiter='\t')
  for row in rows:
    if not row['GMACs_measured']:
      continue  # rows with other numbers of classes or input channels
    source = row['source_of_count'].partition('; ')[0]
    yield pytest.param(
      source.rsplit(' ', 1)[1],
      int(row['resolution']),
      int(row['params_exact']),
      int(row['bn_running_stats_not_in_params']),
      float(row['GMACs_measured']),
      id=f'{row["model"]}-{row["resolution"]}',
    )


@pytest.mark.parametrize(
  'name,size,parameters,statistics,gmacs', list(counts())
)
def test_counts(name, size, parameters, statistics, gmacs):
  model = create_model(name)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
  )
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(variables['params']) == parameters
  assert count(variables.get('batch_stats', {})) == statistics
  if name in ('resnet50', 'regnety_080', 'vgg11', 'densenet121') or (
    name.endswith(('efficientnet_b0', 'efficientnet_b5'))
  ):  # the other sizes are alike and take longer
    assert round(forward_macs(model, size, size) / 1e9, 3) == gmacs


@pytest.mark.parametrize(
  'file',
  [
    'resnet18',
    'resnet34',
    'resnet50',
    'resnet101',
    'resnet152',
    'regnety_080',
    'regnety_160',
    *(f'tf_efficientnet_{size}' for size in ('b0', 'b4', 'b7', 'b8', 'l2')),
    'vgg16',
    'vgg16_bn',
    'densenet121',
    'densenet169',
  ],
)
def test_released_names(file):
  model = create_model(file)
  assert released_shapes(model, 64, 'timm') == tsv_shapes(file)


@pytest.mark.parametrize('name', TINY)
def test_formats_are_detected(name):
  """Of the names alone; the contract of all families compares the values."""
  model = TINY[name]
  variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
  formats = ['timm']
  if name in ('regnet', 'efficientnet', 'vgg'):
    formats.append('torchvision')
  for fmt in formats:
    arrays = to_state_dict(variables, model, fmt)
    _, report = from_state_dict(model, arrays, 32)
    assert report.format == fmt
    assert {r.action for r in report.records} == {'loaded'}


def test_torchvision_names():
  names = released_shapes(create_model('regnety_080_tv'), 64, 'torchvision')
  assert names['trunk_output.block2.block2-3.f.b.0.weight'] == (448, 56, 3, 3)
  assert names['trunk_output.block1.block1-0.proj.0.weight'] == (224, 32, 1, 1)
  names = released_shapes(create_model('efficientnet_b0'), 64, 'torchvision')
  assert names['features.1.0.block.0.0.weight'] == (32, 1, 3, 3)
  assert names['features.2.1.block.2.fc1.weight'] == (6, 144, 1, 1)
  assert names['features.8.0.weight'] == (1280, 320, 1, 1)
  timm = released_shapes(create_model('efficientnet_b0'), 64, 'timm')
  assert list(timm.values()) == list(names.values())
  names = released_shapes(create_model('vgg16_bn'), 64, 'torchvision')
  assert names['classifier.0.weight'] == (4096, 25088)
  assert names['features.41.running_var'] == (512,)


def test_first_names_of_torchvisions_densenet():
  model = TINY['densenet']
  variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
  arrays = {}
  for name, x in to_state_dict(variables, model, 'timm').items():
    for kind in ('norm', 'conv'):
      for i in '12':
        name = name.replace(f'.{kind}{i}.', f'.{kind}.{i}.')
    arrays[name] = x
  assert 'features.denseblock1.denselayer1.norm.1.weight' in arrays
  loaded, _ = from_state_dict(model, arrays, 32)
  chex.assert_trees_all_equal(loaded, variables)


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('size', [(32, 32), (37, 50), (33, 31)])
def test_sizes_that_the_strides_do_not_divide(name, size):
  """Every stride rounds up; VGG's and DenseNet's pooling drops the rest."""
  if name == 'vgg' and min(size) < 32:
    size = (33, 34)
  model = TINY[name]
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  (logits, out), _ = jax.eval_shape(
    functools.partial(model.init_with_output, train=False),
    jax.random.key(0),
    images,
  )
  assert logits.shape == (2, 5)
  up = lambda n, times: up(-(-n // 2), times - 1) if times else n
  down = lambda n, times: n >> times
  halve = down if name == 'vgg' else up
  # Strided layers before each stage, and in it.
  strides = {
    'resnet': (2, 3),
    'resnet_basic': (2, 3),
    'regnet': (2, 3),
    'efficientnet': (1, 2, 2),
    'vgg': (1, 2),
    'densenet': (2,),
  }[name]
  for stage, times in enumerate(strides, start=1):
    got = out[f'block{stage}'].shape[1:3]
    assert got == tuple(halve(n, times) for n in size), (stage, got)
  if name == 'densenet':
    pooled = tuple(up(n, 2) // 2 for n in size)
    assert out['block2'].shape[1:3] == pooled


@pytest.mark.parametrize('name', TINY)
def test_gradients_and_statistics(name):
  """All gradients are finite and none is 0; all statistics change."""
  model = TINY[name]
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  variables = random_variables(model, images)

  def loss(params):
    (logits, _), new = model.apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return jnp.square(logits).mean(), new

  grads, new = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  chex.assert_tree_all_finite(grads)
  for path, g in flatten_dict(grads, sep='/').items():
    # A BatchNorm removes the bias of the convolution before it.
    if not (name == 'vgg' and path.startswith('conv')):
      assert float(jnp.abs(g).max()) > 0, path
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()),
    new['batch_stats'],
    variables['batch_stats'],
  )
  assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize('name', ['resnet', 'regnet', 'efficientnet'])
def test_drop_path_drops_whole_branches_in_training(name):
  model = TINY[name].clone(drop_path=0.9)
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  variables = random_variables(model, images)

  @jax.jit
  def logits(key):
    (logits, _), _ = model.apply(
      variables,
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    return logits

  assert np.abs(logits(jax.random.key(1)) - logits(jax.random.key(2))).max() > 0


def test_initial_values():
  """With zero_init, the last scale is 0 and units do not change their input."""
  images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  model = TINY['resnet']
  init = lambda model: jax.jit(
    lambda key: model.init(key, images, train=False)
  )(jax.random.key(0))
  variables = init(model)
  scales = variables['params']['block1']['unit2']
  np.testing.assert_array_equal(scales['norm3']['scale'], 0)
  np.testing.assert_array_equal(scales['norm1']['scale'], 1)
  _, out = model.apply(variables, images, train=False)
  np.testing.assert_array_equal(out['block1/unit2'], out['block1/unit1'])
  scales = init(model.clone(zero_init=False))['params']['block1']['unit2']
  np.testing.assert_array_equal(scales['norm3']['scale'], 1)
  kernel = variables['params']['head']['kernel']
  bound = kernel.shape[0] ** -0.5
  assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize('groups,size,features', [(1, 3, 64), (8, 3, 64)])
def test_kernels_start_with_the_fan_out_of_a_group(groups, size, features):
  shape = (size, size, 32 // groups, features)
  kernel = fan_out_normal(groups)(jax.random.key(0), shape)
  want = (2 / (size**2 * features / groups)) ** 0.5
  assert np.std(kernel) == pytest.approx(want, rel=0.05)


def test_regnet_widths():
  shapes = lambda size, **kw: [
    (s.width, s.depth) for s in stage_shapes(*SIZES[size], **kw)
  ]
  assert shapes('040') == [(128, 2), (192, 6), (512, 12), (1088, 2)]
  assert shapes('080') == [(168, 2), (448, 4), (896, 10), (2016, 1)]
  assert shapes('080', rounding='torchvision')[0] == (224, 2)
  assert shapes('160') == [(224, 2), (448, 4), (1232, 11), (3024, 1)]
  assert shapes('320') == [(232, 2), (696, 5), (1392, 12), (3712, 1)]
  for size in ('160', '320'):
    assert shapes(size) == shapes(size, rounding='torchvision')


def test_efficientnet_widths():
  assert [scale_width(c, 1.1) for c in (16, 24, 40, 80)] == [16, 24, 48, 88]
  assert [scale_width(c, 4.3) for c in (32, 16, 1280)] == [136, 72, 5504]
  assert scale_width(16, 0.25) == 8


@pytest.mark.parametrize('old,new', [(7, 7), (8, 7), (10, 7), (4, 7), (14, 7)])
def test_adaptive_pooling_is_pytorchs(old, new):
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).standard_normal((2, old)).astype(np.float32)
  want = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(x)[None], new)
  np.testing.assert_allclose(
    x @ adaptive_matrix(old, new).T, want[0], atol=1e-6
  )


@pytest.mark.parametrize(
  'model,size,match',
  [
    (ResNet(unit='v2'), 32, "unit='v2'; allowed: basic, bottleneck"),
    (EfficientNet(padding='same'), 32, "padding='same'; allowed: symmetric"),
    (RegNetY(width_rounding='up'), 32, "width_rounding='up'; allowed: pycls"),
    (VGG(head_style='keras'), 32, "head_style='keras'; allowed: torchvision"),
    (VGG(), 31, 'an image of 31x31 is smaller than 32 pixels'),
    (DenseNet(remat='some'), 32, "remat='some'; allowed: none"),
  ],
)
def test_wrong_fields_and_sizes(model, size, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(
      functools.partial(model.init, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
    )


def test_a_batch_of_one_in_a_recipe():
  """The message names the keys of the recipe that change it."""
  config = tiny_config(
    data=dict(batch_size=8, image_size=8), run=dict(dtype='float32')
  )
  config.model = dict(name='resnet50', num_layers=(1, 1), width=8, bn_groups=8)
  run = build(
    config, make_mesh(devices=jax.devices()[:1]), num_classes=5, num_examples=8
  )
  batch = {
    'image': jax.ShapeDtypeStruct((8, 8, 8, 3), 'uint8'),
    'label': jax.ShapeDtypeStruct((8,), 'int32'),
  }
  message = r'one value per channel.*data\.batch_size.*model\.bn_groups'
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(make_step(run), run.abstract_state, batch, {})


@pytest.mark.parametrize(
  'file, model, message',
  [
    ('resnet34', 'resnet18', 'left over layer1.2.*Its tensors fit resnet34:'),
    ('vgg16', 'vgg16_bn', 'is not a file of VGG.*Its tensors fit vgg16:'),
    (
      'regnety_080_tv',
      'regnety_080',
      r'is \(224,\), expected \(168,\).*fit regnety_080_tv:',
    ),
  ],
)
def test_a_file_of_another_variant(file, model, message, monkeypatch):
  """The error says what differs, and which models the file is of."""
  arrays = {
    name: np.broadcast_to(np.float32(0), shape)
    for name, shape in released_shapes(create_model(file), 64, 'timm').items()
  }
  content = WeightFile(arrays, WeightsMetadata(), 'torch')
  monkeypatch.setattr(loading, 'read', lambda source, **_: content)
  # The search among all variants takes some seconds.
  monkeypatch.setattr(describe, 'list_models', lambda: [model, file])
  with pytest.raises(WeightsError, match=re.compile(message, re.DOTALL)):
    loading.load_classifier(f'{file}.pth', model=model, image_size=64)


def test_registered_names():
  for pattern, count in (
    ('resnet*', 5),
    ('regnety*', 5),
    ('tf_efficientnet*', 10),
    ('efficientnet*', 10),
    ('vgg*', 8),
    ('densenet*', 4),
  ):
    assert len(list_models(pattern)) == count
