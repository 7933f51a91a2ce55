"""vit-jax: the command line. `vit-jax --help`, `vit-jax COMMAND --help`.

Each command is a module of `vit_jax.cli` with HELP, `add_arguments` and `run`,
and may have OPTIONS: {key of a recipe: option of the command}, for its error
messages. Its docstring is its help; indented commands in it are the examples,
which a test runs. Modules that take long to import are imported inside `run`,
so that help is printed at once.
"""

import argparse
from collections.abc import Sequence
import importlib
import logging
import os
import re
import sys
from typing import NoReturn

from vit_jax import allocation, text
from vit_jax.cli import spelling
from vit_jax.cli.options import in_options
from vit_jax.program_cache import keep_programs

COMMANDS = (
  'models',
  'info',
  'train',
  'finetune',
  'predict',
  'evaluate',
  'attention',
  'report',
  'compare',
  'figures',
  'card',
  'push',
  'fewshot',
  'features',
  'vtab',
  'convert',
  'export',
  'pack',
  'verify',
  'ablate',
  'aot',
  'pseudo-label',
  'teacher-logits',
  'token-labels',
  'completion',
)
# Errors whose message is enough. Any other error is shown with its traceback.
_EXITS = """\
exit codes:
  0    done
  1    an error, which the last line of stderr tells in words
  3    a run that was stopped by SIGTERM or Ctrl-C and has saved its state: the
       same command continues it
  130  interrupted, with nothing to continue

`vit-jax COMMAND --help` has examples. COLUMNS=N sets the width of tables,
VIT_JAX_TRACEBACK=1 shows the traceback of an error, and `vit-jax completion
bash` completes commands and options on Tab.
"""
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)
# The file of a recipe is code of the user.
EXPECTED_OF_RECIPES = (AttributeError, TypeError, LookupError)


class Parser(argparse.ArgumentParser):
  """Reports a wrong argument in one line, with exit code 1."""

  def error(self, message: str) -> NoReturn:
    _show_error(f'{message} (see {self.prog} --help)')
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
    formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
      prog, max_help_position=20
    ),
    epilog=_EXITS,
    description='The Vision Transformer family: look at models and weights, '
    'train from recipes,\nfine-tune, evaluate, predict, export.',
  )
  parser.add_argument(
    '--version', action=_Version, nargs=0, help='print the versions'
  )
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND', parser_class=Parser
  )
  for name in COMMANDS:
    module = importlib.import_module(f'vit_jax.cli.{name.replace("-", "_")}')
    description, examples = split_help(module.__doc__ or '')
    sub = commands.add_parser(
      name,
      help=module.HELP,
      description=description,
      epilog='examples:\n' + examples,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(sub)
    sub.add_argument(
      '-q',
      '--quiet',
      action='store_true',
      help='print only results and errors: no progress and no notes',
    )
    sub.set_defaults(
      run=module.run,
      key_options={**_arguments(sub), **getattr(module, 'OPTIONS', {})},
    )
  return parser


def split_help(doc: str) -> tuple[str, str]:
  """The text and the examples of the docstring of a command.

  An example is a paragraph of indented lines, of which the first begins with
  'vit-jax'.
  """
  is_example = lambda paragraph: paragraph.startswith('  vit-jax ')
  paragraphs = doc.strip().split('\n\n')
  description = [x for x in paragraphs if not is_example(x)]
  examples = [x for x in paragraphs if is_example(x)]
  return '\n\n'.join(description), '\n'.join(examples)


def example_commands(doc: str) -> list[str]:
  """The examples of a docstring, each as one line without 'vit-jax'."""
  lines = re.sub(r'\\\n\s*', '', split_help(doc)[1]).splitlines()
  return [line.strip().removeprefix('vit-jax ') for line in lines]


def _arguments(parser: argparse.ArgumentParser) -> dict[str, str]:
  """{'batch_size=': '--batch-size='} of all options, for error messages.

  Errors of functions name their arguments, which have the names of the options.
  """
  words = {}
  for action in parser._actions:
    option = next((x for x in action.option_strings if x[:2] == '--'), '')
    if option and action.dest != 'help':
      words[f'{action.dest}='] = f'{option}='
      words[f'{action.dest}=True'] = option
  return words


def _run(argv: Sequence[str]) -> int:
  keys = {}
  if any(word.lstrip('-').startswith('config.') for word in argv):
    from vit_jax.recipe.overrides import split_flags

    argv, keys = split_flags(argv)
  parser = build_parser()
  if '_ARGCOMPLETE' in os.environ:  # the shell asks what can come next
    import argcomplete

    argcomplete.autocomplete(parser)
  if argv[:1] == ['help']:
    argv = [*argv[1:2], '--help']
  if not argv:
    parser.print_help()
    return 0
  words, notes = spelling.current(argv[0], argv[1:])
  args = _parse(parser, [argv[0], *words])
  if getattr(args, 'quiet', False):
    os.environ[text.QUIET] = '1'
  for line in notes:
    text.note(line)
  if keys and args.command not in spelling.TAKES_KEYS:
    parser.error(
      f'--config.{next(iter(keys))}: {args.command} takes no keys of a recipe'
    )
  args.keys = keys
  _show_warnings(text.is_quiet())
  keep_programs()
  if args.command in allocation.COMMANDS:
    allocation.compute_in_first_thread()
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
  if argv[0] in ('-v', '-V'):
    parser.error(f'unknown option {argv[0]}: did you mean --version?')
  command = commands.get(argv[0])
  if command is None:
    if not argv[0].startswith('-'):
      allowed = (
        spelling.nearest(argv[0], COMMANDS) or f': take {", ".join(COMMANDS)}'
      )
      parser.error(f'unknown command {argv[0]!r}{allowed}')
    return parser.parse_args(argv)
  spelling.check_options(command, argv[0], argv[1:])
  args = command.parse_intermixed_args(_lists_last(command, argv[1:]))
  args.command = argv[0]
  return args


def _lists_last(
  parser: argparse.ArgumentParser, words: Sequence[str]
) -> list[str]:
  """Moves options with several values, and their values, behind all words.

  argparse would take the words after them, such as a workdir, for values too.
  Values are the words that the type of the option accepts. Without a type all
  words are, but for as many at the end as the command needs.
  """
  actions = {x: a for a in parser._actions for x in a.option_strings}
  needed = sum(
    not a.option_strings and a.nargs in (None, '+') for a in parser._actions
  )
  rest: list[str] = []
  lists: list[tuple[argparse.Action, list[str]]] = []
  words = list(words)
  while words and words[0] != '--':
    word = words.pop(0)
    action = actions.get(word)
    if action is not None and action.nargs == '+':
      values = [word]
      while words and _is_value(action, words[0]):
        values.append(words.pop(0))
      if len(values) == 1 and words and not words[0].startswith('-'):
        values.append(words.pop(0))  # a wrong value, which argparse names
      lists.append((action, values))
      continue
    rest.append(word)
    if action is not None and action.nargs is None and words:
      rest.append(words.pop(0))
    elif not word.startswith('-'):
      needed -= 1
  for action, values in reversed(lists):
    while needed > 0 and action.type is None and len(values) > 2:
      rest.insert(0, values.pop())
      needed -= 1
  return [*rest, *(x for _, values in lists for x in values), *words]


def _is_value(action: argparse.Action, word: str) -> bool:
  """Whether a word is a value of an option with several of them."""
  try:
    if callable(action.type):
      action.type(word)
  except (argparse.ArgumentTypeError, TypeError, ValueError):
    return False
  return not word.startswith('-')


def _words(args: argparse.Namespace) -> dict[str, str]:
  """{key of a recipe: option} of a command, for its error messages."""
  # The keys of recipes are words of train, ablate and aot: KEY=VALUE.
  if args.command not in ('finetune', 'vtab'):
    return args.key_options
  from vit_jax.recipe.keys import default_config

  keys = {
    f'{section}.{key}': f'--config.{section}.{key}'
    for section, values in default_config().items()
    for key in values
  }
  return {**keys, **args.key_options}


class _Plain(logging.Formatter):
  """'warning: words', without the name of a Python module."""

  def format(self, record: logging.LogRecord) -> str:
    line = f'{record.levelname.lower()}: {super().format(record)}'
    return text.for_terminal(line, sys.stderr)


def _show_warnings(quiet: bool) -> None:
  """Shows warnings of libraries and of this package as lines for the user."""
  from absl import logging as absl_logging

  if not logging.root.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logging.root.addHandler(handler)
  absl_logging.set_verbosity(
    absl_logging.ERROR if quiet else absl_logging.WARNING
  )


def _show_error(message: str) -> None:
  print(text.for_terminal(f'error: {message}', sys.stderr), file=sys.stderr)


def _message(error: Exception) -> str:
  """The message of an error; of the operating system's, without numbers."""
  if isinstance(error, OSError) and error.filename and error.strerror:
    if isinstance(error, FileExistsError):
      return f'{error.filename} is a file: give the name of a directory'
    reason = error.strerror[0].lower() + error.strerror[1:]
    return f'{error.filename}: {reason}'
  return str(error)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code.

  Args:
    argv: the words after the program's name; None takes those of the process.
  """
  if argv is None and sys.argv[1:2] and sys.argv[1] in allocation.COMMANDS:
    allocation.restart_with_kept_memory()
    allocation.collect_rarely()
  argv = sys.argv[1:] if argv is None else list(argv)
  quiet = os.environ.get(text.QUIET, '')
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
      print(text.for_terminal(str(e), sys.stderr), file=sys.stderr)
      return 3
    expected = EXPECTED
    if argv and argv[0] in spelling.TAKE_RECIPES:
      expected += EXPECTED_OF_RECIPES
    if os.environ.get('VIT_JAX_TRACEBACK') or not isinstance(e, expected):
      import traceback

      traceback.print_exc()
    _show_error(_message(e))
    return 1
  finally:
    os.environ[text.QUIET] = quiet
