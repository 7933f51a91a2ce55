"""vit-jax: the command line. `vit-jax --help`, `vit-jax COMMAND --help`.

Each command is a module of `vit_jax.cli` with HELP, `add_arguments` and `run`,
and may have OPTIONS: {key of a recipe: option of the command}, for its error
messages. Modules that take long to import are imported inside `run`, so that
help is printed at once. Exit codes: 0 for success, 1 for an error (its message
is the last line), 3 for a run that was preempted and has saved its state.
"""

import argparse
from collections.abc import Sequence
import importlib
import os
import sys
from typing import NoReturn

from vit_jax.cli.options import in_options

COMMANDS = (
  'models',
  'info',
  'train',
  'finetune',
  'predict',
  'evaluate',
  'attention',
  'fewshot',
  'features',
  'convert',
  'export',
  'pack',
  'verify',
  'ablate',
  'aot',
  'pseudo-label',
  'teacher-logits',
  'token-labels',
)
TAKES_KEYS = (
  'ablate',
  'aot',
  'finetune',
  'train',
)  # commands that take --config.KEY=VALUE
# Errors whose message is enough. Any other error is shown with its traceback.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)


class Parser(argparse.ArgumentParser):
  """Reports a wrong argument in one line, with exit code 1."""

  def error(self, message: str) -> NoReturn:
    print(f'error: {message} (see {self.prog} --help)', file=sys.stderr)
    sys.exit(1)


class _Version(argparse.Action):
  """Prints the versions of this package and of what it computes with."""

  def __call__(self, parser, namespace, values, option_string=None):
    from importlib import metadata

    import vit_jax

    versions = [f'{x} {metadata.version(x)}' for x in ('jax', 'flax', 'optax')]
    print(f'vit_jax {vit_jax.__version__} ({", ".join(versions)})')
    parser.exit()


def build_parser() -> argparse.ArgumentParser:
  """The parser of all commands.

  Parsed arguments have `run`, the function of the chosen command, and
  `key_options`, its OPTIONS.
  """
  parser = Parser(
    prog='vit-jax',
    formatter_class=lambda prog: argparse.HelpFormatter(
      prog, max_help_position=20
    ),
    description='The Vision Transformer family: look at models and weights, '
    'train from recipes, fine-tune, evaluate, predict, export.',
  )
  parser.add_argument(
    '--version', action=_Version, nargs=0, help='print the versions'
  )
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND', parser_class=Parser
  )
  for name in COMMANDS:
    module = importlib.import_module(f'vit_jax.cli.{name.replace("-", "_")}')
    sub = commands.add_parser(
      name,
      help=module.HELP,
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(sub)
    sub.set_defaults(run=module.run, key_options=getattr(module, 'OPTIONS', {}))
  return parser


def _run(argv: Sequence[str]) -> int:
  keys = {}
  if any(word.lstrip('-').startswith('config.') for word in argv):
    from vit_jax.recipe.overrides import split_flags

    argv, keys = split_flags(argv)
  parser = build_parser()
  if not argv:
    parser.print_help()
    return 0
  args = _parse(parser, argv)
  if keys and args.command not in TAKES_KEYS:
    parser.error(
      f'--config.{next(iter(keys))}: {args.command} takes no keys of a recipe'
    )
  args.keys = keys
  from absl import logging

  logging.set_verbosity(logging.WARNING)
  try:
    return args.run(args) or 0
  except (ValueError, RuntimeError) as e:
    e.args = (in_options(str(e), _words(args)),)
    raise


def _parse(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> argparse.Namespace:
  """Parses options before, between and after the words of a command."""
  commands = next(
    action.choices
    for action in parser._actions
    if isinstance(action, argparse._SubParsersAction)
  )
  command = commands.get(argv[0])
  if command is None:
    return parser.parse_args(argv)
  args = command.parse_intermixed_args(argv[1:])
  args.command = argv[0]
  return args


def _words(args: argparse.Namespace) -> dict[str, str]:
  """{key of a recipe: option} of a command, for its error messages."""
  if args.command not in TAKES_KEYS:
    return args.key_options
  from vit_jax.recipe.keys import default_config

  keys = {
    f'{section}.{key}': f'--config.{section}.{key}'
    for section, values in default_config().items()
    for key in values
  }
  return {**keys, **args.key_options}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code.

  Args:
    argv: the words after the program's name; None takes those of the process.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  try:
    return _run(argv)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  except BrokenPipeError:
    # The program that reads the output, such as `head`, has ended. Python
    # flushes the output again at exit, which must not fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except Exception as e:
    if type(e).__name__ == 'Preempted':
      print(e, file=sys.stderr)
      return 3
    if os.environ.get('VIT_JAX_TRACEBACK') or not isinstance(e, EXPECTED):
      import traceback

      traceback.print_exc()
    print(f'error: {e}', file=sys.stderr)
    return 1
