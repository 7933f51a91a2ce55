"""Small pictures as data: URLs, which a page holds in itself."""

import base64
import io

import numpy as np
from PIL import Image

_PIXELATED = 64  # smaller pictures are kept pixel by pixel


def data_url(pixels: np.ndarray, largest: int) -> str:
  """A picture as a data: URL.

  Args:
    pixels: (H, W, 3) in [0, 255].
    largest: longest side in pixels; a larger picture is made smaller.

  Returns:
    A PNG for pictures of a few pixels, which JPEG would blur, else a JPEG.
  """
  pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  picture = Image.fromarray(pixels)
  small = max(picture.size) <= _PIXELATED
  picture.thumbnail((largest, largest))
  file = io.BytesIO()
  if small:
    picture.save(file, 'PNG', optimize=True)
  else:
    picture.save(file, 'JPEG', quality=82, optimize=True)
  kind = 'png' if small else 'jpeg'
  text = base64.b64encode(file.getvalue()).decode()
  return f'data:image/{kind};base64,{text}'


def shaded(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Darkens a picture where a map is low.

  Args:
    pixels: (H, W, 3) in [0, 255].
    heat: (h, w), such as a rollout; its 98 % quantile keeps all light.

  Returns:
    (H, W, 3).
  """
  top = max(float(np.quantile(heat, 0.98)), np.finfo(float).tiny)
  light = Image.fromarray(np.clip(heat / top, 0, 1).astype(np.float32))
  size = (pixels.shape[1], pixels.shape[0])
  light = np.asarray(light.resize(size, Image.Resampling.BICUBIC))
  return pixels * (0.2 + 0.8 * np.clip(light, 0, 1))[..., None]
