"""One rule says where a parameter lives in a released file, in both ways."""

from collections.abc import Callable
import dataclasses
import math
import re


class ShapeMismatch(ValueError):
  """A released array that cannot be the parameter it is mapped to."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Maps Flax paths to names of a released format.

  Attributes:
    pattern: regex, full-matched against the Flax path with its collection,
      such as 'params/head/kernel'.
    name: released name, a template of `re.Match.expand` or a function of the
      match (for index arithmetic).
    layout: how the released array becomes the Flax array. 'same': reshape;
      'dense': (O, I) or (O, I, 1, 1) -> transpose -> reshape; 'conv':
      (O, I, h, w) -> (h, w, I, O); 'nd4': reshape, and written with leading
      axes of 1 up to four (GroupNorm and 1x1 kernels of Google's files).
    part: (j, n): the j-th of n equal slices along axis 0 of the released
      array (fused query, key, value).
  """

  pattern: str
  name: str | Callable[[re.Match], str]
  layout: str = 'same'
  part: tuple[int, int] | None = None

  def match(self, path: str) -> str | None:
    """The released name of a Flax path, None if the rule is not for it."""
    m = re.fullmatch(self.pattern, path)
    if m is None:
      return None
    return self.name(m) if callable(self.name) else m.expand(self.name)

  def to_flax(self, released, shape: tuple[int, ...]):
    """The released array as a parameter of `shape`; a view where possible.

    Raises ShapeMismatch if the array cannot have come from such a parameter.
    """
    x = released
    if self.part is not None:
      j, n = self.part
      if not x.ndim or x.shape[0] % n:
        raise ShapeMismatch
      step = x.shape[0] // n
      x = x[j * step : (j + 1) * step]
    if math.prod(x.shape) != math.prod(shape):
      raise ShapeMismatch
    if self.layout == 'conv':
      if x.ndim == 2:
        x = x[..., None, None]
      if x.ndim != 4:
        raise ShapeMismatch
      x = x.transpose(2, 3, 1, 0)
      fits = _squeeze(x.shape) == _squeeze(shape)
    elif self.layout == 'dense':
      if x.ndim < 2 or math.prod(x.shape[2:]) != 1:
        raise ShapeMismatch
      x = x.reshape(x.shape[:2]).T
      fits = x.shape[0] in (shape[0], math.prod(shape[:-1]))
    else:  # a flat vector stands for a bias (H, K)
      fits = x.ndim == 1 or _squeeze(x.shape) == _squeeze(shape)
    if not fits:
      raise ShapeMismatch
    return x.reshape(shape)

  def to_released(self, value, path: str, name: str):
    """The parameter at `path` as its file has it (this part of it)."""
    shape = value.shape
    ones = (1,) * (4 - len(shape))
    if self.layout == 'conv':
      return value.reshape(ones + shape).transpose(3, 2, 0, 1)
    if self.layout == 'dense':
      # (D, H, K) has D inputs; (H, K, D) and patches (h, w, C, D) all but D.
      heads_last = len(shape) == 3 and not path.endswith('/out/kernel')
      inputs = shape[0] if heads_last else math.prod(shape[:-1])
      return value.reshape(inputs, -1).T
    if self.layout == 'nd4':
      return value.reshape(ones + shape)
    # PyTorch has biases (H, K) flat.
    return value.reshape(-1) if name.endswith('.bias') else value


def _squeeze(shape) -> tuple[int, ...]:
  return tuple(d for d in shape if d != 1)
