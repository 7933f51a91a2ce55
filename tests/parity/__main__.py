"""`python -m tests.parity FILES...` (see the package docstring)."""

import importlib
import os
import pkgutil
import sys


def load_checkers():
  """Imports every check_*.py of this folder; they register themselves."""
  import tests.parity as package

  for module in pkgutil.iter_modules(package.__path__):
    if module.name.startswith('check_'):
      importlib.import_module(f'tests.parity.{module.name}')


def main(paths) -> int:
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  import jax

  jax.config.update('jax_default_matmul_precision', 'highest')
  from tests.parity import harness

  load_checkers()
  failed = 0
  for path in paths:
    line, ok = harness.check_file(path)
    failed += not ok
    print(line, flush=True)
    # The next file has another model: what was compiled is not needed again.
    jax.clear_caches()
  print(f'{len(paths) - failed} passed, {failed} failed')
  if not paths:
    print(
      'error: no file given; usage: python -m tests.parity FILES...',
      file=sys.stderr,
    )
  return 1 if failed or not paths else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
