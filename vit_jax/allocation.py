"""How programs that compute on a CPU get their memory.

A training step on a CPU takes one large block, 1.4 GB for ViT-S/16 with 16
images, and returns it. glibc, the usual library, gives such blocks back to the
system, and Linux clears their pages again, one by one, when the next step
writes them: 360,000 times a step, a tenth of its time and more on a virtual
machine. A step also takes up to a hundred thousand small blocks, in several
threads.

jemalloc is faster at both, so a program uses it where the system has it. It
must be loaded before the program, and reads its settings from the environment.
glibc reads some from there too: it is told to keep what it can, and to ask for
pages of 2 MiB, of which a step needs a few hundred. Each of its threads has a
heap of its own (an arena), so that none waits for another. Only that of the
first thread can keep blocks of more than 64 MB, so that thread computes
(`compute_in_first_thread`). docs/performance.md compares all of these.
"""

import gc
import os
import pathlib
import platform
import sys

# The commands of `vit-jax` that train a model or apply it to many images.
COMMANDS = (
  'ablate',
  'evaluate',
  'features',
  'fewshot',
  'finetune',
  'predict',
  'pseudo-label',
  'teacher-logits',
  'token-labels',
  'train',
  'vtab',
)
_GLIBC = 'GLIBC_TUNABLES'
# The variables of jemalloc, and of what is loaded before a program.
_JEMALLOC = 'MALLOC_CONF'
_PRELOAD = 'LD_PRELOAD'
# Blocks up to this fraction of the memory are kept. Parts of kept memory cannot
# always be used again, so a program can need two such blocks more.
_KEPT = 1 / 4
# Milliseconds (12 days) for which jemalloc keeps a block: as good as forever.
# With its own word for forever, -1, it would not give larger ones back.
_KEPT_FOR = 1_000_000_000
_OBJECTS = 70_000  # new ones, after which Python collects; its own limit is 700
_USUAL = gc.get_threshold()
_CGROUP_LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')


def restart_with_kept_memory() -> None:
  """Starts this program again, once, with `settings`; called at first.

  It keeps the number of the process, its arguments, files and directory. It
  does nothing where the program has the variable GLIBC_TUNABLES already, so a
  user's own settings count, and on systems without glibc.
  """
  if _GLIBC in os.environ or not _has_glibc():
    return
  # They contain GLIBC_TUNABLES. Without it, this would go on forever.
  environment = {**os.environ, **settings()}
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def compute_in_first_thread() -> None:
  """Lets JAX compute on a CPU in the thread that asks it to.

  It counts if it is called before the first array. Without it, threads of JAX
  compute, and glibc gives their largest blocks back to the system after every
  step. Nothing changes where jemalloc, which keeps the blocks of all threads,
  or a library of the user's own is loaded, and where glibc is not used. There
  the first thread can prepare the next step while others compute.
  """
  import jax

  if _GLIBC in os.environ and _PRELOAD not in os.environ:
    jax.config.update('jax_cpu_enable_async_dispatch', False)


def collect_rarely() -> None:
  """Lets Python look for unused cycles of objects a hundred times less often.

  Imports and traced programs make hundreds of thousands of objects that stay.
  Python looks through them again and again, which takes a second of the start
  of a training run.
  """
  gc.set_threshold(_OBJECTS)


def collect_as_usual() -> None:
  """Ends what `collect_rarely` began, if it did; called after the first step.

  Arrays in a cycle of objects keep their memory until Python collects.
  """
  if gc.get_threshold()[0] == _OBJECTS:
    gc.set_threshold(*_USUAL)


def settings() -> dict[str, str]:
  """The environment variables with which a program that computes starts.

  They are jemalloc's where it is found and the user has preloaded nothing and
  set nothing of it, and glibc's, which jemalloc does not read.
  """
  kept = int(_memory() * _KEPT)
  glibc = {
    # There is no limit for the number of heaps (`arena_max`): threads that
    # share one wait for each other at each small block.
    'mmap_threshold': kept,
    'trim_threshold': 2 * kept,
    'hugetlb': 1,
  }
  variables = {
    _GLIBC: ':'.join(f'glibc.malloc.{k}={v}' for k, v in glibc.items())
  }
  library = _jemalloc()
  if library is None or {_PRELOAD, _JEMALLOC} & os.environ.keys():
    return variables
  jemalloc = {
    # A block that one thread has returned serves all of them.
    'narenas': 1,
    'thp': 'always',  # asks for pages of 2 MiB
    'oversize_threshold': kept,  # larger blocks are given back at once
    'dirty_decay_ms': _KEPT_FOR,
    # With a number of milliseconds here, jemalloc 5.3 would give back all
    # blocks from 8 MB on, whatever the threshold is.
    'muzzy_decay_ms': -1,
  }
  variables[_PRELOAD] = str(library)
  variables[_JEMALLOC] = ','.join(f'{k}:{v}' for k, v in jemalloc.items())
  return variables


def _jemalloc() -> pathlib.Path | None:
  """The library of jemalloc: of this Python's environment, or the system's."""
  folders = (
    pathlib.Path(sys.prefix, 'lib'),  # that of an environment of conda
    pathlib.Path('/usr/local/lib'),
    pathlib.Path(f'/usr/lib/{platform.machine()}-linux-gnu'),  # Debian, Ubuntu
    pathlib.Path('/usr/lib64'),
    pathlib.Path('/usr/lib'),
  )
  files = (folder / 'libjemalloc.so.2' for folder in folders)
  return next(filter(pathlib.Path.exists, files), None)


def _memory() -> int:
  """Bytes of memory that this program may use: the machine's or a container's.

  A container's limit is the word 'max' where there is none.
  """
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    limit = _CGROUP_LIMIT.read_text().strip()
  except OSError:
    return memory
  return min(memory, int(limit)) if limit.isdigit() else memory


def _has_glibc() -> bool:
  try:
    return (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc')
  except (OSError, ValueError, AttributeError):
    return False
