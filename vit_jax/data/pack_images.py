"""Checks and shrinks one image for a packed data set."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.decode import (
  ORIENTATION,
  BadImage,
  Decoding,
  decode,
  orientation,
)
from vit_jax.data.pack_inputs import Item
from vit_jax.data.resize import resize
from vit_jax.data.transforms import short_side as short_side_size


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An image that is ready to be stored, or the reason why it is not.

  Attributes:
    image: its encoded bytes.
    sizes: its (height, width) as it is stored, and when it is upright.
    reason: why it cannot be stored; '' if it can.
  """

  image: bytes = b''
  sizes: frozenset[tuple[int, int]] = frozenset()
  reason: str = ''


def prepare_image(
  item: Item, short_side: int | None, quality: int, max_pixels: int
) -> Prepared:
  """Reads an image, checks that it can be decoded, and shrinks it if needed.

  The EXIF orientation of an image that is shrunk is kept as a tag, so that
  whoever reads the packed data decides about it.
  """
  try:
    data = item.read()
    image = decode(data, Decoding(upright=False, max_pixels=max_pixels))
  except (OSError, BadImage) as e:
    return Prepared(reason=str(e) or type(e).__name__)
  size = image.shape[0], image.shape[1]
  turned = orientation(data)
  if short_side and min(size) > short_side:
    size = short_side_size(*size, short_side)
    data = _encode(resize(image, size, 'bicubic'), quality, turned)
  height, width = size
  upright = (width, height) if turned >= 5 else size  # lies on its side
  return Prepared(data, frozenset((size, upright)))


def _encode(image: np.ndarray, quality: int, turned: int) -> bytes:
  """An image as JPEG with an EXIF orientation.

  It has restart markers, so that training decodes the rows of a crop alone.
  """
  options: dict[str, Any] = {'restart_marker_rows': 1}
  if turned != 1:
    options['exif'] = Image.Exif()
    options['exif'][ORIENTATION] = turned
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'JPEG', quality=quality, **options)
  return buffer.getvalue()
