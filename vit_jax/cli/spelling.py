"""Earlier spellings of options, which keep working with a note.

Every command has the same words for the same things: --batch-size, --data,
--source, --num-classes, --output, --json, --set. Earlier versions had others.
"""

from collections.abc import Sequence

# {earlier option: option of today}, of every command.
RENAMED = {'--batch': '--batch-size', '--data-dir': '--data'}
# Commands that name their recipe by a word. `python -m vit_jax.main` names it
# by --config, and so did `vit-jax aot`.
TAKE_RECIPES = ('ablate', 'aot', 'train')
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
