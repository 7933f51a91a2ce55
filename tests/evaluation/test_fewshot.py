"""The few-shot probe: closed form, support sets, and preprocessing."""

import jax
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.data.sources.source import Source
from vit_jax.data.transforms import eval_image
from vit_jax.evaluation.fewshot import (
  FewshotProbe,
  extract_features,
  fewshot,
  probe_preprocessing,
  ridge_scores,
  support_indices,
)
from vit_jax.parallel.mesh import make_mesh
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import shared
from vit_jax.training import augment


@pytest.mark.parametrize('examples, width', [(12, 5), (6, 20)])
def test_ridge_scores_minimize_their_objective(examples, width):
  """Equals gradient-free minimization of |XW - Y|^2 + l2 |W|^2 (lstsq)."""
  rng = np.random.default_rng(0)
  x, test = (
    rng.standard_normal((examples, width)),
    rng.standard_normal((50, width)),
  )
  y = np.arange(examples) % 3
  for l2 in (2.0**10, 0.1):
    scores = ridge_scores(x, y, test, 3, l2=l2)
    mean, std = x.mean(0), x.std(0) + 1e-5
    white = np.concatenate([(x - mean) / std, np.full((examples, 1), 100)], 1)
    stacked = np.concatenate([white, l2**0.5 * np.eye(width + 1)])
    targets = np.concatenate([2 * np.eye(3)[y] - 1, np.zeros((width + 1, 3))])
    weights, *_ = np.linalg.lstsq(stacked, targets, rcond=None)
    expected = (
      np.concatenate([(test - mean) / std, np.full((50, 1), 100)], 1) @ weights
    )
    np.testing.assert_array_equal(scores.argmax(1), expected.argmax(1))


def test_separable_classes_are_learned():
  rng = np.random.default_rng(1)
  centers = 5 * rng.standard_normal((4, 8))
  y = np.arange(40) % 4
  x = centers[y] + 0.1 * rng.standard_normal((40, 8))
  np.testing.assert_array_equal(np.argmax(ridge_scores(x, y, x, 4), axis=1), y)


def test_support_sets():
  labels = np.array([0, 1, 0, 1, 1, 0, 2])
  chosen = support_indices(labels, 3, 2, seed=1)
  assert labels[chosen].tolist() == [0, 0, 1, 1, 2]  # a small class as a whole
  np.testing.assert_array_equal(chosen, support_indices(labels, 3, 2, seed=1))


class Colors(Source):
  """Noisy images of three colors."""

  name, num_classes, in_memory = 'colors', 3, True

  def __init__(self, count: int):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, i):
    if not 0 <= i < len(self):
      raise IndexError(i)
    image = np.random.default_rng(i).integers(0, 60, (20, 30, 3), np.uint8)
    image[..., i % 3] += 120
    return {'image': image, 'label': i % 3, 'id': f'{i}'}


PREPROCESSING = Preprocessing((14, 21))


def mean_color(images):
  return np.asarray(images).mean(axis=(1, 2))


def test_images_are_larger_by_8_7_and_the_center_is_taken():
  source, seen = Colors(5), []

  def features(images):
    seen.append(np.asarray(images))
    return mean_color(images)

  x, y = extract_features(features, source, PREPROCESSING, batch_size=3)
  assert y.tolist() == [0, 1, 2, 0, 1] and x.shape == (5, 3)
  assert [s.shape for s in seen] == [(3, 14, 21, 3)] * 2
  whole = eval_image(source[0]['image'], Preprocessing((16, 24)))
  np.testing.assert_array_equal(seen[0][0], whole[1:15, 1:22])
  probe = probe_preprocessing(PREPROCESSING)
  np.testing.assert_array_equal(
    seen[0][0], eval_image(source[0]['image'], probe)
  )


def test_colors_are_told_apart():
  results = fewshot(
    mean_color, Colors(9), Colors(12), PREPROCESSING, shots=(1, 3, 5), seeds=2
  )
  assert list(results) == [1, 3]  # a class has three training images
  for result in results.values():
    assert result.mean == 1.0 and result.seeds == (1.0, 1.0)
  with pytest.raises(
    ValueError, match='class has 3 training images: give fewer shots than 4'
  ):
    fewshot(mean_color, Colors(9), Colors(12), PREPROCESSING, shots=(4,))


def test_the_probe_of_a_training_is_the_same():
  """On all devices, in batches with padding, from a model's variables."""
  fields = {**shared.small_fields('vit'), 'width': 16, 'mlp_dim': 16}
  model = create_model('vit_ti16', 3, **fields)
  preprocessing = Preprocessing(16)
  variables = model.init(
    jax.random.key(0), np.zeros((1, 16, 16, 3)), train=False
  )
  probe = FewshotProbe(
    model,
    make_mesh(),
    Colors(9),
    Colors(12),
    preprocessing=preprocessing,
    shots=(1, 3, 5),
    batch_size=8,
  )

  @jax.jit
  def features(images):
    images = augment.normalize(images, preprocessing.normalize, 'float32')
    return model.apply(variables, images, train=False)[1]['pre_logits']

  expected = fewshot(
    features, Colors(9), Colors(12), preprocessing, shots=(1, 3, 5)
  )
  assert probe(variables) == {
    f'{n}_shot': pytest.approx(result.mean) for n, result in expected.items()
  }


def test_several_labels_are_refused():
  source = Colors(3)
  source.multi_label = True
  with pytest.raises(ValueError, match='colors has several labels for each'):
    fewshot(mean_color, source, source, PREPROCESSING)


def test_an_unreadable_image_is_named():
  class Broken(Colors):
    def __getitem__(self, i):
      image = b'no image' if i == 4 else super().__getitem__(i)['image']
      return {'image': image, 'label': i % 3, 'id': f'image {i}'}

  with pytest.raises(ValueError, match='image 4: '):
    extract_features(mean_color, Broken(9), PREPROCESSING, batch_size=3)
