"""A small model with weights in a file, and a folder of images."""

import numpy as np
from PIL import Image
import pytest

from tests.random_variables import random_variables
from vit_jax import create_model
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import shared
from vit_jax.weights import WeightsMetadata, save_weights

CLASSES = ('blue', 'green', 'red')
PREPROCESSING = Preprocessing(16, crop=0.8, normalize='imagenet')


@pytest.fixture(scope='session')
def weights(tmp_path_factory) -> str:
  """A file of a ViT with three classes for 16 px, with all metadata."""
  fields = {**shared.small_fields('vit'), 'width': 16, 'mlp_dim': 32}
  model = create_model('vit_ti16', len(CLASSES), **fields)
  image = np.zeros((1, *PREPROCESSING.size, 3), np.float32)
  path = tmp_path_factory.mktemp('weights') / 'small.npz'
  save_weights(
    random_variables(model, image),
    model,
    path,
    WeightsMetadata(
      model='vit_ti16',
      fields=fields,
      num_classes=len(CLASSES),
      classes=CLASSES,
      preprocessing=PREPROCESSING,
    ),
  )
  return str(path)


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> str:
  """Four images of each class, in directories with their names."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for i, name in enumerate(CLASSES):
    (root / name).mkdir()
    for j in range(4):
      image = rng.integers(0, 60, (24 + j, 30, 3), np.uint8)
      image[..., 2 - i] += 180
      Image.fromarray(image).save(root / name / f'{j}.jpg')
  return str(root)
