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
