"""Evaluation counts every example exactly once, whatever the division."""

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests.helpers import saved_state, tiny_config
from vit_jax import train
from vit_jax.data import loader
from vit_jax.data.sources.source import Source
from vit_jax.evaluation import exact
from vit_jax.evaluation.exact import Evaluator
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe.inputs import open_eval_sets
from vit_jax.recipe.keys import ConfigError, model_fields, preprocessing
from vit_jax.training import losses

CLASSES = 7


class Color(nn.Module):
  """Logits from the mean color of an image, which compiles quickly."""

  num_classes: int = CLASSES
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images, *, train: bool):
    return nn.Dense(self.num_classes)(images.mean((1, 2))), {}


def kernel():
  return np.random.default_rng(3).normal(size=(3, CLASSES)).astype(np.float32)


def variables():
  return {
    'params': {
      'Dense_0': {'kernel': jnp.asarray(kernel()), 'bias': jnp.zeros(CLASSES)}
    }
  }


def recipe(examples=40, **sections):
  config = tiny_config(**sections)
  config.data.num_examples, config.data.num_classes = examples, CLASSES
  return config


def evaluator(config, sets=None, devices=1, preset='data', classes=CLASSES):
  if sets is None:
    sets = open_eval_sets(config, classes)
  return Evaluator(
    Color(classes),
    make_mesh(preset, devices=jax.devices()[:devices]),
    sets,
    num_classes=classes,
    preprocessing=preprocessing(config),
    loss=config.loss.name,
    batch_size=config.eval.batch_size or config.data.batch_size,
    max_bad_fraction=config.data.max_bad_fraction,
  )


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_every_training_loss_can_be_evaluated(loss):
  size = (4, 4)
  eval_step = exact.make_eval_step(
    Color(),
    num_classes=CLASSES,
    preprocessing=Preprocessing(size=size),
    loss=loss,
  )
  pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  labels = np.array([1, 3], np.int32)
  sums = eval_step(
    variables(), {'image': pixels, 'label': labels, 'mask': np.ones(2)}
  )
  logits = (pixels / 127.5 - 1).mean((1, 2)) @ kernel()
  expected = losses.LOSSES[loss](logits, np.eye(CLASSES)[labels]).sum()
  np.testing.assert_allclose(sums['loss'], expected, rtol=1e-5)


def by_hand(source, loss='softmax'):
  """Means over the labeled examples of a source, one after the other."""
  top1, top5, values = [], [], []
  for example in source:
    if np.size(example['label']) == 0:
      continue
    image = example['image'].astype(np.float64) / 127.5 - 1
    logits = image.mean((0, 1)) @ kernel()
    order = np.argsort(-logits)
    labels = np.atleast_1d(example['label'])
    top1.append(order[0] in labels)
    top5.append(any(label in order[:5] for label in labels))
    if loss == 'softmax':
      values.append(np.log(np.exp(logits).sum()) - logits[labels].mean())
    else:
      hot = np.isin(np.arange(CLASSES), labels)
      values.append(np.log1p(np.exp(np.where(hot, -logits, logits))).sum())
  return {
    'top1': np.mean(top1),
    'top5': np.mean(top5),
    'loss': np.mean(values),
    'examples': len(values),
  }


def assert_result(got, want):
  assert got.keys() == want.keys()
  assert got['examples'] == want['examples']
  for key in ('top1', 'top5'):
    assert got[key] == pytest.approx(want[key], abs=1e-12)
  assert got['loss'] == pytest.approx(want['loss'], rel=1e-5)


@pytest.mark.parametrize(
  'examples, batch, devices',
  [
    (1, 16, 1),
    (1, 16, 8),
    (7, 3, 1),
    (8, 8, 8),
    (13, 5, 8),
    (40, None, 8),
    (40, 64, 2),
    (41, 24, 8),
    (97, 7, 4),
    (33, 1, 2),
  ],
)
def test_every_example_counts_once(examples, batch, devices):
  config = recipe(examples, eval=dict(batch_size=batch))
  sets = open_eval_sets(config, CLASSES)
  got = evaluator(config, sets, devices)(variables())
  assert_result(got['test'], by_hand(sets['test']))


@pytest.mark.parametrize('preset', ['fsdp', 'fsdp_tensor'])
def test_other_meshes_count_the_same(preset):
  config = recipe(21, eval=dict(batch_size=10))
  sets = open_eval_sets(config, CLASSES)
  got = evaluator(config, sets, 8, preset)(variables())
  assert_result(got['test'], by_hand(sets['test']))


def test_padding_never_counts(monkeypatch):
  """Padding does not count, even with an infinite loss or a right label."""
  real = loader.eval_batches

  def poisoned(*args, **kwargs):
    batches = real(*args, **kwargs)
    following = batches._iterator

    def poison():
      for batch in following:
        batch['label'] = np.where(batch['mask'] == 0, 10**6, batch['label'])
        yield batch

    batches._iterator = poison()
    return batches

  monkeypatch.setattr(loader, 'eval_batches', poisoned)
  config = recipe(5, eval=dict(batch_size=16))
  sets = open_eval_sets(config, CLASSES)
  assert_result(
    evaluator(config, sets)(variables())['test'], by_hand(sets['test'])
  )


def test_several_sets():
  config = recipe(30)
  config.eval.sets = {
    'a': {'split': 'test'},
    'b': {'split': 'test[:30%]'},
    'c': {'split': 'train'},
  }
  sets = open_eval_sets(config, CLASSES)
  got = evaluator(config, sets, 2)(variables())
  assert list(got) == ['a', 'b', 'c']
  for name, source in sets.items():
    assert_result(got[name], by_hand(source))
  assert [v['examples'] for v in got.values()] == [30, 9, 30]
  assert got['a']['loss'] != got['c']['loss']


def test_no_more_than_two_batches_wait_for_the_device(monkeypatch):
  """Before a third batch waits, the result of the oldest is read."""
  given = fetched = most = 0
  put_batch, device_get = exact.put_batch, jax.device_get

  def put(batch, mesh):
    nonlocal given, most
    given += 1
    most = max(most, given - fetched)
    return put_batch(batch, mesh)

  def get(sums):
    nonlocal fetched
    values = sums if isinstance(sums, list) else [sums]
    fetched += sum(isinstance(value, dict) for value in values)
    return device_get(sums)

  monkeypatch.setattr(exact, 'put_batch', put)
  monkeypatch.setattr(jax, 'device_get', get)
  config = recipe(40, eval=dict(batch_size=4))
  sets = open_eval_sets(config, CLASSES)
  got = evaluator(config, sets)(variables())
  assert (given, fetched, most) == (10, 10, 3)
  assert_result(got['test'], by_hand(sets['test']))


def test_the_device_resizes_what_the_host_sends_smaller():
  """Constant images have the same mean color at any size."""

  class Gray(Tagged):
    multi_label = False

    def __getitem__(self, i):
      image = np.full((16, 16, 3), 10 * i, np.uint8)
      return {'image': image, 'label': i % CLASSES, 'id': f'{i}'}

  results = [
    Evaluator(
      Color(),
      make_mesh(devices=jax.devices()[:1]),
      {'gray': Gray()},
      num_classes=CLASSES,
      preprocessing=Preprocessing(24),
      host_size=host_size,
    )(variables())['gray']
    for host_size in (None, (8, 8))
  ]
  assert_result(results[0], by_hand(Gray()[i] for i in range(19)))
  assert_result(results[1], results[0])


class Tagged(Source):
  """Noise with several labels each; the last two have none or all."""

  name, num_classes, multi_label, in_memory = 'tagged', CLASSES, True, True
  image_shape = (16, 16)

  def __len__(self):
    return 19

  def __getitem__(self, i):
    if not 0 <= i < len(self):
      raise IndexError(i)
    rng = np.random.default_rng(i)
    labels = rng.choice(CLASSES, rng.integers(1, 4), replace=False).tolist()
    return {
      'image': rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
      'label': {17: [], 18: list(range(CLASSES))}.get(i, labels),
      'id': f'{i}',
    }


def test_multi_label_counts_any_label_and_leaves_out_what_has_none():
  config = recipe(loss=dict(name='sigmoid'))
  got = evaluator(config, {'tags': Tagged()}, 8)(variables())
  assert_result(got['tags'], by_hand(Tagged(), 'sigmoid'))


def folder(path, splits, classes=('ant', 'bee')):
  rng = np.random.default_rng(0)
  for split, count in splits.items():
    for name in classes:
      (path / split / name).mkdir(parents=True)
      for i in range(count):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(path / split / name / f'{i}.png')
  return path


@pytest.mark.parametrize('split', ['test', 'val', 'validation'])
def test_without_sets_the_test_split_is_taken(tmp_path, split):
  data = folder(tmp_path, {'train': 3, split: 2})
  config = recipe(data=dict(source='folder', dir=str(data)))
  sets = open_eval_sets(config, 2)
  assert list(sets) == ['test'] and len(sets['test']) == 4
  assert split in sets['test'].describe(0)


def test_without_a_test_split_the_error_says_so(tmp_path):
  data = folder(tmp_path, {'train': 3})
  config = recipe(data=dict(source='folder', dir=str(data)))
  with pytest.raises(
    ConfigError,
    match='none of the splits test, validation, val; .*data.holdout=0',
  ):
    open_eval_sets(config, 2)


def test_other_classes_are_refused(tmp_path):
  data = folder(tmp_path, {'train': 2, 'test': 1})
  config = recipe()
  config.eval.sets = {'insects': {'source': 'folder', 'dir': str(data)}}
  with pytest.raises(ConfigError, match="'insects': .* has 2 classes"):
    open_eval_sets(config, CLASSES)
  config.eval.sets = {'x': {'splits': 'test'}}
  with pytest.raises(
    ConfigError,
    match="eval.sets.x: unknown key 'splits'; allowed: source, dir, split",
  ):
    open_eval_sets(config, CLASSES)


def test_corrupt_images_are_left_out_and_named(tmp_path, caplog):
  data = folder(tmp_path, {'train': 1, 'test': 10})
  broken = tmp_path / 'test' / 'bee' / '3.png'
  broken.write_bytes(broken.read_bytes()[:100])
  config = recipe(
    data=dict(source='folder', dir=str(data), max_bad_fraction=0.1)
  )
  run = evaluator(config, devices=8, classes=2)
  params = {
    'params': {
      'Dense_0': {'kernel': jnp.ones((3, 2)), 'bias': jnp.array([1.0, 0.0])}
    }
  }
  got = run(params)['test']
  assert got['examples'] == 19 and got['top1'] == pytest.approx(10 / 19)
  assert '1 of 20 images are corrupt' in caplog.text
  assert str(broken) in caplog.text
  config.data.max_bad_fraction = 0.0
  with pytest.raises(ValueError, match='more than data.max_bad_fraction=0.0'):
    evaluator(config, devices=8, classes=2)(params)


def test_weights_that_are_not_finite_are_not_evaluated():
  run = evaluator(recipe())
  kernel = jnp.ones((3, CLASSES)).at[1, 2].set(jnp.nan)
  params = {'params': {'Dense_0': {'kernel': kernel}}}
  with pytest.raises(
    exact.NonFiniteWeights, match=r'params/Dense_0/kernel \(1\)'
  ):
    run(params)


def test_the_averaged_parameters_are_evaluated(tmp_path):
  """eval.ema changes the parameters that are evaluated, not the run."""

  def run(name, ema):
    config = tiny_config(
      run=dict(steps=6), optim=dict(ema=0.9, lr=0.03), eval=dict(ema=ema)
    )
    return train.train_and_evaluate(config, tmp_path / name, jax.devices()[:1])[
      'results'
    ]['test']

  trained, average = run('trained', False), run('average', True)
  tree = saved_state(tmp_path / 'average')
  config = tiny_config()
  model = create_model(config.model.name, 5, **model_fields(config))
  source = open_eval_sets(config, 5)['test']
  images = np.stack([e['image'] for e in source]) / np.float32(127.5) - 1
  labels = np.array([e['label'] for e in source])
  apply = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False)[0])
  for name, got in (('params', trained), ('ema', average)):
    params = traverse_util.unflatten_dict(
      {
        k.removeprefix(f'{name}/'): v
        for k, v in tree.items()
        if k.startswith(f'{name}/')
      },
      sep='/',
    )
    logits = apply(params, images)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.mean(log_probs[np.arange(len(labels)), labels])
    assert got['loss'] == pytest.approx(loss, rel=1e-4)
    assert got['top1'] == np.mean(np.argmax(log_probs, 1) == labels)
  assert abs(trained['loss'] - average['loss']) > 0.01
