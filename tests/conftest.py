"""Test setting: CPU processes with 8 virtual devices, strict arrays."""

import contextlib
import ctypes
import gc
import os
import pathlib
import shutil
import tempfile

from tests.compiler import FAST_COMPILE

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + f' --xla_force_host_platform_device_count=8 {FAST_COMPILE}'
)
# What one test compiled, another one, another worker or a command of its own
# process takes from here. It lives as long as the test run. Small programs are
# kept too: tests run thousands of them, and to compile one takes 30 ms, to read
# one 10.
CACHE = None
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  CACHE = tempfile.mkdtemp(prefix='vit_jax_compiled_')
  os.environ.update(
    JAX_COMPILATION_CACHE_DIR=CACHE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
  )

from absl import flags  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# JAX and Flax make many objects that live long, and a full collection looks at
# all of them: with Python's own thresholds collections take 7 % of the tests of
# models.
gc.set_threshold(200_000, 50, 1000)

# Grain reads absl flags, and pytest never parses them.
flags.FLAGS.mark_as_parsed()
jax.config.update('jax_numpy_rank_promotion', 'raise')


def free_compiled_programs():
  """Frees what tests compiled; JAX by itself keeps every program."""
  jax.clear_caches()
  gc.collect()
  with contextlib.suppress(OSError):  # glibc keeps freed memory for itself
    ctypes.CDLL('libc.so.6').malloc_trim(0)


def resident_bytes():
  """The memory of this process in bytes; 0 where /proc does not tell it."""
  try:
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  except OSError:
    return 0
  return pages * os.sysconf('SC_PAGE_SIZE')


@pytest.fixture(scope='module', autouse=True)
def free_memory_after_a_module():
  yield
  free_compiled_programs()


@pytest.fixture(autouse=True)
def free_memory_after_a_large_test():
  """Keeps a worker below 2 GB, also in modules that compile many models."""
  yield
  if resident_bytes() > 1.2e9:
    free_compiled_programs()


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m excludes
def pytest_collection_modifyitems(config, items):
  """Marks the tests of slow.txt, and puts those of whole programs first.

  They take the longest, and no worker should begin one when the others have
  finished.
  """
  lines = pathlib.Path(__file__).with_name('slow.txt').read_text().splitlines()
  slow = tuple(line for line in lines if not line.startswith('#'))
  for item in items:
    if item.nodeid.startswith(slow):
      item.add_marker(pytest.mark.slow)
  items.sort(key=lambda item: item.nodeid.count('/') > 1)


def pytest_unconfigure():
  if CACHE is not None:
    shutil.rmtree(CACHE, ignore_errors=True)
