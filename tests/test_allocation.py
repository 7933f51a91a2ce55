"""Programs that compute start again once, with settings of glibc."""

import os
import subprocess
import sys

import pytest

from vit_jax import allocation

_PROGRAM = """
import os, sys
from vit_jax.allocation import restart_with_kept_memory
print('start', os.getpid(), flush=True)
restart_with_kept_memory()
print('end', os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.fixture
def _starts(monkeypatch):
  """The starts that were asked for, on a system with glibc."""
  starts = []
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36', raising=False)
  monkeypatch.setattr(os, 'execve', lambda *args: starts.append(args))
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  return starts


def test_a_program_starts_again_with_its_arguments(_starts, monkeypatch):
  monkeypatch.setattr(
    sys, 'orig_argv', ['python', '-m', 'vit_jax.main', '--workdir=a b']
  )
  allocation.restart_with_kept_memory()
  ((program, words, environment),) = _starts
  assert program == sys.executable
  assert words == [sys.executable, '-m', 'vit_jax.main', '--workdir=a b']
  assert environment['GLIBC_TUNABLES'] == allocation.settings()
  assert environment['PATH'] == os.environ['PATH']


def test_settings_of_the_user_count(_starts, monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  allocation.restart_with_kept_memory()
  assert not _starts


def test_nothing_happens_without_glibc(_starts, monkeypatch):
  monkeypatch.delattr(os, 'confstr')
  allocation.restart_with_kept_memory()
  assert not _starts


@pytest.mark.parametrize('limit', ['max\n', '1000000\n', None])
def test_a_quarter_of_the_memory_is_kept(monkeypatch, tmp_path, limit):
  path = tmp_path / 'memory.max'
  if limit is not None:
    path.write_text(limit)
  monkeypatch.setattr(allocation, '_CGROUP_LIMIT', path)
  values = dict(x.split('=') for x in allocation.settings().split(':'))
  kept = int(values['glibc.malloc.mmap_threshold'])
  if limit == '1000000\n':
    assert kept == 250_000
  else:
    assert kept > 10_000_000
  assert int(values['glibc.malloc.trim_threshold']) == 2 * kept


@pytest.mark.skipif(not allocation._has_glibc(), reason='needs glibc')
def test_the_process_stays_the_same():
  env = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM, 'a b', '--c=d'],
    capture_output=True,
    text=True,
    check=True,
    env=env,
  )
  first, second, end = result.stdout.splitlines()
  assert first == second  # one process, which starts twice
  assert end.split()[1] == first.split()[1]
  assert "['a b', '--c=d'] " + allocation.settings() in end
  assert not result.stderr
