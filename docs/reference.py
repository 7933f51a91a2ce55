"""Writes docs/commands.md and docs/keys.md, from the code that they describe.

    python docs/reference.py

A command is described by its module in `vit_jax.cli`, a key by the comment
above it in `vit_jax.recipe.sections` or `vit_jax.recipe.data_sections`, and by
its allowed values in `vit_jax.recipe.limits`.
"""

import argparse
import inspect
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).resolve().parent
WRITTEN = (
  'Written by `python docs/reference.py`; a test fails when the code and this '
  'page disagree.'
)
FENCE = '```'
SECTIONS = 'run data model loss optim schedule mesh eval log'.split()


def _cell(text: str) -> str:
  """A text that may stand in a table."""
  return ' '.join(text.split()).replace('|', '\\|')


# The commands ---------------------------------------------------------------


def _name(action: argparse.Action) -> str:
  """An argument as it is typed: '`-o`, `--output FILE`' or '`WEIGHTS`'."""
  value = action.metavar or action.dest
  if action.choices:
    value = '\\|'.join(map(str, action.choices))
  if not action.option_strings:
    return f'`{value}`' + (' …' if action.nargs in ('*', '+') else '')
  if action.nargs == 0:
    value = ''
  elif not action.choices and not action.metavar:
    value = action.dest.upper()
  *short, last = action.option_strings
  names = [f'`{name}`' for name in short]
  return ', '.join([*names, f'`{last} {value}`'.replace(' `', '`')])


def _default(action: argparse.Action) -> str:
  """The default of an argument; empty if its help tells it in words."""
  if action.required and action.nargs != '*':
    return 'required'
  if action.default in (None, False, '', [], argparse.SUPPRESS):
    return ''
  values = action.default if isinstance(action.default, list) else None
  return f'`{" ".join(map(str, values or [action.default]))}`'


def _paragraph(text: str) -> str:
  """A paragraph of help. Lines that are indented keep their form."""
  if not re.search(r'(?m)^  ', text):
    return text
  return f'{FENCE}text\n{text}\n{FENCE}'


def _command(name: str, parser: argparse.ArgumentParser) -> list[str]:
  """The lines about one command."""
  lines = [f'## vit-jax {name}', '']
  for paragraph in (parser.description or '').split('\n\n'):
    lines += [_paragraph(paragraph), '']
  lines += ['| argument | default | what it does |', '|---|---|---|']
  for action in parser._actions:
    if action.help == argparse.SUPPRESS or action.dest == 'help':
      continue
    cells = _name(action), _default(action), _cell(action.help or '')
    lines.append(f'| {" | ".join(cells)} |')
  _, _, examples = (parser.epilog or '').partition('\n')
  examples = inspect.cleandoc(examples)
  return [*lines, '', f'{FENCE}sh', examples, FENCE, '']


def commands_page() -> str:
  """The text of docs/commands.md."""
  from vit_jax.cli import parser

  build = parser.build_parser()
  (action,) = (
    a for a in build._actions if isinstance(a, argparse._SubParsersAction)
  )
  helps = {choice.dest: choice.help or '' for choice in action._choices_actions}
  lines = [
    '# All commands',
    '',
    WRITTEN,
    '`vit-jax COMMAND --help` prints the same. Options may stand before, '
    'between and after the other words.',
    '',
    '| command | what it does |',
    '|---|---|',
    *(
      f'| [`{name}`](#vit-jax-{name}) | {_cell(text)} |'
      for name, text in helps.items()
    ),
    '',
  ]
  for name, command in action.choices.items():
    lines += _command(name, command)
  exits = (build.epilog or '').strip()
  title, _, rest = exits.partition('\n')
  codes, _, after = rest.partition('\n\n')
  lines += [f'## {title.rstrip(":").capitalize()}', '', f'{FENCE}text']
  lines += [inspect.cleandoc('\n' + codes), FENCE, '', after]
  return '\n'.join(lines) + '\n'


# The keys -------------------------------------------------------------------


def comments(section: str) -> dict[str, tuple[str, str]]:
  """{key: (first key of the comment, comment)} of a section of the recipe.

  A comment stands above a key and is also about the keys in the lines right
  below it that have no comment of their own.
  """
  from vit_jax.recipe import data_sections, sections

  functions = {
    'data': (
      data_sections.data,
      data_sections._add_loading,
      data_sections.augmentation,
    )
  }.get(section) or (getattr(sections, section),)
  result = {}
  for function in functions:
    comment, first, fresh = [], '', True
    for line in inspect.getsource(function).splitlines():
      line = line.removeprefix('  ')
      if line.startswith('# '):
        comment = [*([] if fresh else comment), line[2:]]
        fresh = False
      elif match := re.match(r'c\.(\w+) = ', line):
        first = first if fresh else match[1]
        fresh = True
        result[match[1]] = (first, ' '.join(comment))
  return result


def _type(kind: type, default: object) -> str:
  name = {'ConfigDict': 'dict'}.get(kind.__name__, kind.__name__)
  return f'{name} or None' if default is None else name


def keys_page() -> str:
  """The text of docs/keys.md."""
  from vit_jax.recipe.keys import DURATIONS, default_config
  from vit_jax.recipe.limits import allowed

  config = default_config()
  lines = [
    '# All keys of a recipe',
    '',
    WRITTEN,
    'A recipe in `configs/` sets some of them, and so do '
    '`vit-jax train CONFIG KEY=VALUE …` and `--config.KEY=VALUE`. Where the '
    'fourth column is empty, the type and the meaning say what is allowed. '
    'The section `model` also takes the fields of the class of the model.',
    '',
    'Of each of these groups at most one key is set; setting one on the '
    'command line unsets the others:',
    '',
    *(f'- {", ".join(f"`{key}`" for key in group)}' for group in DURATIONS),
  ]
  for section in SECTIONS:
    keys = config[section]
    lines += ['', f'## {section}', '']
    lines += ['| key | type | default | allowed | meaning |']
    lines += ['|---|---|---|---|---|']
    for name, (first, comment) in comments(section).items():
      default = keys[name]
      if hasattr(default, 'to_dict'):
        default = default.to_dict()
      cells = (
        f'`{section}.{name}`',
        _type(keys.get_type(name), default),
        f'`{default!r}`',
        allowed(f'{section}.{name}'),
        comment if first == name else f'see `{section}.{first}`',
      )
      lines.append(f'| {" | ".join(map(_cell, cells))} |')
  return '\n'.join(lines) + '\n'


PAGES = {'commands.md': commands_page, 'keys.md': keys_page}


if __name__ == '__main__':
  sys.path.insert(0, str(DOCS.parent))
  for page, write in PAGES.items():
    (DOCS / page).write_text(write())
