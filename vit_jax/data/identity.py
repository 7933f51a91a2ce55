"""What data is, so that two data sets are compared by it and not by counts."""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

from vit_jax.data.names import normalized

_BLOCKS = 64
_SHOWN = 120  # characters of a name that are shown


def fingerprint(*values) -> str:
  """16 hexadecimal digits of a hash of the JSON of `values`."""
  text = json.dumps(values, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_list(lines: Sequence[str]) -> list[str]:
  """A list of any length in at most 64 lines, for comparing two lists.

  Returns:
    A line with the first element and a hash for each block of consecutive
    elements. The first line that differs tells to the block where two lists
    begin to differ; below 65 elements, to the element.
  """
  size = max(1, -(-len(lines) // _BLOCKS))
  return [
    f'{lines[i][:_SHOWN]} [{fingerprint(lines[i : i + size])}]'
    for i in range(0, len(lines), size)
  ]


def data_identity(source: Any) -> dict[str, Any]:
  """The identity of a source (`vit_jax.data.sources.source.Source`).

  Paths are relative to the root of the data, so that copies of one data set in
  other directories have the same identity. It is small, whatever the size of
  the data set, so that the processes of a job can exchange theirs.

  Returns:
    JSON values: 'num_classes', 'classes' (names, [] if there are none), 'files'
    (`describe_list` of names and sizes, [] if the source has no files),
    'examples' and 'fingerprint'.
  """
  return {
    'num_classes': source.num_classes,
    'classes': [normalized(name) for name in source.class_names or ()],
    'files': source.describe_files(),
    'examples': len(source),
    'fingerprint': source.fingerprint,
  }
