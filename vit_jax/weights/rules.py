"""One rule says where a parameter lives in a released file, in both ways."""

from collections.abc import Callable
import dataclasses
import re


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
      (O, I, h, w) -> (h, w, I, O).
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
