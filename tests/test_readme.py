"""The README is true: its commands, paths, recipes and models exist.

Every line of every fenced block without a language (or `sh`) is a command. A
command of an unknown kind fails: add its check here. `tests/test_pages.py` runs
the commands.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import pathlib
import re

import jax
import numpy as np
from PIL import Image
import pytest

from tests.helpers import ROOT
from tests.pages import (
  MAIN,
  PAGES,
  blocks,
  commands,
  commands_of,
  recipe_runs,
  split_flags,
  why_not_run,
  words,
)
from tests.random_variables import random_variables
import vit_jax
from vit_jax.cli import parser
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import default_config, get

README = pathlib.Path(ROOT, 'README.md').read_text()
ALL = [line for page in PAGES for line in commands_of(page)]


def test_blocks_and_commands_are_found():
  text = (
    'a\n```\n$ one \\\n  two  # why\n# no\n\nX=1 three\n```\n'
    '```python\nx\n```\n'
  )
  assert commands(text) == ['one two', 'X=1 three']
  assert words('X=1 three') == ['three']
  assert blocks(text, 'python') == ['x\n']
  assert split_flags(['--config=a.py:b,c', '--config.optim.lr=1', '--x=2']) == (
    'a.py',
    'b,c',
    {'optim.lr': '1'},
  )


def test_the_first_two_commands_do_all_the_set_up():
  """CI runs them. They must be the first two commands, on one line each."""
  train, test, *rest = commands(README)
  for line in (train, test):
    assert line.startswith('python3 -m venv .venv && .venv/bin/pip install ')
    assert '-c requirements.txt' in line
  assert 'python -m vit_jax.main --config=configs/digits.py' in train
  assert test.endswith('python -m pytest')
  assert not any('python3 -m venv' in line for line in rest)


@pytest.mark.parametrize('flags', recipe_runs(ALL), ids=' '.join)
def test_recipes_and_their_keys_exist(flags):
  file, argument, overrides = split_flags(flags)
  assert pathlib.Path(ROOT, file).is_file(), file
  module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
  # Words in capitals stand for values of the reader.
  if not re.search(r'\b[A-Z]{2,}\b', argument):
    config = module.get_config(argument or None)
    if config.loss.distill != 'none' and not config.loss.teacher_weights:
      config.loss.teacher_weights = 'random'  # an ablation trains the teacher
    check(config)
  default = default_config()
  for key in overrides:
    if not key.startswith('model.'):
      get(default, key)  # raises, with the nearest name


def _help_of(argv) -> str:
  with contextlib.redirect_stdout(io.StringIO()) as text:
    with contextlib.suppress(SystemExit):
      parser.main([*argv, '--help'])
  return text.getvalue()


def test_every_command_is_of_a_known_kind():
  for line in ALL:
    head = words(line)[:3]
    if not head or head[0] in ('vit-jax', 'export', 'cd', 'git', '.'):
      continue
    if head == MAIN or line.startswith('python3 -m venv'):
      continue
    if head[0] in ('python', 'python3') and head[1] == '-m':
      assert importlib.util.find_spec(head[2]), line
    elif head[0] in ('python', 'python3'):
      folders = (ROOT, f'{ROOT}/docs/tutorials')
      assert any(pathlib.Path(x, head[1]).is_file() for x in folders), line
    elif head[0] == 'pip':
      assert head[1] == 'install', line
    elif not why_not_run(line) and head[0] != 'mkdir':
      assert head[0].startswith('launch/'), f'unknown kind of command: {line}'
      assert pathlib.Path(ROOT, head[0]).stat().st_mode & 0o111, line


def test_inline_commands_exist():
  """`vit-jax X` and `--flag` in the text."""
  known = parser.COMMANDS
  for name in re.findall(r'`vit-jax\s+([\w-]+)', README):
    assert name in known, name
  # A flag in the text is an option of some command.
  helps = ' '.join(_help_of([name]) for name in known)
  for flag in re.findall(r'`(--[a-z][a-z-]+)', README):
    if flag not in ('--config', '--workdir'):
      assert re.search(rf'(?<![\w-]){flag}\b', helps), flag


def test_paths_exist():
  tops = 'configs|launch|benchmarks|tests|docs|vit_jax'
  for path in set(re.findall(rf'\b(?:{tops})/[\w./*-]*\w', README)):
    assert list(pathlib.Path(ROOT).glob(path)), path
  for file in set(re.findall(r'`(\w+\.py)`', README)):
    assert pathlib.Path(ROOT, 'configs', file).is_file(), file
  for target in re.findall(r'\]\(([^)#:]+)\)', README):
    assert pathlib.Path(ROOT, target).exists(), target


def test_models_that_are_named_exist():
  """Names in the second column of the table of families, and after --model."""
  from vit_jax.models.registry import list_models

  names = re.findall(r'--model[ =](\w+)', README)
  table = README.partition('| family |')[2].partition('\n\n')[0]
  names += [
    n
    for row in table.splitlines()[2:]
    for n in re.findall(r'`([\w*]+)`', row.split('|')[2])
  ]
  assert names
  for name in names:
    assert list_models(name), name


@pytest.fixture
def reader(tmp_path, monkeypatch):
  """The reader's directory, with a small model instead of ViT-B/16."""
  monkeypatch.chdir(tmp_path)
  model = vit_jax.create_model('vit_mu16')
  image = np.zeros((1, 224, 224, 3), np.float32)
  vit_jax.save_weights(random_variables(model, image), model, 'ViT-B_16.npz')
  names = [f'name {i}' for i in range(1000)]
  pathlib.Path('names.txt').write_text('\n'.join(names))
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
  Image.fromarray(pixels).save('photo.jpg')
  for split, count in (('train', 8), ('test', 2)):
    for name in ('rose', 'tulip'):
      directory = pathlib.Path('flowers', split, name)
      directory.mkdir(parents=True)
      for i in range(count):
        Image.fromarray(np.roll(pixels, i)).save(directory / f'{i}.jpg')
  return tmp_path


def run_block(index: int) -> dict:
  """Runs a Python block of the README with small values; its variables."""
  block = blocks(README, 'python')[index]
  small = block.replace('vit_b16', 'vit_mu16').replace('steps=500', 'steps=1')
  variables = {}
  exec(compile(small, f'README.md, Python block {index}', 'exec'), variables)
  return variables


def test_python_from_an_image_to_names_features_and_attention(reader, capsys):
  variables = run_block(0)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 5
  assert all(re.fullmatch(r'[\d.]+% name \d+', line) for line in lines)
  assert variables['logits'].shape == (1, 1000)
  assert variables['features'].shape == (1, 32)
  depth, heads = 1, 2
  assert [a.shape for a in variables['attention']] == [
    (1, heads, 197, 197)
  ] * depth


@pytest.mark.slow
def test_python_fine_tunes_and_uses_the_result(reader):
  variables = run_block(1)
  (result,) = variables['results']
  assert {p['class'] for p in result['predictions']} == {'rose', 'tulip'}
  summary = json.loads((reader / 'runs/flowers/summary.json').read_text())
  assert variables['accuracy'] == summary['results']['test']['top1']
  assert (reader / 'flowers.stablehlo').exists()
  # A workdir loads without more arguments than the model.
  model = vit_jax.create_model('vit_mu16', num_classes=2)
  _, report = vit_jax.load_pretrained(model, 'runs/flowers')
  assert report.image_size == (224, 224) and not report.reset
  assert report.class_names == ('rose', 'tulip')


def test_python_with_a_model_and_its_variables(reader, capsys):
  variables = run_block(2)
  assert 'loaded' in capsys.readouterr().out
  assert variables['logits'].shape == (1, 1000)
  again, _ = vit_jax.load_pretrained(variables['model'], 'vit_mu16.safetensors')
  jax.tree.map(np.testing.assert_array_equal, again, variables['variables'])
