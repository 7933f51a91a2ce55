"""Every recipe builds; with -m slow, every recipe's smoke variant runs."""

import importlib
import json
import pathlib

import jax
import pytest

from tests.helpers import ROOT, run_python
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build, make_step
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import default_config, get, preprocessing

RECIPES = sorted(
  p.stem
  for p in pathlib.Path(ROOT, 'configs').glob('*.py')
  if p.stem != '__init__'
)


def recipe(name, arg=None):
  return importlib.import_module(f'configs.{name}').get_config(arg)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_valid_and_says_how_to_run_it(name):
  check(recipe(name))
  text = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in text


@pytest.mark.parametrize('name', RECIPES)
def test_one_smoke_step_type_checks(name):
  """Model, augmentation, loss and optimizer fit together (nothing is run)."""
  config = recipe(name, 'smoke')
  check(config)
  config.loss.distill = 'none'  # a teacher's weights are a file
  mesh = make_mesh(config.mesh.preset, config.mesh.fsdp, config.mesh.tensor)
  run = build(config, mesh, num_classes=10, num_examples=1024)
  step = make_step(run)
  size = config.data.batch_size
  images = jax.ShapeDtypeStruct((size, *preprocessing(config).size, 3), 'uint8')
  labels = jax.ShapeDtypeStruct((size,), 'int32')
  state, values = jax.eval_shape(
    step, run.abstract_state, {'image': images, 'label': labels}, {}
  )
  assert values['loss'].shape == ()
  assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(
    lambda x: x.shape, run.abstract_state
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_smoke_runs(name, tmp_path):
  result = run_python(
    '-m',
    'vit_jax.main',
    f'--config=configs/{name}.py:smoke',
    f'--workdir={tmp_path}',
    timeout=300,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert json.loads((tmp_path / 'summary.json').read_text())['results']


def test_every_key_is_read_by_something():
  """The source of the package names every key of the recipe."""
  source = '\n'.join(
    p.read_text()
    for p in pathlib.Path(ROOT, 'vit_jax').rglob('*.py')
    if p.name != 'config.py'
  )
  config = default_config()
  unread = [
    f'{section}.{key}'
    for section in config
    for key in config[section]
    if f'.{key}' not in source and f"'{key}'" not in source
  ]
  durations = {
    f'{s}.{k}'
    for s, k in (
      ('run', 'steps'),
      ('run', 'epochs'),
      ('run', 'examples'),
      ('schedule', 'warmup_steps'),
      ('schedule', 'warmup_epochs'),
      ('schedule', 'warmup_examples'),
      ('schedule', 'cooldown_steps'),
      ('schedule', 'cooldown_epochs'),
      ('eval', 'every_steps'),
      ('eval', 'every_epochs'),
    )
  }  # read by prefix
  assert set(unread) <= durations


def test_command_line_errors(tmp_path):
  def fails(*args):
    result = run_python(
      '-m', 'vit_jax.main', *args, f'--workdir={tmp_path / "w"}'
    )
    assert result.returncode != 0
    assert not (tmp_path / 'w').exists()
    return (result.stdout + result.stderr).strip().splitlines()[-1]

  assert 'learning_rat' in fails(
    '--config=configs/digits.py', '--config.optim.learning_rat=1'
  )
  assert 'no_such.py' in fails('--config=configs/no_such.py')
  assert 'hinge' in fails(
    '--config=configs/digits.py', '--config.loss.name=hinge'
  )


def test_get():
  assert get(default_config(), 'optim.lr') == 1e-3
