"""Recorded outputs that keep a slice of a tensor, which the key names."""

import re

import numpy as np


def take(value, suffix: str) -> np.ndarray:
  """The slice of (B, ...) that a key's suffix names; '' is all of it.

  image0: the first example. image0_rows0to3, image0_tokens0to7: of that,
  entries 0 to 3 (0 to 7) of the last but one axis; image0_positions0to3: of the
  axis before it. spatial_mean, corner3x3, endcorner3x3: of maps (B, h, w, C),
  the mean over h and w, or the first example's first (last) three rows and
  columns.
  """
  value = np.asarray(value)
  if not suffix:
    return value
  if suffix == 'spatial_mean':
    return value.mean(axis=(1, 2))
  if suffix == 'corner3x3':
    return value[0, :3, :3]
  if suffix == 'endcorner3x3':
    return value[0, -3:, -3:]
  m = re.fullmatch(r'image(\d+)(?:_([a-z]+)(\d+)to(\d+))?', suffix)
  if m is None:
    raise ValueError(f'unknown slice of a tensor: {suffix!r}')
  image, what, first, last = m.groups()
  value = value[int(image)]
  if what is None:
    return value
  axis = value.ndim - (3 if what == 'positions' else 2)
  return np.take(value, range(int(first), int(last) + 1), axis)


def compare_slices(case, values: dict) -> None:
  """Compares every recorded output whose key is in values.

  The key is taken without a suffix that names a slice: the word behind its
  last point, unless the key with it is in values.
  """
  for key in case.outputs:
    stem, _, suffix = (key, '', '') if key in values else key.rpartition('.')
    if stem in values:
      case.compare(key, take(values[stem], suffix))
