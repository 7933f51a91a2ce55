"""Rules that say where and how a file stores the parameters of a model.

The same rules are used for reading and for writing files.
"""

from collections.abc import Callable
import dataclasses
import math
import re

import numpy as np


class ShapeMismatch(ValueError):
  """An array of a file has a shape that its parameter cannot be stored in."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Maps Flax paths to the names and layouts of a released format.

  Attributes:
    pattern: regex that must match a whole Flax path with its collection, such
      as 'params/head/kernel'.
    name: template of the released name for `re.Match.expand`, in which '{2-1}'
      stands for the number in group 2 minus 1, for formats that count from 0;
      or a function of the match.
    layout: how the file stores the parameter, with I inputs and O outputs:
      - 'same': in the same order, possibly with other axes;
      - 'dense': as (O, I); (O, I, 1, 1) is read too;
      - 'dense4': as (O, I, 1, 1); (O, I) is read too;
      - 'conv': as (O, I, h, w), where Flax has (h, w, I, O);
      - 'flat_conv': as (O, I * h * w);
      - 'nd4': with leading axes of length 1, four axes in all (GroupNorm and
        1x1 kernels in Google's files).
    chunk: (j, n): the parameter is the j-th of n equal slices of the file's
      array along axis 0, such as the key in fused query, key and value. None
      for an array of its own.
    rows: (start, end) of the slice along axis 0, for slices that are not equal.
  """

  pattern: str
  name: str | Callable[[re.Match[str]], str]
  layout: str = 'same'
  chunk: tuple[int, int] | None = None
  rows: tuple[int, int] | None = None

  def match(self, path: str) -> str | None:
    """The released name of a Flax path; None if the pattern does not match."""
    m = re.fullmatch(self.pattern, path)
    if m is None:
      return None
    if callable(self.name):
      return self.name(m)
    less_one = lambda group: str(int(m[int(group[1])]) - 1)
    return m.expand(re.sub(r'\{(\d)-1\}', less_one, self.name))

  def to_flax(self, released: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts an array of a file to the parameter; a view where possible.

    Args:
      released: the file's array.
      shape: shape of the parameter.

    Raises:
      ShapeMismatch: a parameter of this shape is not stored in such an array.
    """
    x = released
    if self.chunk is not None:
      j, n = self.chunk
      if not x.ndim or x.shape[0] % n:
        raise ShapeMismatch
      step = x.shape[0] // n
      x = x[j * step : (j + 1) * step]
    if self.rows is not None:
      if not x.ndim or x.shape[0] < self.rows[1]:
        raise ShapeMismatch
      x = x[slice(*self.rows)]
    if math.prod(x.shape) != math.prod(shape):
      raise ShapeMismatch
    if self.layout in ('conv', 'flat_conv'):
      if x.ndim == 2 and len(shape) == 4:
        x = x.reshape(x.shape[0], -1, *shape[:2])
      elif x.ndim == 2:
        x = x[..., None, None]
      if x.ndim != 4:
        raise ShapeMismatch
      x = x.transpose(2, 3, 1, 0)
      fits = _squeeze(x.shape) == _squeeze(shape)
    elif self.layout in ('dense', 'dense4'):
      if x.ndim < 2 or math.prod(x.shape[2:]) != 1:
        raise ShapeMismatch
      x = x.reshape(x.shape[0], x.shape[1]).T
      fits = x.shape[0] in (shape[0], math.prod(shape[:-1]))
    else:  # biases (H, K) of attention are flat vectors in PyTorch files
      fits = x.ndim == 1 or _squeeze(x.shape) == _squeeze(shape)
    if not fits:
      raise ShapeMismatch
    return x.reshape(shape)

  def to_released(self, value: np.ndarray, path: str, name: str) -> np.ndarray:
    """Converts a parameter to the file's array.

    Args:
      value: the parameter.
      path: Flax path of the parameter.
      name: released name of the parameter.

    Returns:
      The array, or the slice of it that `chunk` describes.
    """
    shape = value.shape
    ones = (1,) * (4 - len(shape))
    if self.layout == 'conv':
      return value.reshape(ones + shape).transpose(3, 2, 0, 1)
    if self.layout == 'flat_conv':
      x = value.reshape(ones + shape).transpose(3, 2, 0, 1)
      return x.reshape(x.shape[0], -1)
    if self.layout == 'dense4':
      return value.T[..., None, None]
    if self.layout == 'dense':
      # In attention, the kernels of query, key and value, (D, H, K), have one
      # axis of inputs. The kernel of the output, (H, K, D), and the kernels of
      # patches, (h, w, C, D), have one axis of outputs.
      heads_last = len(shape) == 3 and not path.endswith('/out/kernel')
      inputs = shape[0] if heads_last else math.prod(shape[:-1])
      return value.reshape(inputs, -1).T
    if self.layout == 'nd4':
      return value.reshape(ones + shape)
    # PyTorch files have the biases (H, K) of attention as flat vectors.
    return value.reshape(-1) if name.endswith('.bias') else value


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape without the axes of length 1."""
  return tuple(n for n in shape if n != 1)
