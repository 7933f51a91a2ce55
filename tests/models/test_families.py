"""The contract that every family keeps, over the small variants of `families`.

It covers names and counts of the registered models, results, scan and
rematerialization, bfloat16, FSDP, weights in every format, and errors. The file
of a family tests what only this family has.
"""

import functools
import json
import re

import chex
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest

from tests.families import (
  CLASSES,
  FAMILIES,
  IMAGE_SIZE,
  Count,
  recorded_conv_names,
  recorded_counts,
)
from tests.helpers import tiny_config
from tests.random_variables import random_variables
from vit_jax import train
from vit_jax.inference.describe import measure
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.models.vit import SIZES
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.rules import param_specs
from vit_jax.weights import (
  WeightsError,
  from_state_dict,
  known_formats,
  load_pretrained,
  save_weights,
  stack_blocks,
  to_state_dict,
)
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.steps import load_params

BATCH = 8
COUNTS = recorded_counts()
every_family = pytest.mark.parametrize('family', FAMILIES)
SCANNABLE = [f for f, x in FAMILIES.items() if hasattr(x.create(), 'scan')]


def slow_if(slow: bool):
  return [pytest.mark.slow] if slow else []


def images():
  x = np.random.default_rng(7).standard_normal((BATCH, *IMAGE_SIZE, 3))
  return jnp.asarray(x, jnp.float32)


@functools.cache
def shapes(family: str, size=IMAGE_SIZE, **fields):
  """{path: shape and dtype} of the variables of a small model."""
  model = FAMILIES[family].create(**fields)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
  )
  return flatten_dict(variables, sep='/')


@functools.cache
def variables(family: str):
  return random_variables(FAMILIES[family].create(), images())


def stacked(family: str, tree):
  """Variables or gradients with stacked blocks, for a scanned model."""
  flat = {k: np.asarray(x) for k, x in flatten_dict(tree, sep='/').items()}
  names = [k for k in shapes(family, scan=True) if k.split('/')[0] in tree]
  flat = stack_blocks(flat, names)
  assert set(flat) == set(names)
  return unflatten_dict(flat, sep='/')


# --- The registered models ---------------------------------------------------


@pytest.mark.parametrize(
  'row',
  # Other image sizes change only the position table and the work, and larger
  # models of a family are made of the same modules.
  [
    pytest.param(
      r, id=str(r), marks=slow_if(r.size != 224 or r.parameters > 4e7)
    )
    for r in COUNTS
  ],
)
def test_recorded_parameters_and_work(row: Count):
  """Parameters and multiply-accumulates are as many as in the authors' code."""
  model = create_model(row.name, **dict(row.fields))
  parameters, macs = measure(model, (row.size, row.size))
  assert parameters == row.parameters
  if row.gmacs is not None:
    assert round(macs / 1e9, 3) == row.gmacs


def test_recorded_statistics():
  """The numbers of running statistics are those of the authors' code."""
  rows = {row.name: row for row in COUNTS if row.statistics}
  assert {name.split('_')[0] for name in rows} == {'volo', 'ceit', 'deepvit'}
  for row in rows.values():
    model = create_model(row.name, scan=True)
    tree = jax.eval_shape(
      functools.partial(model.init, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
    )
    statistics = sum(x.size for x in jax.tree.leaves(tree['batch_stats']))
    assert statistics == row.statistics, row.name


def test_every_registered_model_has_a_recorded_count():
  """ViTs whose patch size was not recorded have a recorded relative."""
  recorded = {row.name: row for row in COUNTS if row.size == 224}
  # Other tests of the same process register models of their own.
  models = {
    name
    for name in list_models()
    if model_info(name).module.__module__.startswith('vit_jax.')
  }
  missing = models - set(recorded) - recorded_conv_names()
  for size, (width, *_) in SIZES.items():
    names = {f'vit_{size}{patch}': patch for patch in (8, 14, 16, 32)}
    known = next(n for n in names if n in recorded)
    positions = lambda patch: 3 * patch**2 + (224 // patch) ** 2
    for name in set(names) & missing:
      fields = dict(recorded[known].fields)
      parameters, _ = measure(create_model(name, **fields), (224, 224))
      more = positions(names[name]) - positions(names[known])
      assert parameters == recorded[known].parameters + width * more, name
      missing.remove(name)
  # A hybrid is a ViT with the ResNet of another hybrid, whose channels, instead
  # of 3 * patch^2 values, go into the embedding.
  plain = {
    r.name: r.parameters for r in COUNTS if r.size == 224 and not r.fields
  }
  for name, vit, hybrid, other, channels, patch in (
    ('r50_vit_b32', 'vit_b32', 'r50_vit_l32', 'vit_l32', 2048, 32),
    ('r50_vit_l16', 'vit_l16', 'r50_vit_b16', 'vit_b16', 1024, 16),
  ):
    parameters, _ = measure(create_model(name), (224, 224))
    resnet = plain[hybrid] - plain[other]
    width = create_model(vit).width - create_model(other).width
    more = (channels - 3 * patch**2) * width
    assert parameters == plain[vit] + resnet + more, name
    missing.remove(name)
  assert missing == {
    'bit_v1_r101x1',  # big_vision publishes only the R50x1
    'bit_v1_r152x2',
    'deit_b16_384',  # the rows of deit_b16 at 384 pixels
    'deit_b16_distilled_384',
    'vit_s14_dinov2',
    'vit_b14_dinov2',
    'vit_l14_dinov2',
  }


@pytest.mark.parametrize('name', list_models())
def test_registered_fields_and_preprocessing(name):
  info = model_info(name)
  model = create_model(name)
  assert type(model) is info.module and model.num_classes == 1000
  for field, value in info.fields.items():
    assert getattr(model, field) == value
  hash(model)  # jit takes a model as a static argument
  height, width = info.preprocessing.size
  patch = getattr(model, 'patch_size', 1)
  assert height == width and height % patch == 0


# --- What a model returns ----------------------------------------------------


@every_family
def test_initial_variables(family):
  """They are float32 in two collections; num_classes=0 removes the head."""
  paths = shapes(family)
  assert all(x.dtype == jnp.float32 for x in paths.values())
  assert {p.split('/')[0] for p in paths} <= {'params', 'batch_stats'}
  assert paths['params/head/kernel'].shape[-1] == CLASSES
  is_head = lambda p: re.fullmatch(r'params/(aux_)?head(_dist)?/\w+', p)
  bare = shapes(family, num_classes=0)
  assert bare == {p: x for p, x in paths.items() if not is_head(p)}


@every_family
def test_outputs(family):
  """Logits, features and attention of one small model."""
  model = FAMILIES[family].create()
  models = [model, model.clone(num_classes=0)]
  attention = hasattr(model, 'return_attention')
  if attention:
    models.append(model.clone(return_attention=True))
  (logits, out), (features, _), *rest = jax.jit(
    lambda v: [m.apply(v, images(), train=False) for m in models]
  )(variables(family))
  chex.assert_shape(logits, (BATCH, CLASSES))
  chex.assert_tree_all_finite((logits, out))
  assert logits.dtype == jnp.float32
  assert all(isinstance(value, jax.Array) for value in out.values())
  assert out['pre_logits'].ndim == 2 and len(out['pre_logits']) == BATCH
  np.testing.assert_allclose(features, out['pre_logits'], atol=1e-5)
  head = variables(family)['params']['head']
  np.testing.assert_allclose(
    out.get('logits_class', logits),
    out['pre_logits'] @ head['kernel'] + head['bias'][None],
    atol=1e-4,
  )
  if 'tokens' in out:
    assert out['tokens'].shape[::2] == out['pre_logits'].shape or (
      FAMILIES[family].fields.get('representation_size')
    )
  assert not any(name.startswith('attention') for name in out)
  if attention:
    _check_attention(model, out, rest[0][1])


def _check_attention(model, out, more):
  maps = {k: v for k, v in more.items() if k.startswith('attention')}
  assert set(more) - set(maps) == set(out)
  volo = hasattr(model, 'layers')
  assert len(maps['attention']) == (model.layers[-1] if volo else model.depth)
  for probs in maps['attention']:
    assert probs.ndim == 4 and len(probs) == BATCH
    assert probs.shape[-1] == probs.shape[-2]
  # Rows of mixed maps (talking heads, re-attention) need not sum to one.
  for name in set(maps) - {'attention'} or {'attention'}:
    for probs in maps[name]:
      np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)


@every_family
def test_bfloat16(family):
  """Blocks compute in bfloat16; logits and parameters stay float32."""
  model = FAMILIES[family].create()
  models = model, model.clone(dtype='bfloat16')
  (want, _), (got, out) = jax.jit(
    lambda v, x: [m.apply(v, x, train=False) for m in models]
  )(variables(family), images())
  assert got.dtype == jnp.float32
  assert any(x.dtype == jnp.bfloat16 for x in out.values())
  assert all(
    x.dtype == jnp.float32 for x in shapes(family, dtype='bfloat16').values()
  )
  error = np.abs(got - want).max()
  assert 0 < error < 0.1 * float(want.std()) + 0.05


# --- One computation in several forms ----------------------------------------


def gradients(family: str, tree, **fields):
  """Gradients, logits and new running statistics of a training step."""
  model = FAMILIES[family].create(**fields)

  def loss(params):
    (logits, out), stats = model.apply(
      {**tree, 'params': params},
      images(),
      train=True,
      rngs={'dropout': jax.random.key(0)},
      mutable=['batch_stats'],
    )
    other = sum(
      (x**2).mean() for name, x in out.items() if name.startswith('logits_')
    )
    return (logits**2).mean() + other, (logits, stats)

  with jax.default_matmul_precision('highest'):
    return jax.jit(jax.grad(loss, has_aux=True))(tree['params'])


@functools.cache
def reference(family: str):
  return gradients(family, variables(family))


@pytest.mark.parametrize(
  'family',
  # The next test has rematerialization of scanned blocks.
  [
    pytest.param(f, marks=slow_if(f not in ('vit', 'bit')))
    for f, x in FAMILIES.items()
    if hasattr(x.create(), 'remat')
  ],
)
def test_remat_changes_nothing(family):
  want, rest = reference(family)
  chex.assert_tree_all_finite(want)
  got, same = gradients(family, variables(family), remat='full')
  chex.assert_trees_all_close(same, rest, atol=1e-4)
  chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('family', SCANNABLE)
def test_scan_changes_nothing(family):
  """Scan, also with rematerialization, gives the same numbers."""
  want, (logits, stats) = reference(family)
  tree = stacked(family, variables(family))
  got, (same, new) = gradients(family, tree, scan=True, remat='dots')
  chex.assert_trees_all_close(same, logits, atol=1e-4)
  chex.assert_trees_all_close(new, stacked(family, stats), atol=1e-5)
  chex.assert_trees_all_close(
    got, stacked(family, {'params': want})['params'], rtol=1e-3, atol=1e-3
  )


@every_family
def test_fsdp_on_eight_devices(family):
  """Every parameter has a rule, and the logits are those of one device."""
  assert jax.device_count() == 8
  model = FAMILIES[family].create()
  tree = variables(family)
  mesh = make_mesh('fsdp', fsdp=8)
  specs = param_specs(tree['params'], mesh, 'fsdp')
  split = [s for s in jax.tree.leaves(specs) if 'fsdp' in s]
  assert split, 'no parameter is split'
  put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
  params = jax.tree.map(put, tree['params'], specs)
  batch = put(images(), jax.P(('data', 'fsdp')))
  apply = lambda v, x: model.apply(v, x, train=False)[0]
  with jax.set_mesh(mesh):
    got = jax.jit(apply)({**tree, 'params': params}, batch)
  want = jax.jit(apply)(tree, images())
  np.testing.assert_allclose(got, want, atol=1e-4)


# --- Weights -----------------------------------------------------------------


@every_family
def test_weights_there_and_back_in_every_format(family):
  """For the model itself and, if it has one, for its scanned form."""
  model, tree = FAMILIES[family].create(), variables(family)
  formats = set(known_formats(model))
  assert 'flax' in formats and formats >= set(FAMILIES[family].incomplete)
  for fmt in formats - set(FAMILIES[family].incomplete):
    arrays = to_state_dict(tree, model, fmt)
    same, report = from_state_dict(model, arrays, IMAGE_SIZE, fmt=fmt)
    assert not report.reset and not report.left_over
    # In big_vision's format, the row of the class token in the position table
    # is added to the token. The variables differ, and the logits are the same.
    folded = fmt == 'big_vision' and 'cls' in tree['params']
    if not folded:
      chex.assert_trees_all_equal(same, tree)
    chex.assert_trees_all_equal(to_state_dict(same, model, fmt), arrays)
    if hasattr(model, 'scan'):
      scanned = model.clone(scan=True)
      stacks, _ = from_state_dict(scanned, arrays, IMAGE_SIZE, fmt=fmt)
      chex.assert_trees_all_equal(stacks, stacked(family, same))
      chex.assert_trees_all_equal(to_state_dict(stacks, scanned, fmt), arrays)


def test_formats_without_a_name_for_a_parameter_refuse_it():
  for name, family in FAMILIES.items():
    for fmt in family.incomplete:
      with pytest.raises(WeightsError, match='has no name for params/'):
        to_state_dict(variables(name), family.create(), fmt)


@every_family
@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_saved_files_load(family, suffix, tmp_path):
  model, tree = FAMILIES[family].create(), variables(family)
  path = tmp_path / f'weights.{suffix}'
  save_weights(tree, model, path, WeightsMetadata(image_size=IMAGE_SIZE))
  same, report = load_pretrained(model, path)
  assert not report.reset and not report.left_over
  chex.assert_trees_all_equal(same, tree)


# --- Errors ------------------------------------------------------------------


@pytest.mark.parametrize(
  'family, fields, message',
  [(f, *wrong) for f, family in FAMILIES.items() for wrong in family.wrong],
)
def test_wrong_fields(family, fields, message):
  model = FAMILIES[family].create(**fields)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      functools.partial(model.init, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, *IMAGE_SIZE, 3), jnp.float32),
    )


# --- Under the trainer -------------------------------------------------------


def recipe(family: str, fields=(), **sections):
  config = tiny_config(data=dict(image_size=32), **sections)
  small = FAMILIES[family]
  config.model = {'name': small.name, **small.fields, **dict(fields)}
  return config


def losses_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array(
    [line['loss'] for line in map(json.loads, lines) if 'loss' in line]
  )


@pytest.mark.slow
@every_family
def test_trains_with_fsdp_and_scan(family, tmp_path):
  """On 8 devices; running statistics of BatchNorm change and are saved."""
  model = FAMILIES[family].create()
  groups = hasattr(model, 'bn_groups')  # BatchNorm has statistics per device
  config = recipe(
    family,
    {
      **({'scan': True} if hasattr(model, 'scan') else {}),
      **({'bn_groups': 8} if groups else {}),
    },
    mesh=dict(preset='fsdp'),
    run=dict(steps=4),
    optim=dict(lr=3e-3),
  )
  summary = train.train_and_evaluate(config, str(tmp_path))
  assert summary['step'] == 4 and np.isfinite(losses_of(tmp_path)).all()
  saved, _ = load_params(tmp_path)
  means = [
    x
    for k, x in saved.items()
    if k.startswith('batch_stats') and k.endswith('mean')
  ]
  assert bool(means) == groups
  assert all(np.abs(m).max() > 0 for m in means)


@pytest.mark.slow
@every_family
def test_bfloat16_trains_like_float32(family, tmp_path):
  """Loss curves over 50 steps stay within 5 % of the first loss."""
  curves = []
  for dtype in ('float32', 'bfloat16'):
    config = recipe(
      family, run=dict(steps=50, dtype=dtype), optim=dict(lr=1e-3)
    )
    train.train_and_evaluate(config, str(tmp_path / dtype))
    curves.append(losses_of(tmp_path / dtype))
  a, b = curves
  assert len(a) == 50 and a[-5:].mean() < a[:5].mean()
  assert np.abs(a - b).max() < 0.05 * a[0]
