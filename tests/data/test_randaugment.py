"""RandAugment policies: parsing, magnitudes, draws."""

import math

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.randaugment import google as google_lib
from vit_jax.data.randaugment import timm as timm_lib
from vit_jax.data.randaugment.policy import parse


@pytest.fixture
def image():
  small = np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((40, 48)))


def test_parse():
  assert parse('') is None
  google = parse('google(2,15)')
  assert (google.layers, google.magnitude) == (2, 15.0)
  timm = parse('rand-m9-mstd0.5-inc1', fill=(1, 2, 3))
  assert (timm.magnitude, timm.std, timm.layers) == (9.0, 0.5, 2)
  assert timm.probability == 0.5 and timm.fill == (1, 2, 3)
  assert 'ColorIncreasing' in timm.table and 'Color' not in timm.table
  other = parse('rand-m7-n3-p1.0-mmax8-mstd101')
  assert (other.layers, other.probability, other.maximum) == (3, 1.0, 8.0)
  assert math.isinf(other.std) and 'Color' in other.table
  assert len(other.table) == len(timm.table) == 15
  assert len(google_lib.GOOGLE) == 16


@pytest.mark.parametrize(
  'policy',
  [
    'google',
    'google(2)',
    'google(2,x)',
    'rand-m9-q3',
    'rand-9',
    'trivial',
    'rand-mx',
    'rand-m9-p2',
    'rand-m9-',
    'augmix-m3',
  ],
)
def test_parse_errors(policy):
  with pytest.raises(ValueError, match='data.randaugment takes'):
    parse(policy)
  with pytest.raises(ValueError, match='unknown operation'):
    timm_lib.timm_op('Rotat', np.zeros((2, 2, 3), np.uint8))


def test_magnitudes():
  rng = np.random.default_rng(0)
  google = lambda name, m: google_lib.GOOGLE[name][0](m, rng, 'fill')
  assert google('Posterize', 9) == (3,) and google('Solarize', 15) == (384,)
  assert google('SolarizeAdd', 9) == (99,)
  assert google('Color', 9)[0] == pytest.approx(1.72)
  assert {google('TranslateX', 10)[0] for _ in range(20)} == {-100, 100}
  assert {round(abs(google('Rotate', 20)[0])) for _ in range(5)} == {60}
  assert google('Cutout', 10)[0] == 40
  timm = lambda name, m: timm_lib.TIMM_INCREASING[name](m, rng)
  assert timm('PosterizeIncreasing', 9) == (1,)
  assert timm('SolarizeIncreasing', 9) == (26,)
  assert timm('SolarizeAdd', 10) == (110,)
  assert {round(timm('BrightnessIncreasing', 9)[0], 2) for _ in range(20)} == {
    0.19,
    1.81,
  }
  assert {round(timm('TranslateXRel', 9)[0], 3) for _ in range(20)} == {
    -0.405,
    0.405,
  }


@pytest.mark.parametrize('name', list(google_lib.GOOGLE))
@pytest.mark.parametrize('level', [0, 10, 20])
def test_google_operations(image, name, level):
  arguments, op = google_lib.GOOGLE[name]
  args = arguments(level, np.random.default_rng(0), (128, 128, 128))
  before = image.copy()
  out = op(image, *args)
  assert out.shape == image.shape and out.dtype == np.uint8
  np.testing.assert_array_equal(image, before)  # the input is left alone
  if (
    name in ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
    and level == 0
  ):
    np.testing.assert_array_equal(out, image)


def test_google_constants_wrap(image):
  """TensorFlow converts them to uint8."""
  for threshold, same_as in ((256, 0), (384, 128), (512, 0)):
    np.testing.assert_array_equal(
      google_lib.google_solarize(image, threshold),
      google_lib.google_solarize(image, same_as),
    )
  np.testing.assert_array_equal(
    google_lib.google_solarize(image, 256), 255 - image
  )
  np.testing.assert_array_equal(google_lib.google_posterize(image, 8), image)


def test_google_translate_fills(image):
  out = google_lib.google_translate_x(image, 7.0, (128, 128, 128))
  np.testing.assert_array_equal(out[:, :-7], image[:, 7:])
  assert (out[:, -7:] == 128).all()


def test_google_cutout(image):
  out = google_lib.google_cutout(image, 5, 0.5, 0.0, (128, 128, 128))
  changed = (out != image).any(-1)
  assert (out[19:29, :5] == 128).all() and not changed[:, 5:].any()


@pytest.mark.parametrize('table', [timm_lib.TIMM, timm_lib.TIMM_INCREASING])
@pytest.mark.parametrize('level', [0, 5, 10])
def test_timm_operations(image, table, level):
  for name, arguments in table.items():
    for interpolation in timm_lib.RESAMPLING:
      args = arguments(level, np.random.default_rng(0))
      out = timm_lib.timm_op(name, image, args, interpolation)
      assert out.shape == image.shape and out.dtype == np.uint8
  bits = timm_lib.TIMM_INCREASING['PosterizeIncreasing'](10, None)
  assert not timm_lib.timm_op('Posterize', image, bits).any()


def test_policies_are_a_function_of_the_generator(image):
  for text in ('google(2,10)', 'rand-m9-mstd0.5-inc1'):
    policy = parse(text, interpolation='random')
    draw = lambda seed: policy(image, np.random.default_rng(seed))
    for seed in range(5):
      (a, ops_a), (b, ops_b) = draw(seed), draw(seed)
      np.testing.assert_array_equal(a, b)
      assert ops_a == ops_b
    assert len({draw(seed)[1] for seed in range(20)}) > 10


def test_how_often_operations_apply(image):
  google = parse('google(2,10)')
  timm = parse('rand-m9-mstd0.5-inc1')
  rng = np.random.default_rng(0)
  assert {len(google(image, rng)[1]) for _ in range(20)} == {2}
  counts = [len(timm(image, rng)[1]) for _ in range(300)]
  assert 0.85 < np.mean(counts) < 1.15  # 2 operations at 0.5
  rotations = [
    abs(args[0]) / 3
    for _ in range(600)
    for name, args in timm(image, rng)[1]
    if name == 'Rotate'
  ]
  assert 8.7 < np.mean(rotations) < 9.3 and max(rotations) <= 10
  assert 0.3 < np.std(rotations) < 0.7
