"""A command takes the compiled step that the last run of its recipe kept."""

import ast
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import run_python, saved_state, tiny_config
from vit_jax.recipe import kept_step

PROGRAM = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.recipe import first_step, kept_step
config = tiny_config(
  run=dict(steps=3),
  data=dict(device_cache='off'),
  log=dict(checkpoint_steps=1, keep_latest=3),
)
kept_step.begin(config)
compile_ahead, load = first_step.compile_ahead, kept_step.KeptStep.load
done = []
first_step.compile_ahead = (
  lambda *args: done.append('compiled') or compile_ahead(*args)
)
kept_step.KeptStep.load = lambda self: done.append('loaded') or load(self)
train.train_and_evaluate(config, sys.argv[1])
print(done)
"""


def test_later_runs_load_the_step_and_have_the_same_bits(tmp_path):
  def start(name) -> list[str]:
    env = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache')}
    result = run_python('-c', PROGRAM, str(tmp_path / name), env=env)
    assert result.returncode == 0, result.stderr
    return ast.literal_eval(result.stdout.strip().splitlines()[-1])

  def check(name):
    state = saved_state(tmp_path / name)
    assert state.keys() == first.keys()
    for key, value in state.items():
      np.testing.assert_array_equal(value, first[key], err_msg=key)

  assert start('first') == ['compiled']
  first = saved_state(tmp_path / 'first')
  (kept,) = (tmp_path / 'cache' / 'steps').iterdir()
  assert start('second') == ['loaded']
  check('second')
  # Also a run that goes on from its first step.
  for step in (2, 3):
    shutil.rmtree(tmp_path / 'second' / 'checkpoints' / str(step))
  assert start('second') == ['loaded']
  check('second')
  kept.write_bytes(kept.read_bytes()[:-40])  # a torn file
  assert start('third') == ['compiled']
  check('third')


@pytest.fixture
def path(tmp_path, monkeypatch):
  """(config) -> the file of its step, with a cache of programs."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield kept_step._path
  jax.config.update('jax_compilation_cache_dir', before)


def test_a_step_belongs_to_all_that_it_is_traced_from(path, monkeypatch):
  own = path(tiny_config())
  assert own == path(tiny_config(log=dict(every_steps=7)))
  for section, values in {
    'optim': dict(lr=0.5),
    'data': dict(mixup=0.5),
    'model': dict(depth=3),
    'run': dict(seed=3),
  }.items():
    assert path(tiny_config(**{section: values})) != own
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  assert path(tiny_config()) != own
  monkeypatch.undo()
  monkeypatch.setattr(kept_step.agreement, 'code_fingerprint', lambda: 'other')
  assert path(tiny_config()) != own


def test_without_a_cache_or_with_a_model_of_the_user_none_is_kept(path):
  assert path(tiny_config(run=dict(compilation_cache=False))) is None
  assert (
    path(tiny_config(model=dict(module='docs/tutorials/my_models.py'))) is None
  )
