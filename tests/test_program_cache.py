"""Compiled programs are kept for the next start, unless the user says no."""

import os
import pathlib

import jax
import pytest

from tests.helpers import run_python, tiny_config
from vit_jax import program_cache
from vit_jax.recipe.opening import open_run

VARIABLES = (
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_COMPILATION_CACHE_MAX_SIZE',
  'JAX_ENABLE_COMPILATION_CACHE',
)
PROGRAM = """
from vit_jax.program_cache import keep_programs
keep_programs()
import os
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
import jax
print(jax.jit(lambda x: x @ x.T)(jax.numpy.ones((4, 4)))[0, 0])
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache folder of the user, who has set nothing."""
  for variable in VARIABLES:
    monkeypatch.setenv(variable, '')
    monkeypatch.delenv(variable)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  return tmp_path


def programs(cache) -> dict[str, bytes]:
  folder = cache / 'vit_jax' / 'programs'
  return {p.name: p.read_bytes() for p in folder.glob('*-cache')}


def start() -> str:
  result = run_python('-c', PROGRAM)
  assert result.returncode == 0, result.stderr
  return result.stdout.strip()


def test_a_second_start_reads_what_the_first_has_compiled(cache):
  assert start() == '4.0'
  kept = programs(cache)
  assert kept
  assert start() == '4.0'
  assert programs(cache) == kept
  # A torn file, of a process that was killed or has not finished it yet.
  for name, program in kept.items():
    (cache / 'vit_jax' / 'programs' / name).write_bytes(program[:40])
  assert start() == '4.0'


@pytest.mark.parametrize(
  'variable, value',
  [('JAX_ENABLE_COMPILATION_CACHE', '0'), ('JAX_COMPILATION_CACHE_DIR', 'own')],
)
def test_what_the_user_has_set_counts(cache, monkeypatch, variable, value):
  monkeypatch.setenv(variable, value)
  program_cache.keep_programs()
  assert os.environ[variable] == value
  assert not programs(cache) and not list(cache.iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(cache):
  (cache / 'vit_jax').write_text('')
  program_cache.keep_programs()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_without_a_home(cache, monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME')

  def no_home(path):
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(pathlib.Path, 'expanduser', no_home)
  program_cache.keep_programs()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_a_recipe_can_turn_it_off(tmp_path):
  config = tiny_config(run=dict(compilation_cache=False))
  assert jax.config.jax_enable_compilation_cache
  try:
    open_run(config, tmp_path, jax.devices()[:1], lambda text: None)
    assert not jax.config.jax_enable_compilation_cache
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
