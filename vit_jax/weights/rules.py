"""One rule says where a parameter is stored in a released file.

The same rule is used for reading and for writing.
"""

from collections.abc import Callable
import dataclasses
import math
import re

import numpy as np


class ShapeMismatch(ValueError):
  """A released array whose shape does not fit the parameter of its name."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Maps Flax paths to names of a released format.

  Attributes:
    pattern: regex, full-matched against the Flax path with its collection,
      such as 'params/head/kernel'.
    name: released name, a template of `re.Match.expand`, in which '{2-1}' is
      the number of group 2 less one (for formats that count from 0); or a
      function of the match.
    layout: how the released array becomes the Flax array. 'same': reshape;
      'dense': (O, I) or (O, I, 1, 1) -> transpose -> reshape; 'conv':
      (O, I, h, w) -> (h, w, I, O); 'dense4': as 'dense', and written with four
      axes; 'flat_conv': as 'conv', and written as (O, I * h * w); 'nd4':
      reshape, and written with leading axes of 1 up to four (GroupNorm and 1x1
      kernels of Google's files).
    chunk: (j, n) for the j-th of n equal slices along axis 0 of the released
      array (fused query, key and value).
  """

  pattern: str
  name: str | Callable[[re.Match[str]], str]
  layout: str = 'same'
  chunk: tuple[int, int] | None = None

  def match(self, path: str) -> str | None:
    """The released name of a Flax path, None if the rule is not for it."""
    m = re.fullmatch(self.pattern, path)
    if m is None:
      return None
    if callable(self.name):
      return self.name(m)
    less_one = lambda group: str(int(m[int(group[1])]) - 1)
    return m.expand(re.sub(r'\{(\d)-1\}', less_one, self.name))

  def to_flax(self, released: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The released array as a parameter of `shape`; a view where possible.

    Raises:
      ShapeMismatch: no parameter of this shape is written as such an array.
    """
    x = released
    if self.chunk is not None:
      j, n = self.chunk
      if not x.ndim or x.shape[0] % n:
        raise ShapeMismatch
      step = x.shape[0] // n
      x = x[j * step : (j + 1) * step]
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
    """The parameter at `path` as its file has it: this rule's chunk of it."""
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
      # The output kernel of attention, (H, K, D), and patch kernels,
      # (h, w, C, D), have D outputs; query, key and value, (D, H, K), D inputs.
      heads_last = len(shape) == 3 and not path.endswith('/out/kernel')
      inputs = shape[0] if heads_last else math.prod(shape[:-1])
      return value.reshape(inputs, -1).T
    if self.layout == 'nd4':
      return value.reshape(ones + shape)
    # PyTorch files have the biases (H, K) of attention as flat vectors.
    return value.reshape(-1) if name.endswith('.bias') else value


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(n for n in shape if n != 1)
