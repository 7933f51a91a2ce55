"""`evaluate` counts every image once, under the names of its class."""

import pathlib
import shutil

import numpy as np
import pytest

from tests.inference.conftest import CLASSES
from vit_jax import evaluate
from vit_jax.data.pack import pack
from vit_jax.inference.loading import load_classifier


def by_hand(weights, folder) -> dict[str, float]:
  """The means that `evaluate` returns, from one image after the other."""
  classifier = load_classifier(weights)
  top1, losses = [], []
  for path in sorted(pathlib.Path(folder).rglob('*.jpg')):
    (logits,), _ = classifier.run([path])
    label = CLASSES.index(path.parent.name)
    top1.append(int(np.argmax(logits)) == label)
    losses.append(np.log(np.exp(logits).sum()) - logits[label])
  return {
    'top1': np.mean(top1),
    'top5': 1.0,
    'loss': np.mean(losses),
    'examples': len(top1),
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


def test_wrong_data_is_refused(weights, tmp_path):
  with pytest.raises(ValueError, match='nowhere is no directory'):
    evaluate(weights, tmp_path / 'nowhere')
