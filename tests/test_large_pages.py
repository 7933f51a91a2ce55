"""Programs that compute start again with large pages, once."""

import os
import subprocess
import sys

import pytest

from vit_jax import large_pages

_PROGRAM = """
import os, sys
from vit_jax.large_pages import restart_with_large_pages
print('start', os.getpid(), flush=True)
restart_with_large_pages()
print('end', os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.fixture
def _starts(monkeypatch, tmp_path):
  """The starts that were asked for, where the system has large pages."""
  starts = []
  setting = tmp_path / 'enabled'
  setting.write_text('always [madvise] never\n')
  monkeypatch.setattr(large_pages, '_SETTING', setting)
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36', raising=False)
  monkeypatch.setattr(os, 'execve', lambda *args: starts.append(args))
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  return starts


def test_a_program_starts_again_with_its_arguments(_starts, monkeypatch):
  monkeypatch.setattr(
    sys, 'orig_argv', ['python', '-m', 'vit_jax.main', '--workdir=a b']
  )
  large_pages.restart_with_large_pages()
  ((program, words, environment),) = _starts
  assert program == sys.executable
  assert words == [sys.executable, '-m', 'vit_jax.main', '--workdir=a b']
  assert environment['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'
  assert environment['PATH'] == os.environ['PATH']


@pytest.mark.parametrize('setting', ['[always] madvise never', '[never]', None])
def test_nothing_happens_where_no_one_has_to_ask(
  _starts, monkeypatch, tmp_path, setting
):
  path = tmp_path / 'other'
  if setting is not None:
    path.write_text(setting)
  monkeypatch.setattr(large_pages, '_SETTING', path)
  large_pages.restart_with_large_pages()
  assert not _starts


def test_a_variable_of_the_user_counts(_starts, monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  large_pages.restart_with_large_pages()
  assert not _starts


def test_nothing_happens_without_glibc(_starts, monkeypatch):
  monkeypatch.delattr(os, 'confstr')
  large_pages.restart_with_large_pages()
  assert not _starts


def test_the_process_stays_the_same():
  env = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM, 'a b', '--c=d'],
    capture_output=True,
    text=True,
    check=True,
    env=env,
  )
  *starts, end = result.stdout.splitlines()
  assert len(set(starts)) == 1  # one process, which starts at most twice
  assert len(starts) == (2 if large_pages._are_available() else 1)
  assert end.split()[1] == starts[0].split()[1]
  assert "['a b', '--c=d']" in end
