"""The registered models as a table, which is read without importing JAX.

catalog.json stands beside this file. `python -m vit_jax.inference.catalog`
computes it from the registered models, and a test compares the two.
"""

from collections.abc import Iterable
import fnmatch
import functools
import json
import pathlib
from typing import Any

PATH = pathlib.Path(__file__).with_name('catalog.json')


def matching(names: Iterable[str], pattern: str) -> list[str]:
  """The names that match a shell pattern, sorted.

  Args:
    names: names of models.
    pattern: such as '*16'. Without *, ? and [ it is the beginning of the names:
      'vit' is 'vit*'.
  """
  if not any(c in pattern for c in '*?['):
    pattern = f'{pattern}*'
  return sorted(n for n in names if fnmatch.fnmatchcase(n, pattern))


@functools.cache
def catalog() -> dict[str, dict[str, Any]]:
  """{name: description} of the models of this package.

  A description is what `vit_jax.inference.describe.describe_models` yields.
  """
  rows = json.loads(PATH.read_text())
  return {row['name']: row for row in rows}


def catalog_text(rows: Iterable[dict[str, Any]]) -> str:
  """The content of catalog.json: a JSON list with a line for each model."""
  return '[\n' + ',\n'.join(json.dumps(row) for row in rows) + '\n]\n'
