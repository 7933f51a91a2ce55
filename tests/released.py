"""Recorded names and shapes of released files (fixtures/names)."""

import pathlib
import re

NAMES = pathlib.Path(__file__).parent / 'fixtures' / 'names'


def tsv_shapes(name: str, ignored=()) -> dict[str, tuple[int, ...]]:
  """Shapes by name of a recorded file, without the ignored names.

  `num_batches_tracked`, PyTorch's counter in a BatchNorm, is always ignored.
  """
  lines = (NAMES / f'{name}.tsv').read_text().splitlines()[1:]
  shapes = {}
  for line in lines:
    key, shape, *_ = line.split('\t')
    shapes[key] = (
      () if shape == 'scalar' else tuple(int(n) for n in shape.split('x'))
    )
  return {
    key: shape
    for key, shape in shapes.items()
    if not any(
      re.fullmatch(r, key) for r in (r'.*num_batches_tracked', *ignored)
    )
  }
