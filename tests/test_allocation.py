"""Programs that compute start again once, with settings of their memory."""

import json
import os
import statistics
import subprocess
import sys
from unittest import mock

import pytest

from vit_jax import allocation
from vit_jax.cli import parser
from vit_jax.recipe import command_line

_PROGRAM = """
import os, sys
from vit_jax.allocation import restart_with_kept_memory
print('start', os.getpid(), flush=True)
restart_with_kept_memory()
print('end', os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""

_VARIABLES = 'GLIBC_TUNABLES', 'LD_PRELOAD', 'MALLOC_CONF'


def _ended(*words, **variables):
  """A program of Python that has ended well, on one device.

  It has none of the variables of memory but those given, and not the XLA_FLAGS
  of this suite, which ask for eight devices.
  """
  own = (*_VARIABLES, 'XLA_FLAGS')
  env = {k: v for k, v in os.environ.items() if k not in own}
  return subprocess.run(
    [sys.executable, '-c', *words],
    capture_output=True,
    text=True,
    check=True,
    env={**env, **variables},
  )


@pytest.fixture
def _starts(monkeypatch):
  """The starts that were asked for, on a system with glibc."""
  starts = []
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36', raising=False)
  monkeypatch.setattr(os, 'execve', lambda *args: starts.append(args))
  for name in _VARIABLES:
    monkeypatch.delenv(name, raising=False)
  return starts


@pytest.fixture
def _library(monkeypatch, tmp_path):
  """A file that is found as jemalloc."""
  file = tmp_path / 'lib' / 'libjemalloc.so.2'
  file.parent.mkdir()
  file.touch()
  monkeypatch.setattr(sys, 'prefix', str(tmp_path))
  return file


def test_a_program_starts_again_with_its_arguments(_starts, monkeypatch):
  monkeypatch.setattr(
    sys, 'orig_argv', ['python', '-m', 'vit_jax.main', '--workdir=a b']
  )
  allocation.restart_with_kept_memory()
  ((program, words, environment),) = _starts
  assert program == sys.executable
  assert words == [sys.executable, '-m', 'vit_jax.main', '--workdir=a b']
  for name, value in allocation.settings().items():
    assert environment[name] == value
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
  glibc = allocation.settings()['GLIBC_TUNABLES']
  values = dict(x.split('=') for x in glibc.split(':'))
  kept = int(values['glibc.malloc.mmap_threshold'])
  if limit == '1000000\n':
    assert kept == 250_000
  else:
    assert kept > 10_000_000
  assert int(values['glibc.malloc.trim_threshold']) == 2 * kept


def test_jemalloc_is_used_where_it_is_found(_starts, _library):
  allocation.restart_with_kept_memory()
  ((_, _, environment),) = _starts
  assert environment['LD_PRELOAD'] == str(_library)
  glibc = dict(x.split('=') for x in environment['GLIBC_TUNABLES'].split(':'))
  values = dict(x.split(':') for x in environment['MALLOC_CONF'].split(','))
  # Both give the blocks back that are larger.
  kept = glibc['glibc.malloc.mmap_threshold']
  assert values['oversize_threshold'] == kept


@pytest.mark.parametrize('name', ['LD_PRELOAD', 'MALLOC_CONF'])
def test_an_allocator_of_the_user_counts(_starts, _library, monkeypatch, name):
  monkeypatch.setenv(name, 'my own')
  allocation.restart_with_kept_memory()
  ((_, _, environment),) = _starts
  own = {k: environment[k] for k in _VARIABLES[1:] if k in environment}
  assert own == {name: 'my own'}
  assert 'GLIBC_TUNABLES' in environment


def test_without_jemalloc_glibc_keeps_the_memory(_starts, monkeypatch):
  monkeypatch.setattr(allocation, '_jemalloc', lambda: None)
  assert list(allocation.settings()) == ['GLIBC_TUNABLES']


_THREADS = """
import ctypes, threading
together = threading.Barrier(3)
def thread():
  block = bytearray(10_000)
  together.wait()
threads = [threading.Thread(target=thread) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(not allocation._has_glibc(), reason='needs glibc')
def test_without_jemalloc_each_thread_has_a_heap(monkeypatch):
  """With a common one, threads wait for each other at every small block."""
  monkeypatch.setattr(allocation, '_jemalloc', lambda: None)
  result = _ended(_THREADS, **allocation.settings())
  assert result.stderr.count('Arena ') == 1 + 3, result.stderr


@pytest.mark.skipif(not allocation._has_glibc(), reason='needs glibc')
def test_the_process_stays_the_same():
  result = _ended(_PROGRAM, 'a b', '--c=d')
  first, second, end = result.stdout.splitlines()
  assert first == second  # one process, which starts twice
  assert end.split()[1] == first.split()[1]
  glibc = allocation.settings()['GLIBC_TUNABLES']
  assert "['a b', '--c=d'] " + glibc in end
  assert not result.stderr


_KEPT = """
import resource
import numpy as np
from vit_jax.allocation import restart_with_kept_memory
restart_with_kept_memory()
def pages(n):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(n, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
n = 64 * 2**20
print(pages(n), [pages(n) for _ in range(5)])
"""


@pytest.mark.skipif(not allocation._has_glibc(), reason='needs glibc')
def test_a_block_is_kept():
  """Its pages come from the system only once, whichever library is there."""
  result = _ended(_KEPT)
  first, later = result.stdout.split(' ', 1)
  assert int(first) > 0
  assert json.loads(later) == [0] * 5, result.stdout
  assert not result.stderr


_KEPT_BY_JAX = """
import resource
from vit_jax import allocation
allocation.restart_with_kept_memory()
allocation.compute_in_first_thread()
import jax
import jax.numpy as jnp
def pages(f):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  jax.block_until_ready(f(jnp.ones((16, 16))))
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The first product is a block of 100 MB.
f = jax.jit(lambda x: jnp.tile(x, (320, 4)) @ jnp.tile(x, (4, 320)) @ jnp.tile(
  x, (320, 1)))
print(pages(f), [pages(f) for _ in range(9)])
"""


@pytest.mark.skipif(not allocation._has_glibc(), reason='needs glibc')
def test_without_jemalloc_the_block_of_a_program_is_kept():
  """A program of JAX takes its pages from the system once.

  An empty MALLOC_CONF stands for the user's own, so jemalloc is not taken.
  """
  result = _ended(_KEPT_BY_JAX, MALLOC_CONF='')
  first, later = result.stdout.split(' ', 1)
  assert int(first) > 50  # 100 MB are 50 pages of 2 MB
  # Other threads take a few pages for parts of a product. If they took the
  # block too, there would be 260 and more. Where the system has few pages of
  # 2 MB left, it gives smaller ones, and the first program takes thousands.
  limit = max(40, int(first) / 10)
  assert statistics.median(json.loads(later)) < limit, result.stdout


@pytest.mark.parametrize('command', ['evaluate', 'predict', 'models'])
def test_commands_that_compute_do_so_in_the_first_thread(monkeypatch, command):
  calls = []
  monkeypatch.setattr(
    allocation, 'compute_in_first_thread', lambda: calls.append(command)
  )
  words = {'evaluate': ['no.npz'], 'predict': ['no.npz', 'no.jpg']}
  parser.main([command, *words.get(command, [])])
  assert calls == [command] * (command in allocation.COMMANDS)


def test_a_recipe_is_computed_in_the_first_thread(monkeypatch):
  """`python -m vit_jax.main` begins in the same way, before its program."""
  calls = []
  monkeypatch.setattr(
    command_line, 'compute_in_first_thread', lambda: calls.append('thread')
  )
  values = mock.MagicMock(config='a recipe', workdir='a folder')
  monkeypatch.setattr(command_line.flags, 'FLAGS', values)
  program = lambda *_: calls.append('program')
  with pytest.raises(SystemExit):
    command_line._run(program, {}, 'usage', ['main.py'])
  assert calls == ['thread', 'program']
