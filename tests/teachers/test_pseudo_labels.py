"""Pseudo-labels: filtering, balancing, packing, and training on both."""

import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from configs import noisy_student, noisy_student_cifar10
from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.cli import parser
from vit_jax.data import pack, records
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Subset
from vit_jax.inference.loading import load_classifier
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.checks import check
from vit_jax.recipe.inputs import open_train_source
from vit_jax.teachers import pseudo_labels

ONE = jax.devices()[:1]


def write_images(root, start, stop, folder):
  """Synthetic images with their classes, as PNG files."""
  data = open_source(
    'synthetic',
    split='train',
    num_examples=stop,
    num_classes=5,
    image_size=(16, 16),
  )
  for i in range(start, stop):
    path = root / folder(data[i]['label']) / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data[i]['image']).save(path)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  path = tmp_path_factory.mktemp('teacher')
  train.train_and_evaluate(tiny_config(run=dict(steps=24)), path, ONE)
  return path


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Labeled images packed as 'train', and a folder without labels."""
  root = tmp_path_factory.mktemp('data')
  write_images(root / 'labelled', 0, 20, lambda c: str(c))
  pack.pack(root / 'labelled', root / 'packed', split='train')
  write_images(root / 'wild', 20, 50, lambda c: f'photos/{c % 2}')
  (root / 'wild' / 'broken.png').write_bytes(b'no image')
  return root


# --- Balancing --------------------------------------------------------------


def test_balance_caps_rich_and_repeats_scarce_classes():
  classes = np.array([0] * 6 + [1] * 2 + [2] * 3)
  confidence = np.array(
    [0.9, 0.5, 0.8, 0.7, 0.2, 0.6, 0.9, 0.8, 0.1, 0.2, 0.25]
  )
  chosen = pseudo_labels.balance(
    classes, confidence, threshold=0.3, per_class=3
  )
  counts = np.bincount(chosen, minlength=11)
  assert counts[:6].tolist() == [1, 0, 1, 1, 0, 0]  # the most confident ones
  assert sorted(counts[6:8]) == [1, 2]  # both images, and one of them twice
  assert not counts[8:].any()  # nothing of class 2 is confident


@pytest.mark.parametrize('seed', range(5))
def test_balance_properties(seed):
  rng = np.random.default_rng(seed)
  classes = rng.integers(0, 7, 200)
  confidence = rng.random(200)
  threshold, n = float(rng.random()), int(rng.integers(1, 60))
  chosen = pseudo_labels.balance(
    classes, confidence, threshold=threshold, per_class=n, seed=seed
  )
  assert np.all(confidence[chosen] >= threshold)
  for c in range(7):
    available = np.sum((classes == c) & (confidence >= threshold))
    mine = np.bincount(chosen[classes[chosen] == c], minlength=200)
    assert mine.sum() == (n if available else 0)
    used = mine[mine > 0]
    assert len(used) == min(
      available, n
    )  # an image is repeated only if all are used
    assert not len(used) or used.max() - used.min() <= 1
  again = pseudo_labels.balance(
    classes, confidence, threshold=threshold, per_class=n, seed=seed
  )
  np.testing.assert_array_equal(chosen, again)
  everything = pseudo_labels.balance(classes, confidence, threshold=threshold)
  assert len(everything) == np.sum(confidence >= threshold)


# --- Soft labels in records -------------------------------------------------


def test_soft_record_round_trip():
  label = {7: 0.75, 2: 0.25}
  assert records.decode_record(records.encode_record(b'x', label, 'é.png')) == (
    b'x',
    label,
    'é.png',
  )
  hard = records.encode_record(b'x', [1], 'a')
  assert hard[0] == 1 and records.decode_record(hard) == (b'x', [1], 'a')
  with pytest.raises(ValueError, match='cut short'):
    records.decode_record(records.encode_record(b'', label, 'a')[:-1])
  with pytest.raises(ValueError, match='not a record'):
    records.decode_record(b'\x09' + hard[1:])


# --- From images to a student ------------------------------------------------


@pytest.mark.parametrize('hard', [True, False], ids=['hard', 'soft'])
def test_pseudo_labels_are_the_teachers(teacher, images, capsys, hard):
  split = 'hard' if hard else 'soft'
  assert (
    parser.main(
      [
        'pseudo-label',
        str(teacher),
        str(images / 'wild'),
        str(images / 'packed'),
        '--threshold',
        '0.05',
        '--split',
        split,
        *['--hard'] * hard,
      ]
    )
    == 0
  )
  assert (
    '31 images, 1 unreadable; 30 reach the threshold 0.05'
    in capsys.readouterr().out
  )
  data = open_source('packed', split=split, data_dir=str(images / 'packed'))
  assert len(data) == 30 and data.multi_label != hard
  assert data.class_names == [str(c) for c in range(5)]
  classifier = load_classifier(teacher)
  want = {
    r['image']: {p['index']: p['probability'] for p in r['predictions']}
    for r in classifier.classify(
      [str(images / 'wild' / data[i]['id']) for i in range(30)]
    )
  }
  for i in range(30):
    p = want[str(images / 'wild' / data[i]['id'])]
    if hard:
      assert data[i]['label'] == max(p, key=p.get)
    else:
      label = data[i]['label']
      assert label.keys() == p.keys()
      assert sum(label.values()) == pytest.approx(1, abs=1e-5)
      for c in p:
        assert label[c] == pytest.approx(p[c], abs=1e-4)


def test_a_student_learns_from_both(teacher, images, tmp_path):
  """A run on labeled images and balanced soft pseudo-labels."""
  out = images / 'packed'
  meta = pseudo_labels.pseudo_label(
    teacher, images / 'wild', out, threshold=0.0, per_class=8, max_labels=2
  )
  assert meta['labelled'] == 8 * sum(n > 0 for n in meta['examples_per_class'])
  config = tiny_config(
    run=dict(steps=4),
    data=dict(
      source='packed', dir=str(out), split='train+pseudo', num_classes=None
    ),
  )
  config.eval.sets = {'labelled': {'split': 'train'}}
  source = open_train_source(config)
  assert len(source) == 20 + meta['labelled'] and source.multi_label
  with recipe_data.train_batches(config, source) as batches:
    labels = np.concatenate([next(batches)['label'] for _ in range(4)])
  np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)
  sure = labels.max(-1) == 1
  assert 0 < sure.sum() < len(labels)
  assert np.all(np.sum(labels > 0, -1) <= 2)
  _, cached = source.arrays()
  assert cached.shape == (len(source), 5)
  summary = train.train_and_evaluate(config, tmp_path, ONE)
  assert summary['results']['labelled']['examples'] == 20


def mixed_config(pseudo_dir, **data):
  """Synthetic labeled images, and three pseudo-labeled ones beside each."""
  return tiny_config(
    run=dict(steps=2),
    data=dict(
      num_examples=24, pseudo_dir=str(pseudo_dir), pseudo_ratio=3, **data
    ),
    loss=dict(smooth_soft=False, label_smoothing=0.1, weight=4.0),
  )


@pytest.fixture(scope='module')
def pseudo_dir(teacher, tmp_path_factory):
  """Images of a source, whose labels are not read, with soft pseudo-labels."""
  out = tmp_path_factory.mktemp('pseudo')
  wild = open_source(
    'synthetic',
    split='test',
    num_examples=40,
    num_classes=5,
    image_size=(16, 16),
  )
  meta = pseudo_labels.pseudo_label(teacher, wild, out, threshold=0.0)
  assert meta['labelled'] == meta['images'] == len(wild) == 40
  return out


def test_batches_have_the_ratio_of_pseudo_labels(pseudo_dir):
  config = mixed_config(pseudo_dir)
  check(config)
  source = open_train_source(config)
  assert source.lengths == (24, 40)
  assert recipe_data.epoch_examples(config, source) == 4 * 24
  with recipe_data.train_batches(config, source) as batches:
    seen = [next(batches) for _ in range(12)]
  index = np.concatenate([batch['index'] for batch in seen])
  assert np.array_equal(index >= 24, np.arange(len(index)) % 4 > 0)
  labeled, pseudo = index[index < 24], index[index >= 24]
  assert set(labeled[:24]) == set(range(24))  # each once an epoch
  assert set(pseudo[:40]) == set(range(24, 64))
  labels = np.concatenate([batch['label'] for batch in seen])
  is_hard = labels.max(axis=1) == 1
  assert is_hard[index < 24].all() and not is_hard[index >= 24].any()
  np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)

  slices = [
    recipe_data.train_batches(config, source, process_index=p, process_count=2)
    for p in range(2)
  ]
  both = np.concatenate([next(one)['index'] for one in slices])
  np.testing.assert_array_equal(both, index[:16])
  for one in slices:
    one.close()


def test_a_cached_data_set_has_the_ratio_too(pseudo_dir):
  config = mixed_config(pseudo_dir)
  source = open_train_source(config)
  cache, _ = recipe_data.make_device_cache(config, source, put=np.asarray)
  index = np.concatenate([cache.indices(step) for step in range(12)])
  assert np.array_equal(index >= 24, np.arange(len(index)) % 4 > 0)
  assert set(index[index < 24][:24]) == set(range(24))
  assert set(index[index >= 24][:40]) == set(range(24, 64))


def test_a_student_of_a_ratio_trains(pseudo_dir, tmp_path):
  summary = train.train_and_evaluate(mixed_config(pseudo_dir), tmp_path, ONE)
  assert summary['step'] == 2 and summary['epochs'] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
  'data, message',
  [
    (dict(repeats=3), 'data.repeats=3 is not possible: set data.repeats=1'),
    (dict(mixup=0.2), 'mixed labels are soft and would not be smoothed'),
    (dict(num_classes=6), 'has 5 classes, and synthetic.* has 6'),
    (dict(pseudo_dir=''), 'needs pseudo-labeled images besides synthetic'),
    (dict(pseudo_dir='no'), "data.dir='no' does not exist"),
  ],
)
def test_pseudo_labels_that_do_not_fit(data, message, pseudo_dir):
  config = mixed_config(pseudo_dir)
  config.data.update(data)
  with pytest.raises(ValueError, match=message):
    check(config)
    recipe_data.epoch_examples(config, open_train_source(config))


def test_prepare_labels_once(teacher, monkeypatch, tmp_path):
  """The CIFAR-10 study: the student's labels are those of its teacher."""
  workdir = tmp_path / 'seed0'
  shutil.copytree(teacher, workdir)
  config = mixed_config(workdir / 'pseudo')
  calls = []
  label = pseudo_labels.pseudo_label

  def once(weights, images, out, per_class):
    calls.append((len(images), per_class))
    few = Subset(images, 0, 16, 'few')
    return label(weights, few, out, threshold=0.0, per_class=2)

  monkeypatch.setattr(pseudo_labels, 'pseudo_label', once)
  for _ in range(2):
    noisy_student_cifar10.prepare(config)
  source = open_train_source(config)
  count = len(open_source('synthetic', split='train[10%:]'))
  assert calls == [(count, noisy_student_cifar10.PER_CLASS)]  # once, balanced
  assert source.lengths[1] > 0
  variant = noisy_student_cifar10.sweep()['noisy student']
  assert '{workdir}/teacher/' in variant['data.pseudo_dir']


def test_errors(teacher, images, tmp_path):
  label = lambda **kw: pseudo_labels.pseudo_label(
    teacher, images / 'wild', tmp_path, **kw
  )
  with pytest.raises(ValueError, match=r'must be in \[0, 1\]'):
    label(threshold=30)
  with pytest.raises(ValueError, match='reaches threshold=1.0; the highest'):
    label(threshold=1.0)
  with pytest.raises(ValueError, match='does not exist'):
    pseudo_labels.pseudo_label(teacher, tmp_path / 'no', tmp_path)
  write_images(tmp_path / 'other', 0, 4, lambda c: f'x{c}')
  pack.pack(tmp_path / 'other', tmp_path, split='train')
  with pytest.raises(ValueError, match='5 classes and the data 4'):
    label()


def test_recipe():
  c = noisy_student.get_config('s16')
  check(c)
  assert c.data.split == 'train+pseudo' and c.data.randaugment
  assert c.model.dropout and c.model.drop_path


def test_published_recipe():
  """arXiv:1911.04252; google-research/noisystudent."""
  for arg, batch, ratio, epochs, magnitude in (
    ('b0', 4096, 1, 700, ''),
    ('b7', 8192, 3, 350, 'google(2,27)'),
    ('l2', 30_720, 14, 350, 'google(2,27)'),
    ('l2,last', 59_392, 28, 350, 'google(2,27)'),
  ):
    c = noisy_student.get_config(arg)
    check(c)
    assert (c.data.batch_size, c.data.pseudo_ratio) == (batch, ratio)
    assert (c.run.epochs, c.data.randaugment) == (epochs, magnitude)
    assert (c.model.dropout, c.model.drop_path) == (0.5, 0.2)
    rate = c.optim.lr * c.data.batch_size / c.optim.lr_batch
    assert rate == pytest.approx(0.016 * 2048 / 256)
  c = noisy_student.get_config('l2,resolution')
  check(c)
  assert (c.run.epochs, c.data.image_size) == (1.5, 800)
  assert not c.data.randaugment and not c.data.pseudo_ratio
