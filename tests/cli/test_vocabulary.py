"""One vocabulary for all commands: options, help, examples, old spellings."""

import argparse
import contextlib
import importlib
import re
import shlex
import sys
import types

import pytest

from vit_jax import text
from vit_jax.cli import parser, spelling
from vit_jax.training.preemption import Preempted


def commands() -> dict[str, argparse.ArgumentParser]:
  build = parser.build_parser()
  (action,) = (
    a for a in build._actions if isinstance(a, argparse._SubParsersAction)
  )
  return dict(action.choices)


def examples(name: str) -> list[str]:
  module = importlib.import_module(f'vit_jax.cli.{name.replace("-", "_")}')
  return parser.example_commands(module.__doc__)


def test_every_command_speaks_the_same_words():
  for name, command in commands().items():
    words = {w for a in command._actions for w in a.option_strings}
    assert not words & {*spelling.RENAMED, '--classes-number', '--out'}, name
    assert not any('_' in w for w in words), name
    assert {'-q', '--quiet'} <= words
    assert ('-o' in words) == ('--output' in words), name


def test_commands_that_read_folders_of_classes_have_the_option_of_the_hint():
  """Errors about folders name data.flat=True, or the option for it."""
  for name, command in commands().items():
    words = {w for a in command._actions for w in a.option_strings}
    if name == 'vtab':  # takes any key, as --config.KEY=VALUE
      continue
    if '--data' in words or name == 'pack':
      module = importlib.import_module(f'vit_jax.cli.{name.replace("-", "_")}')
      assert '--flat' in words, name
      assert module.OPTIONS['data.flat=True'] == '--flat', name


def test_every_help_has_a_sentence_two_examples_and_defaults(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  for name, command in commands().items():
    text = command.format_help()
    assert max(map(len, text.splitlines())) <= 80, name
    assert not re.search(r'Args:|Returns:|Raises:|>>>', text), name
    first = command.description.split('\n\n')[0]
    assert first.endswith('.') and first[0].isupper(), name
    assert len(examples(name)) >= 2, name
    assert all(x.split()[0] == name for x in examples(name)), name
    for action in command._actions:
      assert action.help, (name, action)
      default = action.default
      if (
        not default
        or action.nargs == 0
        or argparse.SUPPRESS
        in (
          default,
          action.help,
        )
      ):
        continue
      values = default if isinstance(default, list) else [default]
      shown = [f'{x:g}' if isinstance(x, float) else str(x) for x in values]
      assert 'default' in action.help or all(x in action.help for x in shown), (
        name,
        action.dest,
      )


@pytest.mark.parametrize('name', parser.COMMANDS)
def test_examples_parse(name):
  build = parser.build_parser()
  for example in examples(name):
    words = example.partition(' >>')[0].replace("'", '').split()
    if 'area_sizes=((1,' in words:
      continue  # its quoted value has spaces
    words, notes = spelling.current(name, words[1:])
    assert not notes and parser._parse(build, [name, *words]).command == name


@pytest.mark.parametrize('name', parser.COMMANDS)
def test_options_stand_before_and_after_the_words(name):
  """Of every example: its options first, and its options last."""
  build = parser.build_parser()
  known = {
    x: action
    for action in commands()[name]._actions
    for x in action.option_strings
  }
  for example in examples(name):
    words = shlex.split(example.partition(' >>')[0])[1:]
    options, rest, many = [], [], 0
    for word in words:
      action = known.get(word.partition('=')[0])
      if action is not None:
        options.append(word)
        many = {0: 0, '+': 99}.get(action.nargs, 1)
      elif many:
        options.append(word)
        many -= 1
      else:
        rest.append(word)
    first = parser._parse(build, [name, *options, *rest])
    last = parser._parse(build, [name, *rest, *options])
    assert (
      vars(first) == vars(last) == vars(parser._parse(build, [name, *words]))
    )


def test_a_list_of_values_ends_where_another_word_begins():
  parse = lambda *words: parser._parse(parser.build_parser(), words)
  args = parse('fewshot', '--data', 'd', '--knn', '5', '20', 'runs/1', '--json')
  assert (args.knn, args.weights, args.json) == ([5, 20], 'runs/1', True)
  args = parse('export', '--platforms', 'cpu', 'tpu', 'W', '-o', 'x.stablehlo')
  assert (args.platforms, args.weights) == (['cpu', 'tpu'], 'W')
  args = parse(
    'vtab', '-o', 'o', '--tasks', 'a', 'b', '--data', 'd', 'a=x', 'W'
  )
  assert (args.tasks, args.data, args.weights) == (
    ['a', 'b'],
    ['d', 'a=x'],
    'W',
  )
  with pytest.raises(SystemExit):
    parse('fewshot', 'W', '--data', 'd', '--knn', 'many')


@pytest.mark.parametrize(
  'old, new',
  [
    ('predict R --batch 4 x.jpg', 'predict R --batch-size 4 x.jpg'),
    ('predict R --csv folder', 'predict R --csv folder'),
    ('predict R x --csv=a.csv', 'predict R x --csv --output a.csv'),
    ('predict R x --json a.json', 'predict R x --json --output a.json'),
    ('aot --config=c.py --topology=v3-8', 'aot c.py --topology=v3-8'),
    ('aot --topology v3-8 --config c.py', 'aot c.py --topology v3-8'),
    ('aot c.py --num_classes=10', 'aot c.py --num-classes=10'),
    ('token-labels R --data-dir d', 'token-labels R --data d'),
    ('train --config=c.py --workdir=w', 'train c.py --workdir=w'),
    ('predict R -- --batch', 'predict R -- --batch'),
  ],
)
def test_old_spellings_are_translated(old, new):
  command, *words = old.split()
  words, notes = spelling.current(command, words)
  assert ' '.join([command, *words]) == new
  assert bool(notes) == (old != new)


def test_a_note_says_the_new_spelling_and_quiet_says_nothing(capsys, tmp_path):
  argv = ['export', str(tmp_path / 'no.npz'), str(tmp_path / 'x.onnx')]
  assert parser.main(argv) == 1
  error = capsys.readouterr().err
  assert f'note: {argv[2]} is now --output {argv[2]}\n' in error
  assert parser.main([*argv, '--quiet']) == 1
  error = capsys.readouterr().err
  assert 'note:' not in error and error.startswith('error: ')
  assert parser.main([*argv, '-o', 'y.npz']) == 1
  assert 'unexpected word' in capsys.readouterr().err


@pytest.mark.parametrize('width', [80, 100])
def test_tables_fit_the_terminal(capsys, monkeypatch, width):
  monkeypatch.setenv('COLUMNS', str(width))
  for argv in (['models'], ['info', 'vit_mu16']):
    assert parser.main(argv) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert '\x1b' not in out
  assert 'MultiHeadDotProductAttention' in out


def test_the_shell_can_complete(capsys):
  assert parser.main(['completion', 'bash']) == 0
  out = capsys.readouterr().out
  assert 'vit-jax' in out and 'complete' in out


def test_the_help_documents_exit_codes(capsys):
  assert parser.main([]) == 0
  out = capsys.readouterr().out
  assert 'exit codes:' in out and '130' in out
  assert max(map(len, out.splitlines())) <= 80


def test_long_lines_are_wrapped_on_a_terminal_only(monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  line = 'a line of words ' * 5
  for terminal in (True, False):
    stream = types.SimpleNamespace(isatty=lambda terminal=terminal: terminal)
    monkeypatch.setattr(sys, '__stdout__', stream)
    lines = text.for_terminal(f'{line}\nshort').splitlines()
    assert (max(map(len, lines)) <= 40) == terminal
    assert lines[-1] == 'short'
    stream.write = lambda words, written=(written := []): written.append(words)
    with contextlib.redirect_stdout(text.Wrapping(stream)):
      print(line)
    assert (max(map(len, ''.join(written).splitlines())) <= 40) == terminal


def test_paths_of_a_table_are_folded_after_a_slash():
  rows = [('Transformer/encoderblock_0/LayerNorm_0/scale', '32'), ('head', '1')]
  assert text.table(rows, right=(1,), width=34).splitlines() == [
    'Transformer/encoderblock_0/  32',
    '  LayerNorm_0/scale',
    'head                          1',
  ]


def test_numbers_with_their_word():
  assert text.counted(1, 'class') == '1 class'
  assert text.counted(1204, 'class') == '1,204 classes'
  assert text.counted(1.0, 'epoch') == '1 epoch'
  assert text.counted(0.5, 'epoch') == '0.5 epochs'


def test_a_run_that_was_stopped_says_so_and_exits_with_3(monkeypatch, capsys):
  def stopped(args):
    raise Preempted('stopped at step 3 of 9; the state is saved')

  monkeypatch.setattr('vit_jax.cli.verify.run', stopped)
  assert parser.main(['verify', 'runs/a']) == 3
  assert capsys.readouterr().err.startswith('stopped at step 3 of 9')
