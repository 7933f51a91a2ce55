"""Distillation: live teachers, stored logits, and the recipe of DeiT."""

import json
import shutil

import chex
import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import deit_i1k
from tests.helpers import saved_state, tiny_config
from tests.random_variables import random_variables
from vit_jax import train
from vit_jax.cli import parser
from vit_jax.data.sources.opening import open_source
from vit_jax.inference.loading import load_classifier
from vit_jax.models.registry import create_model, released_model
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import make_mesh, put_batch
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.build import build, compile_step, make_step
from vit_jax.recipe.checks import check
from vit_jax.recipe.inputs import open_train_source
from vit_jax.recipe.keys import ConfigError
from vit_jax.teachers import live as live_lib
from vit_jax.teachers import stored_logits
from vit_jax.teachers.classes import check_classes
from vit_jax.teachers.stored_logits import is_stored, write_logits
from vit_jax.teachers.teacher import abstract_teacher, make_teacher
from vit_jax.training import augment
from vit_jax.weights import hub, save_weights
from vit_jax.weights.metadata import WeightsMetadata

ONE = jax.devices()[:1]


def student_config(teacher, **sections):
  """The recipe of a tiny distilled student."""
  c = tiny_config(run=dict(steps=2), **sections)
  c.model.update(name='deit_ti16_distilled')
  c.loss.distill = 'hard'
  c.loss.teacher_weights = str(teacher)
  return c


@pytest.fixture(scope='module')
def teacher_dir(tmp_path_factory):
  """A trained teacher: a tiny ViT with another normalization."""
  path = tmp_path_factory.mktemp('teacher')
  train.train_and_evaluate(
    tiny_config(run=dict(steps=12), data=dict(normalize='imagenet')), path, ONE
  )
  return path


def make(config, mesh=None, **kwargs):
  mesh = mesh or make_mesh(config.mesh.preset)
  return make_teacher(config, mesh, 5, **kwargs)


# --- The input of the teacher -----------------------------------------------


@pytest.mark.parametrize('new', ['half', 'imagenet'])
@pytest.mark.parametrize('size', [(16, 16), (24, 32), (9, 9)])
def test_renormalize_equals_the_way_through_pixels(new, size):
  pixels = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3)) * 255
  got = live_lib.renormalize(
    augment.normalize(pixels, 'imagenet'), size, 'imagenet', new
  )
  want = augment.normalize(augment.resize(pixels, size), new)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_workdir_knows_its_model(teacher_dir):
  """A workdir has the model, fields and normalization of a teacher."""
  config = student_config(teacher_dir)
  fn, variables = make(config)
  fn = jax.jit(fn)
  pixels = jax.random.uniform(jax.random.key(0), (8, 16, 16, 3)) * 255
  got = fn(variables, augment.normalize(pixels, 'half'), {})
  state = saved_state(teacher_dir)
  params = flax.traverse_util.unflatten_dict(
    {
      k.removeprefix('params/'): v
      for k, v in state.items()
      if k.startswith('params/')
    },
    sep='/',
  )
  fields = tiny_config().model.to_dict()
  del fields['module']
  model = create_model(fields.pop('name'), 5, **fields)
  want, _ = model.apply(
    {'params': params}, augment.normalize(pixels, 'imagenet'), train=False
  )
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_own_resolution(teacher_dir):
  """The position table is for the teacher's size; images are resized to it."""
  config = student_config(teacher_dir)
  config.loss.teacher_image_size = 32
  fn, variables = make(config)
  fn = jax.jit(fn)
  table = variables['params']['Transformer']['posembed_input']['pos_embedding']
  assert table.shape[1] == 1 + (32 // 8) ** 2
  chex.assert_shape(fn(variables, jnp.zeros((8, 16, 16, 3)), {}), (8, 5))


@pytest.mark.parametrize('preset', ['data', 'fsdp'])
def test_sharded_like_a_student_with_the_same_logits(teacher_dir, preset):
  config = student_config(teacher_dir, mesh=dict(preset=preset))
  mesh = make_mesh(preset)
  fn, variables = make(config, mesh)
  specs = jax.tree.map(lambda x: x.sharding.spec, variables['params'])
  want = rules.param_specs(variables['params'], mesh, preset)
  assert specs == want
  split = [
    s
    for s in jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, jax.P))
    if any(s)
  ]
  assert bool(split) == (preset == 'fsdp')
  images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
  with jax.set_mesh(mesh):
    got = jax.jit(fn)(variables, put_batch(images, mesh), {})
  one, alone = make(config, make_mesh(devices=ONE))
  np.testing.assert_allclose(got, jax.jit(one)(alone, images, {}), atol=1e-5)


def test_computes_in_the_dtype_of_the_run(teacher_dir):
  config = student_config(teacher_dir)
  images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
  fn, variables = make(config)
  exact = jax.jit(fn)(variables, images, {})
  config.run.dtype = 'bfloat16'
  fn, variables = make(config)
  fn = jax.jit(fn)
  assert variables['params']['head']['kernel'].dtype == jnp.float32
  jaxpr = str(jax.make_jaxpr(fn)(variables, images, {}))
  assert 'dot_general' in jaxpr and 'bf16[' in jaxpr
  logits = fn(variables, images, {})
  assert logits.dtype == jnp.float32 and np.any(logits != exact)
  np.testing.assert_allclose(logits, exact, atol=0.2)


# --- No gradient, no statistics ---------------------------------------------


class Toy(nn.Module):
  """A small model with BatchNorm."""

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Dense(4)(images.mean((1, 2)))
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(5)(x), {}


@jax.jit
def teach(variables, images):
  fn = live_lib.live_function(Toy(), (8, 8), 'half', 'imagenet')
  return fn(variables, images, {})  # a change of statistics would be an error


def test_no_gradient_reaches_the_teacher():
  images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  variables = Toy().init(jax.random.key(1), images, train=False)
  grads = jax.jit(jax.grad(lambda v, x: jnp.sum(teach(v, x) ** 2), (0, 1)))(
    variables, images
  )
  assert len(jax.tree.leaves(grads)) > 4
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_batch_norm_is_in_eval_mode():
  """The logits of an image do not depend on the rest of the batch."""
  images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  variables = Toy().init(jax.random.key(1), images, train=False)
  np.testing.assert_allclose(
    teach(variables, images)[:1], teach(variables, images[:1]), atol=1e-5
  )


def test_the_step_sends_no_gradient_to_the_teacher(teacher_dir):
  """The new student does not depend on the teacher's parameters by gradient."""
  config = student_config(teacher_dir, optim=dict(name='sgd'))
  config.loss.distill = 'soft'
  mesh = make_mesh(devices=ONE)
  fn, variables = make(config, mesh)
  run = build(config, mesh, num_classes=5, num_examples=64)
  step = make_step(run, teacher=fn)
  batch = {
    'image': np.zeros((16, 16, 16, 3), np.uint8),
    'label': np.arange(16) % 5,
  }
  state = run.init()

  def moved(params):
    new, _ = step(state, batch, {'teacher': {**variables, 'params': params}})
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(new.params))

  grads = jax.jit(jax.grad(moved))(variables['params'])
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


# --- Stored logits ----------------------------------------------------------


@pytest.fixture(scope='module')
def stored(teacher_dir, tmp_path_factory):
  """A folder of PNGs with the classes of the teacher, and its logits."""
  from PIL import Image

  root = tmp_path_factory.mktemp('images')
  data = open_source(
    'synthetic',
    split='train',
    num_examples=30,
    num_classes=5,
    image_size=(16, 16),
  )
  for i in range(30):
    path = root / 'train' / f'c{data[i]["label"]}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data[i]['image']).save(path)
  out = tmp_path_factory.mktemp('logits')
  assert (
    parser.main(
      [
        'teacher-logits',
        str(teacher_dir),
        '-o',
        str(out),
        '--source',
        'folder',
        '--data',
        str(root),
        '--batch-size',
        '8',
      ]
    )
    == 0
  )
  return root, out


def folder_config(root, weights):
  config = student_config(weights)
  config.data.update(
    source='folder', dir=str(root), crop='resize', flip=0.0, batch_size=8
  )
  config.eval.sets = {'test': {'split': 'train'}}
  return config


def test_stored_logits_equal_the_live_teacher(stored, teacher_dir):
  root, out = stored
  config = folder_config(root, out)
  source = open_train_source(config)
  mesh = make_mesh()
  fixed, table = make(config, mesh, source=source)
  live, variables = make(folder_config(root, teacher_dir), mesh)
  live = jax.jit(live)
  assert table['logits'].shape[0] == 32  # padded to the 8 devices
  batches = recipe_data.train_batches(config, source)
  for _ in range(3):
    batch = next(batches)
    images = augment.normalize(batch['image'], 'half')
    np.testing.assert_allclose(
      fixed(table, images, batch), live(variables, images, batch), atol=1e-4
    )
  batches.close()


def test_stored_logits_are_refused_where_they_do_not_fit(stored):
  root, out = stored
  with pytest.raises(ConfigError, match='not the training examples'):
    make(
      folder_config(root, out),
      source=open_source('synthetic', split='train', num_classes=5),
    )
  config = folder_config(root, out)
  config.data.mixup = 0.8
  with pytest.raises(ConfigError, match='set both to 0'):
    make(config)
  with pytest.raises(ConfigError, match='5 classes and the data 7'):
    make_teacher(folder_config(root, out), make_mesh(), 7)


def test_an_unfinished_table_is_no_teacher(stored, tmp_path):
  (tmp_path / stored_logits.LOGITS).write_bytes(b'half')
  assert is_stored(stored[1]) and not is_stored(tmp_path)


# --- Refusals ---------------------------------------------------------------


def test_a_teacher_in_another_order_gives_logits_by_name(stored, tmp_path):
  root, out = stored
  shutil.copytree(out, tmp_path / 'logits')
  meta = json.loads((out / stored_logits.META).read_text())
  meta['classes'] = ['c4', 'c3', 'c2', 'c1', 'c0']
  (tmp_path / 'logits' / stored_logits.META).write_text(json.dumps(meta))
  source = open_train_source(folder_config(root, out))
  batch = {'index': np.arange(8)}
  plain, table = make(folder_config(root, out), source=source)
  ordered, _ = make(folder_config(root, tmp_path / 'logits'), source=source)
  np.testing.assert_array_equal(
    ordered(table, None, batch), plain(table, None, batch)[:, ::-1]
  )


def test_class_order_is_checked(caplog):
  same = ['ant', 'bee', 'cat']
  check_classes('t', 3, same, 3, same)
  check_classes('t', 3, None, 3, same)
  assert check_classes('t', 3, ['ant', 'cat', 'bee'], 3, same) == [0, 2, 1]
  assert 'the same classes in another order' in caplog.text
  assert check_classes('t', 4, ['owl', *same], 3, same) == [1, 2, 3]
  with pytest.raises(ConfigError, match="class 1 is 'bee' in the data, 'owl'"):
    check_classes('t', 3, ['ant', 'owl', 'cat'], 3, same)
  with pytest.raises(ConfigError, match='4 classes and the data 3'):
    check_classes('t', 4, None, 3, same)
  other = ['n1', 'n2', 'n3']  # the same classes by other names
  with pytest.raises(ConfigError, match="data.match_classes='numbers'"):
    check_classes('t', 3, other, 3, same)
  assert check_classes('t', 3, other, 3, same, 'numbers') is None


def test_a_teacher_of_other_classes_stops_the_run(teacher_dir, tmp_path):
  config = student_config(teacher_dir)
  config.data.num_classes = 6
  with pytest.raises(ConfigError, match='5 classes and the data 6'):
    train.train_and_evaluate(config, tmp_path / 'w')
  config = student_config('')
  with pytest.raises(ConfigError, match='needs loss.teacher_weights'):
    check(config)
  with pytest.raises(ConfigError, match='needs the name of a model'):
    make(student_config('random'))


# --- End to end -------------------------------------------------------------


def test_distilled_loop(teacher_dir, tmp_path):
  config = student_config(teacher_dir)
  config.loss.distill, config.run.steps = 'hard', 12
  summary = train.train_and_evaluate(config, tmp_path, ONE)
  lines = [
    json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  losses = [x['loss_distill'] for x in lines if 'loss_distill' in x]
  assert len(losses) == 12 and losses[-1] < losses[0]
  assert summary['results']['test']['top1'] > 0.3
  state = saved_state(tmp_path)
  assert not any('teacher' in key for key in state)


@pytest.mark.slow
def test_stored_and_live_train_alike(stored, teacher_dir, tmp_path):
  root, out = stored
  for name, weights in (('live', teacher_dir), ('stored', out)):
    config = folder_config(root, weights)
    config.optim.accumulate = 2
    train.train_and_evaluate(config, tmp_path / name, jax.devices()[:4])
  a, b = (saved_state(tmp_path / name) for name in ('live', 'stored'))
  assert np.any(a['params/dist_token'])
  for key in a:
    np.testing.assert_allclose(a[key], b[key], atol=1e-4, err_msg=key)


# --- The recipe's ingredients -----------------------------------------------


def test_repeats_do_not_lengthen_the_epoch():
  """As in DeiT, an epoch has a third of the images, three times each."""
  mesh = make_mesh(devices=ONE)
  steps = [
    build(
      tiny_config(run=dict(steps=None, epochs=3.0), data=dict(repeats=r)),
      mesh,
      num_classes=5,
      num_examples=70,
    )
    for r in (1, 3)
  ]
  assert [(r.steps_per_epoch, r.total_steps) for r in steps] == [(4, 12)] * 2


SEQUENCE = dict(
  repeats=3,
  batch_size=24,
  mixup=0.8,
  cutmix=1.0,
  crop='inception',
  randaugment='rand-m9-mstd0.5-inc1',
)


def global_sequence(config, processes: int, steps: int):
  """The global batches, joined from those of all processes."""
  source = open_train_source(config)
  streams = [
    recipe_data.train_batches(
      config, source, process_index=p, process_count=processes
    )
    for p in range(processes)
  ]
  for _ in range(steps):
    batches = [next(stream) for stream in streams]
    yield {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  for stream in streams:
    stream.close()


def test_the_same_global_sequence_everywhere():
  """Repeats, RandAugment, mixup and CutMix: 1 and 2 processes, 1 and 8
  devices."""
  config = tiny_config(run=dict(seed=3), data=SEQUENCE)
  sequences = [list(global_sequence(config, n, 6)) for n in (1, 2)]
  for got, want in zip(*sequences):
    chex.assert_trees_all_equal(got, want)
    index = want['index'].reshape(-1, 3)
    assert np.all(index == index[:, :1])  # each image three times in a row
    views = want['image'].reshape(-1, 3, 16 * 16 * 3)
    assert np.any(
      views[:, 0] != views[:, 1]
    )  # with three different augmentations

  prepare = jax.jit(
    lambda batch, key: augment.prepare_train(
      batch['image'], {'label': batch['label']}, key, config.data
    )
  )
  kinds = set()
  for step, batch in enumerate(sequences[0]):
    batch = {
      'image': batch['image'],
      'label': np.eye(5, dtype=np.float32)[batch['label']],
    }
    results = [
      jax.device_get(
        prepare(
          put_batch(batch, make_mesh(devices=devices)), jax.random.key(step)
        )
      )
      for devices in (ONE, jax.devices())
    ]
    chex.assert_trees_all_close(*results, atol=1e-5)
    images, targets = results[0]
    lam = targets['label'].max()
    plain = augment.normalize(batch['image'])
    kinds.add(
      'cutmix'
      if np.any(np.all(np.isclose(images, plain, atol=1e-6), axis=(0, 3)))
      else 'mixup'
    )
    assert 0.5 <= lam <= 1
  assert kinds == {'mixup', 'cutmix'}


@pytest.mark.parametrize(
  'arg', ['s16', 's16,distill', 'ti16,soft', 'b16,hard', 's16,plaincosine']
)
def test_deit_recipe(arg):
  """Table 9 of arXiv:2012.12877."""
  c = deit_i1k.get_config(arg)
  if c.loss.distill != 'none':
    c.loss.teacher_weights = 'random'
  check(c)
  mesh = make_mesh(devices=ONE)
  run = build(c, mesh, num_classes=1000, num_examples=1_281_167)
  assert (run.steps_per_epoch, run.total_steps) == (1251, 375_300)
  lr = lambda epoch: float(run.schedule(int(epoch * 1251)))
  if 'plaincosine' in arg:
    assert lr(5) == pytest.approx(1e-3) and lr(1) > 1e-6
  else:  # as in the released code: by epoch, one epoch late
    assert lr(0) == lr(1) == lr(1.9) == pytest.approx(1e-6)
    assert lr(2) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 5)
    assert lr(6) == pytest.approx(
      1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * 5 / 300))
    )
  assert ('distilled' in c.model.name) == ('distill' in arg)


def test_deit_weight_decay():
  """No decay: vectors, biases, position table, class token. The distillation
  token decays, as in the released class."""
  from vit_jax.training import rates as rates_lib

  c = deit_i1k.get_config('ti16,distill')
  run = build(
    c, make_mesh(devices=ONE), num_classes=1000, num_examples=1_281_167
  )
  rates = rates_lib.parameter_rates(c.optim, run.abstract_state.params)
  decayed = {path for path, rate in rates.items() if rate.decay}
  for path in rates:
    assert (path in decayed) == (
      path.endswith('/kernel') or path == 'dist_token'
    ), path
  assert {
    'embedding/kernel',
    'head/kernel',
    'head_dist/kernel',
    'dist_token',
  } <= decayed
  assert not {'cls', 'Transformer/encoder_norm/scale'} & decayed


# --- RegNetY, the teacher of DeiT -------------------------------------------


@pytest.fixture(scope='module')
def regnet_file(tmp_path_factory):
  """A file of a small RegNetY with the names of a released one."""
  path = tmp_path_factory.mktemp('regnet') / 'regnet.safetensors'
  fields = dict(w0=8, wa=8.0, wm=2.0, depth=2, group_size=4, stem_width=8)
  model = create_model('regnety_160', 10, **fields)
  variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
  metadata = WeightsMetadata(
    model='regnety_160', fields=fields, num_classes=10, image_size=(24, 24)
  )
  save_weights(variables, model, path, metadata)
  return path


def test_the_published_teacher_is_the_default(monkeypatch):
  """It is not fetched to compile a recipe, and its file name says the model."""

  def fetch(name):
    raise AssertionError(f'{name} must not be fetched')

  monkeypatch.setattr(hub, '_downloaded', fetch)
  for arg in ('s16,distill', 'ti16,hard', 'b16,soft'):
    c = deit_i1k.get_config(arg)
    check(c)
    assert c.loss.teacher_weights == 'hf:timm/regnety_160.deit_in1k'
    assert c.loss.teacher_image_size == 224
  assert released_model('dir/regnety_160-a5fe301d.pth') == 'regnety_160'
  assert released_model('regnety_160.pth') is None
  mesh = make_mesh('fsdp')
  c.mesh.preset = 'fsdp'
  fn, shapes = abstract_teacher(c, mesh, 1000)
  count = sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert count == 83_590_140
  kernel = shapes['params']['block3']['unit2']['conv1']['kernel']
  assert any(kernel.sharding.spec)
  assert set(shapes) == {'params', 'batch_stats'}
  images = jax.ShapeDtypeStruct((8, 160, 160, 3), jnp.bfloat16)
  logits = jax.eval_shape(fn, shapes, images, {})
  assert logits.shape == (8, 1000) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
  'kind', ['distill', pytest.param('soft', marks=pytest.mark.slow)]
)
def test_a_regnet_teaches_deit(kind, regnet_file):
  """A step of the recipe on 8 devices: bfloat16, the teacher's size,
  sharded."""
  assert jax.device_count() == 8
  c = deit_i1k.get_config(f'ti16,{kind},smoke')
  c.loss.teacher, c.loss.teacher_weights = '', str(regnet_file)
  c.loss.teacher_image_size = 24
  c.run.dtype, c.mesh.preset = 'bfloat16', 'fsdp'
  c.data.mixup = c.data.cutmix = c.data.erasing = 0.0
  c.model.update(width=16, mlp_dim=16, depth=1)
  check(c)
  mesh = make_mesh('fsdp')
  fn, variables = make_teacher(c, mesh, 10)
  assert any(any(x.sharding.spec) for x in jax.tree.leaves(variables['params']))
  run = build(c, mesh, num_classes=10, num_examples=64)
  batch = {
    'image': np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)),
    'label': np.arange(16) % 10,
  }
  batch['image'] = batch['image'].astype(np.uint8)
  with jax.set_mesh(mesh):
    step = compile_step(run, teacher=fn)
    _, values = step(run.init(), put_batch(batch, mesh), {'teacher': variables})
  assert np.isfinite(values['loss']) and values['loss_distill'] > 0

  # The teacher's logits in the step are those of its file for the same images.
  pixels = jax.random.uniform(jax.random.key(0), (8, 32, 32, 3)) * 255
  images = augment.normalize(pixels, c.data.normalize)
  with jax.set_mesh(mesh):
    got = jax.jit(fn)(variables, put_batch(images, mesh), {})
  classifier = load_classifier(regnet_file, image_size=24)
  resized = augment.normalize(augment.resize(pixels, (24, 24)), 'imagenet')
  want, _ = classifier.model.apply(classifier.variables, resized, train=False)
  np.testing.assert_allclose(got, want, atol=0.05 * float(want.std()) + 0.02)


def test_logits_of_a_regnet_are_stored(regnet_file, tmp_path):
  write_logits(
    regnet_file,
    tmp_path,
    source='synthetic',
    batch_size=64,
  )
  table = np.load(next(tmp_path.glob('*.npy')), mmap_mode='r')
  assert table.shape == (1024, 10) and np.ptp(table[:, 0]) > 0


# --- A teacher of shapes, for compiling where its files are not -------------


@pytest.mark.parametrize('kind', ['live', 'random', 'stored'])
def test_abstract_teacher_has_the_shapes_of_the_real_one(
  kind, teacher_dir, stored
):
  """The shapes for compilation are those of the teacher in training."""
  if kind == 'stored':
    config = folder_config(*stored)
    classes = 5
  else:
    config = student_config(teacher_dir if kind == 'live' else 'random')
    config.loss.teacher, classes = 'vit_ti16' if kind == 'random' else '', 5
    config.loss.teacher_image_size = 24
  mesh = make_mesh('fsdp')
  config.mesh.preset = 'fsdp'
  fn, variables = make_teacher(config, mesh, classes)
  same_fn, shapes = abstract_teacher(config, mesh, classes)
  describe = lambda tree: jax.tree.map(
    lambda x: (x.shape, x.dtype, x.sharding.spec), tree
  )
  assert describe(variables) == describe(shapes)
  images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
  batch = {'index': jax.ShapeDtypeStruct((8,), jnp.int32)}
  logits = jax.eval_shape(fn, variables, images, batch)
  assert logits == jax.eval_shape(same_fn, shapes, images, batch)
  assert logits.shape == (8, classes)


def test_abstract_teacher_without_its_file(tmp_path):
  """Weights on another machine are taken to be those of the named model."""
  config = student_config(tmp_path / 'RegNet.npz')
  config.loss.teacher = 'vit_ti16'
  _, shapes = abstract_teacher(config, make_mesh(), 5)
  assert shapes['params']['head']['kernel'].shape == (192, 5)
  config.loss.teacher = ''
  with pytest.raises(ValueError, match=r'RegNet\.npz'):
    abstract_teacher(config, make_mesh(), 5)
