"""The same decoding in training, evaluation and packing."""

import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import encode, make_image, recipe, write_images
from tests.data.test_decode import claim
from vit_jax.data import loader, pack
from vit_jax.data.batches import TooManyBadImages
from vit_jax.data.sources.opening import open_source
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import data as recipe_data


def read(root):
  return open_source('folder', split='train', data_dir=str(root), holdout=0.0)


@pytest.fixture
def turned(tmp_path):
  """Two classes of images whose left half is dark when they are upright."""
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[8:] = 255  # stored lying on its side
  exif = Image.Exif()
  exif[0x112] = 6
  for c in 'ab':
    for i in range(3):
      path = tmp_path / c / f'{i}.png'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(encode(pixels, 'PNG', exif=exif))
  return tmp_path


@pytest.mark.parametrize('upright', [True, False])
def test_images_are_upright_in_training_and_evaluation(turned, upright):
  source = read(turned)
  config = recipe(upright=upright, crop='resize', flip=0.0, batch_size=2)
  with recipe_data.train_batches(config, source) as batches:
    trained = next(batches)['image'][0]
  how = Preprocessing((16, 16), upright=upright)
  with loader.eval_batches(source, how, batch_size=2, threads=0) as batches:
    evaluated = next(batches)['image'][0]
  np.testing.assert_array_equal(trained, evaluated)
  dark, light = (x.mean() for x in np.array_split(evaluated, 2, axis=upright))
  # Turned clockwise by 90 degrees, the light lower half is on the left.
  assert {dark, light} == {0, 255}


def test_huge_headers_are_counted_everywhere(tmp_path):
  root = write_images(tmp_path / 'in', {'a': 6, 'b': 6})
  for name, kind in (('png.jpg', 'PNG'), ('jpeg.jpg', 'JPEG')):
    (root / 'a' / name).write_bytes(claim(kind, 40_000, 40_000))
  source = read(root)
  config = recipe(max_bad_fraction=0.2, batch_size=14)
  with recipe_data.train_batches(config, source) as batches:
    next(batches)
    assert {p.rpartition('/')[2] for p in batches.bad} == {
      'png.jpg',
      'jpeg.jpg',
    }
    assert all('40000 x 40000 pixels' in why for why in batches.bad.values())
  how = Preprocessing((16, 16))
  with (
    pytest.raises(TooManyBadImages, match='40000 x 40000 pixels'),
    loader.eval_batches(source, how, batch_size=7, threads=0) as batches,
  ):
    list(batches)
  meta = pack.pack(root, tmp_path / 'out')['train']
  assert meta['bad'] == 2 and meta['num_examples'] == 12
  small = pack.pack(root, tmp_path / 'small', max_pixels=480)['train']
  assert small['num_examples'] == 12
  with pytest.raises(ValueError, match='more than the limit of 479'):
    pack.pack(root, tmp_path / 'none', max_pixels=479)


def test_a_strip_that_cannot_be_resized_is_a_bad_image(tmp_path):
  (tmp_path / 'a').mkdir()
  narrow = encode(make_image(0, 1, 30_000), 'PNG')
  (tmp_path / 'a' / 'x.png').write_bytes(narrow)
  how = Preprocessing((16, 16), crop=0.875)
  with loader.eval_batches(
    read(tmp_path), how, batch_size=1, threads=0
  ) as batches:
    assert [batch['mask'].sum() for batch in batches] == [0]
    (why,) = batches.bad.values()
    assert 'one side is more than 1000 times the other' in why
