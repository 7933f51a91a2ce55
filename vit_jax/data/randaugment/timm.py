"""timm's RandAugment, on Pillow's operations.

Each operation that is drawn is applied with a given probability, at a random
magnitude. Geometric operations interpolate, and fill empty pixels with the
recipe's mean color. Source: timm/data/auto_augment.py.
"""

import difflib
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

LEVELS = 10.0  # magnitudes count from 0 to 10


def _affine(image, matrix, resample, fill):
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    resample=resample,
    fillcolor=fill,
  )


def _timm_translate_x(image, pixels, resample, fill):
  return _affine(image, (1, 0, pixels, 0, 1, 0), resample, fill)


def _timm_translate_y(image, pixels, resample, fill):
  return _affine(image, (1, 0, 0, 0, 1, pixels), resample, fill)


def _timm_solarize_add(image, add, resample, fill, threshold=128):
  table = [min(255, int(i + add)) if i < threshold else i for i in range(256)]
  return image.point(table * 3)


def _timm_posterize(image, bits, resample, fill):
  if bits < 1:  # Pillow before version 13 returned a black image
    return Image.new('RGB', image.size)
  return image if bits >= 8 else ImageOps.posterize(image, int(bits))


def _enhancer(kind):
  return lambda image, factor, resample, fill: kind(image).enhance(factor)


# name: operation (Pillow image, [argument,] resampling filter, fill) -> image
_TIMM_OPS = {
  'AutoContrast': lambda im, r, f: ImageOps.autocontrast(im),
  'Equalize': lambda im, r, f: ImageOps.equalize(im),
  'Invert': lambda im, r, f: ImageOps.invert(im),
  'Rotate': lambda im, degrees, r, f: im.rotate(
    degrees, resample=r, fillcolor=f
  ),
  'Posterize': _timm_posterize,
  'Solarize': lambda im, v, r, f: ImageOps.solarize(im, v),
  'SolarizeAdd': _timm_solarize_add,
  'Color': _enhancer(ImageEnhance.Color),
  'Contrast': _enhancer(ImageEnhance.Contrast),
  'Brightness': _enhancer(ImageEnhance.Brightness),
  'Sharpness': _enhancer(ImageEnhance.Sharpness),
  'ShearX': lambda im, v, r, f: _affine(im, (1, v, 0, 0, 1, 0), r, f),
  'ShearY': lambda im, v, r, f: _affine(im, (1, 0, 0, v, 1, 0), r, f),
  'TranslateX': _timm_translate_x,
  'TranslateY': _timm_translate_y,
  'TranslateXRel': lambda im, v, r, f: _timm_translate_x(
    im, v * im.size[0], r, f
  ),
  'TranslateYRel': lambda im, v, r, f: _timm_translate_y(
    im, v * im.size[1], r, f
  ),
  'Desaturate': lambda im, v, r, f: ImageEnhance.Color(im).enhance(
    min(1.0, max(0.0, 1.0 - v))
  ),
  'GaussianBlur': lambda im, v, r, f: im.filter(
    ImageFilter.GaussianBlur(radius=v)
  ),
}
RESAMPLING = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def timm_op(
  name: str,
  image: np.ndarray,
  args: tuple = (),
  interpolation: str = 'bicubic',
  fill: tuple[int, int, int] = (128, 128, 128),
) -> np.ndarray:
  """Applies one timm operation.

  'XIncreasing' and 'PosterizeOriginal' do the same as 'X' and 'Posterize'; timm
  only converts a magnitude to the argument in another way.

  Args:
    name: name of the operation.
    image: uint8 (H, W, 3).
    args: the argument of the operation, if it takes one.
    interpolation: 'bilinear' or 'bicubic', for geometric operations.
    fill: RGB color of the pixels that they leave empty.

  Returns:
    uint8 (H, W, 3).

  Raises:
    ValueError: there is no such operation.
  """
  base = name.removesuffix('Increasing').removesuffix('Original')
  if base not in _TIMM_OPS:
    near = difflib.get_close_matches(base, _TIMM_OPS, n=3)
    raise ValueError(f'unknown operation {name!r}; near: {", ".join(near)}')
  out = _TIMM_OPS[base](
    Image.fromarray(image), *args, RESAMPLING[interpolation], fill
  )
  return np.asarray(out)


def _sign(rng, value):
  return -value if rng.random() > 0.5 else value


def _increasing(level, rng):
  return (max(0.1, 1.0 + _sign(rng, level / LEVELS * 0.9)),)


_factor = lambda m, rng: (m / LEVELS * 1.8 + 0.1,)
_shear = lambda m, rng: (_sign(rng, m / LEVELS * 0.3),)
_translate = lambda m, rng: (_sign(rng, m / LEVELS * 0.45),)
_plain = lambda m, rng: ()
# name: function (magnitude, generator) -> arguments, in the official order.
TIMM = {
  'AutoContrast': _plain,
  'Equalize': _plain,
  'Invert': _plain,
  'Rotate': lambda m, rng: (_sign(rng, m / LEVELS * 30),),
  'Posterize': lambda m, rng: (int(m / LEVELS * 4),),
  'Solarize': lambda m, rng: (min(256, int(m / LEVELS * 256)),),
  'SolarizeAdd': lambda m, rng: (min(128, int(m / LEVELS * 110)),),
  'Color': _factor,
  'Contrast': _factor,
  'Brightness': _factor,
  'Sharpness': _factor,
  'ShearX': _shear,
  'ShearY': _shear,
  'TranslateXRel': _translate,
  'TranslateYRel': _translate,
}
# With 'inc1', these operations grow more severe with the magnitude.
_INCREASING = {
  'Posterize': lambda m, rng: (4 - int(m / LEVELS * 4),),
  'Solarize': lambda m, rng: (256 - min(256, int(m / LEVELS * 256)),),
  'Color': _increasing,
  'Contrast': _increasing,
  'Brightness': _increasing,
  'Sharpness': _increasing,
}
TIMM_INCREASING = {
  name + 'Increasing' * (name in _INCREASING): _INCREASING.get(name, arguments)
  for name, arguments in TIMM.items()
}


class TimmRandAugment:
  """`layers` operations, drawn with replacement, each applied or not.

  Args:
    magnitude: mean of the magnitudes, which are normally distributed.
    std: their standard deviation; infinite for magnitudes that are uniform in
      [0, `magnitude`].
    layers: number of operations that are drawn for an image.
    probability: probability that a drawn operation is applied.
    maximum: largest magnitude; larger ones are clipped.
    increasing: use the operations that grow more severe with the magnitude.
    interpolation: interpolation of the geometric operations: 'bilinear',
      'bicubic', or 'random', which draws one of the two for each operation.
    fill: RGB color of the pixels that they leave empty.

  Raises:
    ValueError: `interpolation` is not one of these.
  """

  def __init__(
    self,
    magnitude: float = 10.0,
    std: float = 0.0,
    layers: int = 2,
    probability: float = 0.5,
    maximum: float = LEVELS,
    increasing: bool = False,
    interpolation: str = 'bicubic',
    fill: tuple[int, int, int] = (128, 128, 128),
  ):
    if interpolation not in (*RESAMPLING, 'random'):
      raise ValueError(
        f"timm's RandAugment with data.interpolation={interpolation!r}: must "
        f'be one of {", ".join(RESAMPLING)}, random'
      )
    self.magnitude, self.std, self.layers = magnitude, std, layers
    self.probability, self.maximum = probability, maximum
    self.table = TIMM_INCREASING if increasing else TIMM
    self.interpolation, self.fill = interpolation, fill

  def __call__(self, image: np.ndarray, rng: np.random.Generator):
    """Returns the image and the ((name, arguments), ...) that were applied."""
    names, applied = tuple(self.table), []
    for k in rng.integers(len(names), size=self.layers):
      if rng.random() > self.probability:
        continue
      level = self.magnitude
      if math.isinf(self.std):
        level = rng.uniform(0, level)
      elif self.std > 0:
        level = rng.normal(level, self.std)
      level = min(max(level, 0.0), self.maximum)
      args = self.table[names[k]](level, rng)
      interpolation = self.interpolation
      if interpolation == 'random':
        interpolation = ('bilinear', 'bicubic')[rng.integers(2)]
      image = timm_op(names[k], image, args, interpolation, self.fill)
      applied.append((names[k], args))
    return image, tuple(applied)
