"""`evaluate` counts every image once, under the names of its class."""

import csv
import importlib
import io
import json
import pathlib
import shutil
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from tests.data.helpers import encode, write_tfds
from tests.helpers import ROOT
from tests.inference.conftest import CLASSES
from vit_jax import evaluate, export, save_weights
from vit_jax.cli.parser import main
from vit_jax.data.pack import pack
from vit_jax.inference.accuracy import predict_labeled
from vit_jax.inference.loading import load_classifier
from vit_jax.models import registry
from vit_jax.weights import WeightsMetadata

FIELDS = ('patch_size', 'width', 'depth', 'num_heads', 'mlp_dim')


def by_hand(weights, folder) -> dict[str, float]:
  """The means that `evaluate` returns, from one image after the other."""
  classifier = load_classifier(weights)
  right, losses, labels, confidence = [], [], [], []
  for path in sorted(pathlib.Path(folder).rglob('*.jpg')):
    (logits,), _ = classifier.run([path])
    label = CLASSES.index(path.parent.name)
    right.append(int(np.argmax(logits)) == label)
    losses.append(np.log(np.exp(logits).sum()) - logits[label])
    confidence.append(np.exp(logits.max()) / np.exp(logits).sum())
    labels.append(label)
  right, labels = np.array(right), np.array(labels)
  bins = np.ceil(np.array(confidence) * 15)
  gaps = [
    abs(sum(right[bins == b]) - sum(np.array(confidence)[bins == b]))
    for b in range(16)
  ]
  return {
    'top1': np.mean(right),
    'top5': 1.0,
    'loss': np.mean(losses),
    'examples': len(right),
    'mean_per_class': np.mean(
      [np.mean(right[labels == c]) for c in set(labels)]
    ),
    'calibration_error': sum(gaps) / len(right),
  }


def test_all_images_of_a_folder_count(weights, folder):
  expected = by_hand(weights, folder)
  assert expected['examples'] == 12
  for batch_size in (5, 64):
    result = evaluate(weights, folder, batch_size=batch_size)
    assert result == pytest.approx(expected, rel=1e-4)


def test_a_test_split_is_preferred(weights, folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'both' / 'train')
  for name in CLASSES:
    target = tmp_path / 'both' / 'test' / name
    target.mkdir(parents=True)
    shutil.copy(f'{folder}/{name}/0.jpg', target)
  expected = by_hand(weights, tmp_path / 'both' / 'test')
  result = evaluate(weights, tmp_path / 'both')
  assert result == pytest.approx(expected, rel=1e-4)
  result = evaluate(weights, tmp_path / 'both', split='train')
  assert result['examples'] == 12


def test_a_packed_data_set_gives_the_same(weights, folder, tmp_path):
  pack([folder], tmp_path / 'packed')
  result = evaluate(weights, tmp_path / 'packed')
  assert result == pytest.approx(evaluate(weights, folder), rel=1e-5)


def test_classes_are_compared_by_their_names(weights, folder, tmp_path):
  """A folder that lacks a class numbers the others differently."""
  for name in ('green', 'red'):
    shutil.copytree(f'{folder}/{name}', tmp_path / 'two' / name)
  result = evaluate(weights, tmp_path / 'two')
  expected = by_hand(weights, tmp_path / 'two')
  assert result == pytest.approx(expected, rel=1e-4)
  (tmp_path / 'two' / 'red').rename(tmp_path / 'two' / 'violet')
  with pytest.raises(ValueError, match='not in the other: violet'):
    evaluate(weights, tmp_path / 'two')


def test_a_tar_and_a_validation_folder_alone_give_the_same(
  weights, folder, tmp_path
):
  expected = evaluate(weights, folder)
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    tar.add(folder, arcname='.')
  assert evaluate(weights, tmp_path / 'x.tar') == expected
  shutil.copytree(folder, tmp_path / 'imagenet' / 'val')
  assert evaluate(weights, tmp_path / 'imagenet') == expected
  assert evaluate(weights, tmp_path / 'imagenet', split='val') == expected


@pytest.fixture(scope='module')
def flat(folder, tmp_path_factory):
  """The images in one folder, and their labels in the order of the names."""
  root = tmp_path_factory.mktemp('flat')
  files = sorted(pathlib.Path(folder).rglob('*.jpg'), key=lambda p: p.stem)
  labels = []
  for i, path in enumerate(files):
    shutil.copy(path, root / f'val_{i:03d}.jpg')
    labels.append(path.parent.name)
  return root, labels


def test_labels_of_a_flat_folder_may_be_written_in_every_way(
  weights, folder, flat, tmp_path
):
  root, labels = flat
  expected = evaluate(weights, folder)
  numbers = [CLASSES.index(name) for name in labels]
  names = [path.name for path in sorted(root.iterdir())]
  rows = [f'{name},{label}' for name, label in zip(names, labels, strict=True)]
  files = {
    'numbers.txt': '\n'.join(map(str, numbers)),
    'names.txt': '\n'.join(labels) + '\n',
    'list.json': json.dumps(numbers),
    'table.csv': '\n'.join(['file,label', *reversed(rows)]),
    'stems.csv': '\n'.join(row.replace('.jpg', '') for row in rows),
    'elsewhere.csv': '\n'.join(f'/data/photos/{row}' for row in rows),
  }
  for name, content in files.items():
    (tmp_path / name).write_text(content)
    result = evaluate(weights, root, labels=tmp_path / name)
    assert result == pytest.approx(expected, rel=1e-5), name
  with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
    tar.add(root, arcname='.')
  result = evaluate(
    weights, tmp_path / 'val.tar', labels=tmp_path / 'numbers.txt'
  )
  assert result == pytest.approx(expected, rel=1e-5)


def test_real_counts_any_label_and_leaves_out_images_without(
  weights, flat, tmp_path
):
  """ReaL: right if the best class is among the labels (arXiv:2006.07159)."""
  root, _ = flat
  _, predictions = predict_labeled(
    weights, root, labels=_write(tmp_path / 'a.txt', '0\n' * 12)
  )
  best = predictions.best[:, 0].tolist()
  other = [(b + 1) % 3 for b in best]
  # Right by the second label, wrong, without labels, and right by the first.
  lists = [[o, b] for o, b in zip(other[:4], best[:4], strict=True)]
  lists += [[o] for o in other[4:9]] + [[], []] + [[best[11]]]
  real = _write(tmp_path / 'real.json', json.dumps(lists))
  for protocol in ('real', 'multilabel', None):
    result = evaluate(weights, root, labels=real, protocol=protocol)
    assert result['top1'] == pytest.approx(5 / 10)
    assert result['examples'] == 10
  with pytest.raises(ValueError, match='several labels or none for an image'):
    evaluate(weights, root, labels=real, protocol='imagenet')


@pytest.fixture
def pixels(tmp_path, monkeypatch):
  """The module of a model that reads its predictions from the pictures.

  It has `weights`, the path of a file. The model is registered for one test.
  """
  monkeypatch.setattr(registry, '_MODELS', dict(registry._MODELS))
  monkeypatch.delitem(sys.modules, 'tests.pixel_model', raising=False)
  module = importlib.import_module('tests.pixel_model')
  metadata = WeightsMetadata(
    model='pixels', module='tests.pixel_model', num_classes=1000
  )
  module.weights = str(tmp_path / 'weights' / 'pixels.npz')
  variables = {'params': {'scale': np.float32(9)}}
  save_weights(variables, module.Pixels(), module.weights, metadata)
  return module


def test_real_labels_of_imagenet(tmp_path, pixels):
  """The first 40 images of real.json (google-research/reassessed-imagenet).

  Four of them have no label. Every third prediction is the last label of the
  image, and the others are one class beside the first label.
  """
  file = pathlib.Path(ROOT, 'tests/fixtures/real_excerpt.json')
  real = json.loads(file.read_text())
  made_up = [
    (x[-1] if i % 3 == 0 else x[0] + 1) % 1000 if x else 7
    for i, x in enumerate(real)
  ]
  for i, prediction in enumerate(made_up):
    name = f'ILSVRC2012_val_{i + 1:08d}.png'
    Image.fromarray(pixels.picture(prediction)).save(tmp_path / name)
  weights = pixels.weights
  _, predictions = predict_labeled(
    weights, tmp_path, labels=file, protocol='real'
  )
  assert predictions.best[:, 0].tolist() == made_up
  labeled = [(p, x) for p, x in zip(made_up, real, strict=True) if x]
  result = predictions.summary()
  assert result['examples'] == len(labeled) == 36
  assert result['top1'] == sum(p in x for p, x in labeled) / 36
  # The model's next best classes are the numbers after the best one.
  assert result['top5'] == pytest.approx(
    sum(bool({(p + k) % 1000 for k in range(5)} & {*x}) for p, x in labeled)
    / 36
  )


def test_folders_of_v2_are_class_numbers(weights, folder, tmp_path):
  """As names, '10' would come before '2'; as numbers, they are the outputs."""
  for i, name in enumerate(CLASSES[1:], start=1):
    shutil.copytree(f'{folder}/{name}', tmp_path / 'v2' / str(i))
    shutil.copytree(f'{folder}/{name}', tmp_path / 'names' / name)
  assert evaluate(weights, tmp_path / 'v2', protocol='v2') == evaluate(
    weights, tmp_path / 'names'
  )
  with pytest.raises(ValueError, match="has the folder 'blue'"):
    evaluate(weights, folder, protocol='v2')


def test_an_exported_program_gives_the_same(weights, folder, tmp_path):
  export(weights, tmp_path / 'small.stablehlo', platforms=['cpu'])
  assert evaluate(tmp_path / 'small.stablehlo', folder) == pytest.approx(
    evaluate(weights, folder), rel=1e-4
  )


def test_another_crop_is_another_image(weights, folder):
  cropped = evaluate(weights, folder, crop=0.5)
  assert cropped['loss'] != pytest.approx(evaluate(weights, folder)['loss'])


@pytest.mark.parametrize(
  'content, message',
  [
    ('0\n' * 11, '11 labels for 12 images'),
    ('3\n' * 12, r'class number 3 is not in \[0, 3\)'),
    (
      'val_000.jpg,blue\n',
      '11 of 12 images have no entry in the labels file, such as val_001.jpg',
    ),
    ('violet\n' * 12, 'not in the other: violet'),
    ('[0, 1.5]', 'entry 1 is 1.5'),
    ('01\n1\n' * 6, 'not in the other: 01, 1'),
    ('²\n' * 12, 'not in the other: ²|not in the other: 2'),
    (json.dumps([1, '1'] * 6), 'class numbers and class names'),
  ],
)
def test_labels_that_do_not_fit_are_refused(
  weights, flat, tmp_path, content, message
):
  labels = _write(tmp_path / 'labels.txt', content)
  with pytest.raises(ValueError, match=message):
    evaluate(weights, flat[0], labels=labels)


def test_unreadable_images_are_left_out_and_named(weights, folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'x')
  (tmp_path / 'x' / 'red' / '0.jpg').write_bytes(b'no image')
  _, predictions = predict_labeled(weights, tmp_path / 'x')
  assert len(predictions.index) == 11
  assert [pathlib.Path(path).name for path in predictions.bad] == ['0.jpg']


def test_the_command_writes_tables_and_pictures(
  weights, folder, tmp_path, capsys
):
  out = tmp_path / 'out'
  assert main(['evaluate', weights, '--data', folder, '-o', str(out)]) == 0
  printed = capsys.readouterr().out
  assert '12 images of folder' in printed and 'calibration error' in printed
  summary = json.loads((out / 'summary.json').read_text())
  assert summary['top1'] == pytest.approx(evaluate(weights, folder)['top1'])
  rows = list(csv.DictReader(open(out / 'predictions.csv')))
  assert np.mean([int(row['right']) for row in rows]) == summary['top1']
  assert {row['label'] for row in rows} == set(CLASSES)
  classes = list(csv.DictReader(open(out / 'classes.csv')))
  assert [int(row['images']) for row in classes] == [4, 4, 4]
  wrong = list(csv.DictReader(open(out / 'confusions.csv')))
  assert sum(int(row['images']) for row in wrong) == 12 - sum(
    int(row['right']) for row in classes
  )
  for name in ('confusion.png', 'calibration.png'):
    with Image.open(out / name) as picture:
      assert min(picture.size) > 300


def test_other_classes_end_the_command_with_exit_code_one(
  weights, folder, tmp_path, capsys
):
  shutil.copytree(folder, tmp_path / 'x')
  (tmp_path / 'x' / 'red').rename(tmp_path / 'x' / 'violet')
  assert main(['evaluate', weights, '--data', str(tmp_path / 'x')]) == 1
  message = capsys.readouterr().err
  assert '--match-classes numbers' in message and 'violet' in message


def _write(path: pathlib.Path, content: str) -> pathlib.Path:
  path.write_text(content)
  return path


def test_what_the_command_says(weights, folder, flat, tmp_path, capsys):
  """Images without labels, a crop that is none, and the speed of one batch."""
  evaluation = lambda *words: main(['evaluate', weights, *map(str, words)])
  assert evaluation('--data', flat[0]) == 1
  assert 'Or give a file with the labels of the images (--labels)' in (
    capsys.readouterr().err
  )
  with pytest.raises(SystemExit):
    evaluation('--data', folder, '--crop', '1.5')
  assert 'above 0, at most 1' in capsys.readouterr().err
  assert evaluation('--data', folder, '--json') == 0
  summary = json.loads(capsys.readouterr().out)
  assert summary['images_per_second'] > 0 and summary['images'] == 12
  assert summary['data'] == f'folder {folder}'  # not a split of it


def test_the_data_names_the_classes_if_the_weights_do_not(
  weights, folder, tmp_path, capsys
):
  classifier = load_classifier(weights)
  fields = WeightsMetadata(
    model='vit_ti16',
    fields={x: getattr(classifier.model, x) for x in FIELDS},
    num_classes=len(CLASSES),
    preprocessing=classifier.preprocessing,
  )
  unnamed = tmp_path / 'unnamed.npz'
  save_weights(classifier.variables, classifier.model, unnamed, fields)
  assert main(['evaluate', str(unnamed), '--data', folder]) == 0
  out = capsys.readouterr().out
  assert 'class 0' not in out and all(name in out for name in CLASSES[1:])
  (tmp_path / 'one' / CLASSES[0]).mkdir(parents=True)
  shutil.copy(f'{folder}/{CLASSES[0]}/0.jpg', tmp_path / 'one' / CLASSES[0])
  assert main(['evaluate', weights, '--data', str(tmp_path / 'one')]) == 0
  out = capsys.readouterr().out
  assert ' on 1 image of ' in out
  assert '100.00%  1 of 1' not in out  # not among the worst classes


def test_tfds_with_every_protocol(tmp_path, pixels, capsys):
  """ImageNet-V2 of TFDS has numbers of outputs, ReaL its own labels."""
  image = tfds.features.Image(shape=(8, 8, 3), encoding_format='png')
  classes = tfds.features.ClassLabel(num_classes=1000)
  several = tfds.features.Sequence(classes)
  example = lambda number, **labels: {
    'image': io.BytesIO(encode(pixels.picture(number), 'PNG')),
    **labels,
  }
  write_tfds(
    tmp_path,
    'imagenet_v2',
    {'image': image, 'label': classes},
    {'test': [example(n, label=n - (n > 10)) for n in (2, 10, 999, 11)]},
  )
  write_tfds(
    tmp_path,
    'imagenet2012_real',
    {'image': image, 'original_label': classes, 'real_label': several},
    {
      'validation': [
        example(7, original_label=7, real_label=[]),
        example(8, original_label=1, real_label=[3, 8]),
        example(9, original_label=9, real_label=[1]),
      ]
    },
  )
  weights = pixels.weights
  options = {'data': tmp_path, 'batch_size': 3}
  result = evaluate(
    weights, source='tfds:imagenet_v2', protocol='v2', **options
  )
  assert (result['examples'], result['top1']) == (4, 0.5)
  result = evaluate(
    weights, source='tfds:imagenet2012_real', protocol='real', **options
  )
  assert (result['examples'], result['top1']) == (2, 0.5)


def test_wrong_data_is_refused(weights, tmp_path):
  with pytest.raises(ValueError, match='nowhere does not exist'):
    evaluate(weights, tmp_path / 'nowhere')
