"""Arguments that several commands share, and functions that read them."""

import argparse
from collections.abc import Callable, Iterable, Mapping
import math
import re
from typing import Any

from vit_jax import text
from vit_jax.preprocessing import as_size


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --model, --module, --image-size, --prefix and --set, for weights."""
  parser.add_argument(
    '--model',
    metavar='NAME',
    help='name of the model, if the weights do not name it; vit-jax models '
    'lists the names',
  )
  add_module_argument(parser)
  parser.add_argument(
    '--image-size',
    type=size,
    metavar='N',
    help="pixels, N or HxW; default: the weights' own",
  )
  parser.add_argument(
    '--prefix',
    metavar='NAME',
    help="what stands before the names of the model's tensors in the file, "
    'such as model_ema or teacher.backbone; default: it is searched',
  )
  add_set_argument(parser)


def add_module_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --module, for commands that take the name of a model."""
  parser.add_argument(
    '--module',
    default='',
    metavar='NAME',
    help='Python module of your own that registers the model',
  )


def add_set_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --set, for commands that build a model."""
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='FIELD=VALUE',
    help='set a field of the model, such as --set pool=gap or --set '
    "'area_sizes=((1, 2), (1, 2))'; may be repeated",
  )


def add_workdirs_argument(parser: argparse.ArgumentParser) -> None:
  """Adds the words of commands about several runs."""
  parser.add_argument(
    'workdirs',
    nargs='+',
    metavar='WORKDIR',
    help='workdirs, or folders of them',
  )


def add_preview_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --dry-run and --show-batch, of commands that train."""
  parser.add_argument(
    '--dry-run',
    action='store_true',
    help='train nothing and write no workdir: say which images would be read, '
    'and the steps, the memory and the time',
  )
  parser.add_argument(
    '--show-batch',
    default='',
    metavar='FILE.png',
    help='write a picture of the first training batch as the model gets it, '
    'with its labels',
  )


def add_more_epochs_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --more-epochs, of commands that train."""
  parser.add_argument(
    '--more-epochs',
    type=above_zero,
    metavar='N',
    help='let the run go on for N epochs after its length, also if it has '
    'finished: the other words as before, or with another learning rate, '
    'schedule or batch size for these epochs',
  )


def add_dpi_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --dpi, for commands that draw."""
  parser.add_argument(
    '--dpi',
    type=positive,
    default=150,
    metavar='N',
    help='pixels per inch of .png and .jpg (150)',
  )


def add_json_argument(parser: argparse._ActionsContainer) -> None:
  """Adds --json, which prints the results for other programs."""
  parser.add_argument('--json', action='store_true', help='print JSON')


def add_batch_argument(parser: argparse.ArgumentParser, default: int) -> None:
  """Adds --batch-size, of commands that only run a model."""
  parser.add_argument(
    '--batch-size',
    type=positive,
    default=default,
    metavar='N',
    help=f'number of images in a batch ({default})',
  )


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --threads, of commands that decode many images."""
  parser.add_argument(
    '--threads',
    type=positive,
    default=4,
    metavar='N',
    help='threads that decode images (4)',
  )


def add_output_argument(
  parser: argparse.ArgumentParser, metavar: str, help_text: str
) -> None:
  """Adds --output, and the last word that earlier versions had for it."""
  parser.add_argument('-o', '--output', metavar=metavar, help=help_text)
  parser.add_argument('target', nargs='?', help=argparse.SUPPRESS)


def output(args: argparse.Namespace) -> str:
  """The value of --output, also where the last word gives it."""
  if args.output and args.target:
    raise ValueError(
      f'{args.target}: unexpected word, because --output gives {args.output}'
    )
  if args.target:
    text.note(f'{args.target} is now --output {args.target}')
  if not (args.output or args.target):
    raise ValueError('give what to write: --output PATH')
  return args.output or args.target


def last_as_output(
  args: argparse.Namespace, words: list[str], least: int = 1
) -> list[str]:
  """The words without the output, which earlier versions had as the last.

  Args:
    args: has `output`, which is set to the last word if --output is not given.
    words: the words of a command.
    least: number of words that a command has besides the output.
  """
  if args.output:
    return words
  if len(words) <= least:
    raise ValueError('give the directory to write: --output DIR')
  args.output = words[-1]
  text.note(f'{args.output} is now --output {args.output}')
  return words[:-1]


def add_flat_argument(parser: argparse.ArgumentParser) -> None:
  """--flat, of commands that read folders of classes."""
  parser.add_argument(
    '--flat',
    action='store_true',
    help="take every folder for a class, also one named 'train' or 'test'",
  )


def add_match_argument(
  parser: argparse.ArgumentParser,
  choices: tuple[str, ...] = ('names', 'numbers'),
) -> None:
  """--match-classes, of commands that compare classes with those of weights."""
  new = ", or 'new' to start a new head" if 'new' in choices else ''
  parser.add_argument(
    '--match-classes',
    choices=choices,
    default='names',
    help="compare class names ('names', the default), take class i of the data "
    f"for output i ('numbers'){new}",
  )


def add_max_pixels_argument(parser: argparse.ArgumentParser) -> None:
  """--max-pixels, of commands that decode images."""
  parser.add_argument(
    '--max-pixels',
    type=positive,
    default=2**27,
    metavar='N',
    help='larger images count as unreadable; default: 134 million',
  )


PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
# The options of `add_teacher_arguments` for recipe keys, for messages.
TEACHER_OPTIONS = {
  'data.match_classes': '--match-classes',
  'data.flat=True': '--flat',
  'data.source': '--source',
  'data.dir': '--data',
  'data.split': '--split',
  'data.holdout': '--holdout',
  'eval.batch_size': '--batch-size',
  'data.threads': '--threads',
}


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
  """Teacher, output and data, of commands that store what a teacher predicts.

  The data is given as in a recipe, because its examples must be in the order
  in which a training run reads them.
  """
  parser.add_argument('weights', help='the teacher: a workdir or file')
  parser.add_argument(
    '-o', '--output', required=True, metavar='DIR', help='directory to write'
  )
  parser.add_argument(
    '--source',
    required=True,
    help='data.source of the recipe, such as folder, packed or tfds:NAME',
  )
  parser.add_argument(
    '--data', default='', metavar='DIR', help='data.dir of the recipe'
  )
  parser.add_argument(
    '--split', default='train', help='data.split of the recipe (train)'
  )
  parser.add_argument(
    '--holdout',
    type=fraction,
    default=0.1,
    help='data.holdout of the recipe (0.1)',
  )
  add_batch_argument(parser, 64)
  add_threads_argument(parser)
  add_match_argument(parser)
  add_flat_argument(parser)
  add_model_arguments(parser)
  add_share_arguments(parser)


# What a process says that does not join the results.
SHARE_DONE = 'this process has written its shards; process 0 joins them'


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
  """Which process this is, of commands that several processes can share."""
  parser.add_argument(
    '--num-processes',
    type=positive,
    default=1,
    metavar='N',
    help='number of processes that share the images (1)',
  )
  parser.add_argument(
    '--process-id',
    type=int,
    default=0,
    metavar='I',
    help='number of this process, from 0; process 0 joins the results (0)',
  )


def share(args: argparse.Namespace) -> Any:
  """The `vit_jax.inference.jobs.Share` of `add_share_arguments`."""
  from vit_jax.inference.jobs import Share

  return Share(args.process_id, args.num_processes)


def positive(text: str) -> int:
  """A whole number of at least 1, for `type=` of an argument."""
  try:
    value = int(text.replace('_', ''))
  except ValueError:
    value = 0
  if value < 1:
    raise argparse.ArgumentTypeError(
      f'{text!r} must be a whole number of at least 1'
    )
  return value


def above_zero(text: str) -> float:
  """A finite number above 0, for `type=` of an argument."""
  return _number(text, 'a number above 0', lambda x: 0 < x < math.inf)


def fraction(text: str) -> float:
  """A number in [0, 1), for `type=` of an argument."""
  return _number(
    text, 'a fraction of at least 0 and below 1', lambda x: 0 <= x < 1
  )


def _number(text: str, words: str, fits: Callable[[float], bool]) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not fits(value):
    raise argparse.ArgumentTypeError(f'{text!r} must be {words}')
  return value


def platform(text: str) -> str:
  """The name of a platform of JAX, for `type=` of an argument.

  'gpu' is none, but it is not taken for a path; the export says what is.
  """
  if text not in (*PLATFORMS, 'gpu'):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no platform; allowed: {", ".join(PLATFORMS)}'
    )
  return text


def size(text: str) -> tuple[int, int]:
  """Reads '224' (a square) or '224x160' (height x width) as (height, width)."""
  height, x, width = text.partition('x')
  try:
    return as_size((int(height), int(width if x else height)))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is no image size: give pixels, such as 224, or height x '
      'width, such as 224x160'
    ) from None


def fields(assignments: Iterable[str]) -> dict[str, Any]:
  """Reads ['pool=gap', 'depth=4'] as {'pool': 'gap', 'depth': 4}."""
  if not assignments:
    return {}
  from vit_jax.recipe.values import literal

  result = {}
  for word in assignments:
    key, equals, value = word.partition('=')
    if not equals or not key:
      raise ValueError(f'--set {word}: must have the form FIELD=VALUE')
    result[key] = literal(value)
  return result


def loading(args: argparse.Namespace) -> dict[str, Any]:
  """Keyword arguments of `load_classifier` from the shared arguments."""
  return {
    'model': args.model,
    'module': args.module,
    'image_size': args.image_size,
    'fields': fields(args.set),
    'prefix': args.prefix,
  }


def in_options(message: str, options: Mapping[str, str]) -> str:
  """Writes an error message in the words of a command.

  Errors name the keys of a recipe ('data.batch_size=0') or the arguments of a
  function ('shards=0'). The user of a command knows neither, but its options.

  Args:
    message: the error message.
    options: {key or argument: option}, such as {'data.batch_size': '--batch'}.
      A key that ends with '.' or '=' stands for all words that go on like it.

  Returns:
    The message with options in place of keys and arguments.
  """
  ends = {'.': r'(?=\w)', '=': ''}
  patterns = [
    re.escape(key) + ends.get(key[-1], r'(?!\w|\.\w)')
    for key in sorted(options, key=len, reverse=True)
  ]
  if not patterns:
    return message
  return re.sub(
    rf'(?<![\w./-])(?:--config\.)?({"|".join(patterns)})',
    lambda match: options[match[1]],
    message,
  )
