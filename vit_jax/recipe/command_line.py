"""The command line of the programs that run a recipe: flags, errors, exits.

`python -m vit_jax.main` and `python -m vit_jax.ablate` are absl programs that
also take --config.KEY=VALUE for every key of the recipe. Both report a mistake
as one line, 'error: ...', and exit with code 1.
"""

from collections.abc import Callable
import functools
import os
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging

from vit_jax.allocation import (
  collect_rarely,
  compute_in_first_thread,
  restart_with_kept_memory,
)
from vit_jax.program_cache import keep_programs

# Exceptions that a mistake of the user raises. Any other exception is a fault
# of vit_jax, and is shown with its traceback.
_EXPECTED = (ValueError, OSError, RuntimeError, AttributeError, TypeError)

Program = Callable[[flags.FlagValues, dict[str, str]], int]


def run_program(program: Program, usage: str) -> None:
  """Parses the command line, runs `program`, and exits with its code.

  The environment variable VIT_JAX_TRACEBACK=1 shows the traceback of every
  error.

  Args:
    program: (flags, overrides) -> exit code; overrides are {key: text} of
      --config.KEY=VALUE.
    usage: the required flags, shown in the message about an unexpected word.
  """
  restart_with_kept_memory()
  collect_rarely()
  # After the restart, which would import it, NumPy and OpenCV a second time.
  from vit_jax.recipe.overrides import split_flags

  try:
    argv, overrides = split_flags(sys.argv)
  except ValueError as e:
    _exit_with_error(e)
  app.run(
    functools.partial(_run, program, overrides, usage),
    argv=argv,
    flags_parser=_parse,
  )


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as e:
    _exit_with_error(e)


def _run(program: Program, overrides, usage: str, argv) -> None:
  values = flags.FLAGS
  try:
    if len(argv) > 1:
      raise ValueError(
        f'unexpected word {argv[1]!r}; all settings are flags: {usage}'
      )
    if values.config is None or not (values.workdir or '').strip():
      raise ValueError('--config=configs/X.py and --workdir=DIR are required')
    if not values['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    keep_programs()
    compute_in_first_thread()
    code = program(values, overrides)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    code = 130
  except Exception as e:
    if os.environ.get('VIT_JAX_TRACEBACK') or not isinstance(e, _EXPECTED):
      traceback.print_exc()
    _exit_with_error(e)
  sys.stdout.flush()
  sys.exit(code)


def _exit_with_error(error: BaseException) -> NoReturn:
  print(f'error: {error}', file=sys.stderr)
  sys.stdout.flush()
  sys.exit(1)
