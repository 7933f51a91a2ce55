"""Other spellings of commands: earlier ones, and mistakes with their fix.

Every command has the same words for the same things: --batch-size, --data,
--source, --num-classes, --output, --json, --set. Earlier versions had others,
which keep working with a note.
"""

import argparse
from collections.abc import Mapping, Sequence
import difflib

# {earlier option: option of today}, of every command.
RENAMED = {'--batch': '--batch-size', '--data-dir': '--data'}
# Commands that name their recipe by a word. `python -m vit_jax.main` names it
# by --config, and so did `vit-jax aot`.
TAKE_RECIPES = ('ablate', 'aot', 'train')
# Commands that take --config.KEY=VALUE.
TAKES_KEYS = (*TAKE_RECIPES, 'finetune', 'vtab')
# Options of predict that had the name of a file as their value.
_FORMATS = ('--csv', '--json')


def current(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
  """Writes the words of a command line in the spelling of today.

  Args:
    command: name of the command.
    words: the words after it.

  Returns:
    The words, and a line for each of them that has changed.
  """
  result, notes = [], []
  words = list(words)
  while words:
    word = words.pop(0)
    if word == '--':
      return [*result, word, *words], notes
    name, equals, value = word.partition('=')
    if not name.startswith('--'):
      result.append(word)
      continue
    name = _renamed(name, notes)
    if name == '--config' and command in TAKE_RECIPES:
      # The recipe is the first word, before those of the form KEY=VALUE.
      if not equals and words:
        value = words.pop(0)
      result.insert(0, value)
      notes.append('the recipe needs no --config: it is the first word')
    elif command == 'predict' and name in _FORMATS:
      result.append(name)
      if not equals and words and words[0].endswith(('.csv', '.json')):
        equals, value = '=', words.pop(0)
      if equals:
        result += ['--output', value]
        notes.append(f'{name} {value} is now {name} --output {value}')
    else:
      result.append(f'{name}{equals}{value}')
  return result, notes


def _renamed(name: str, notes: list[str]) -> str:
  """The option of today, with '-' where absl's flags have '_'."""
  new = '--' + name[2:].replace('_', '-')
  new = RENAMED.get(new, new)
  if new != name:
    notes.append(f'{name} is now {new}')
  return new


def check_options(
  parser: argparse.ArgumentParser, command: str, words: Sequence[str]
) -> None:
  """Ends with an error that names an option which the command does not have.

  argparse would first complain of required options, of which the unknown one
  may be a wrong spelling.
  """
  known = [x for a in parser._actions for x in a.option_strings]
  for word in words:
    name = word.partition('=')[0]
    if word == '--':
      return
    if not _is_option(word) or any(x.startswith(name) for x in known):
      continue
    if word[:2] in known and word[1] != '-':  # -k5
      continue
    option = '-' + name if word[1] != '-' else name  # -lr is like --lr
    if option in known:
      parser.error(f'unknown option {name}: did you mean {option}?')
    if command in TAKES_KEYS:
      setting = _setting(option, command, parser.get_default('key_options'))
      if setting:
        parser.error(f'unknown option {name}: a key of a recipe is {setting}')
    parser.error(f'unknown option {name}{nearest(option, known)}')


def _is_option(word: str) -> bool:
  """Whether a word is an option, and not a number such as -1 or -1:3."""
  return word.startswith('-') and len(word) > 1 and not word[1].isdecimal()


def _setting(option: str, command: str, options: Mapping[str, str]) -> str:
  """How a command sets the key of a recipe that an unknown option names.

  Args:
    option: such as '--weight-decay' or '--optim.weight_decay'.
    command: one of TAKES_KEYS.
    options: {key: option} of the command.

  Returns:
    Such as 'optim.weight_decay=VALUE'; '' if there is no such key.
  """
  from vit_jax.recipe.keys import default_config

  section, _, name = option.lstrip('-').replace('-', '_').rpartition('.')
  for known, keys in default_config().items():
    if name in keys and section in ('', known):
      key = f'{known}.{name}'
      if command in TAKE_RECIPES:
        return f'set by the word {key}=VALUE'
      return f'set by {options.get(key) or f"--config.{key}=VALUE"}'
  return ''


def nearest(word: str, words: Sequence[str]) -> str:
  """A hint to the nearest words; '' if none is near."""
  near = difflib.get_close_matches(word, words, n=2)
  return f': did you mean {" or ".join(near)}?' if near else ''


def check_order(args: argparse.Namespace) -> None:
  """ValueError if a command got IMAGE WEIGHTS instead of WEIGHTS IMAGE."""
  from vit_jax.data.listing import is_image_name

  if is_image_name(args.weights):
    raise ValueError(
      f'{args.weights} is an image, and the weights come first: vit-jax '
      f'{args.command} WEIGHTS IMAGE'
    )
