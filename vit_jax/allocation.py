"""How programs that compute on a CPU get their memory.

A training step on a CPU takes one large block from glibc, 1.4 GB for ViT-S/16
with 16 images, and returns it. glibc gives such blocks back to the system, and
Linux clears their pages again, one by one, when the next step writes them:
360,000 times a step, a tenth of its time and more on a virtual machine. So
glibc is told to keep blocks, and to ask for pages of 2 MiB. It reads these
settings from the environment, when a program starts.
"""

import gc
import os
import pathlib
import sys

VARIABLE = 'GLIBC_TUNABLES'
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
# Blocks up to this fraction of the memory are kept. Parts of kept memory cannot
# always be used again, so a program can need two such blocks more.
_KEPT = 1 / 4
_OBJECTS = 70_000  # new ones, after which Python collects; its own limit is 700
_USUAL = gc.get_threshold()
_CGROUP_LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')


def restart_with_kept_memory() -> None:
  """Starts this program again, once, with settings of glibc; called at first.

  It keeps the number of the process, its arguments, files and directory. It
  does nothing where the program has the variable GLIBC_TUNABLES already, so a
  user's own settings count, and on systems without glibc.
  """
  if VARIABLE in os.environ or not _has_glibc():
    return
  # Without the variable in the new environment, this would go on forever.
  environment = {**os.environ, VARIABLE: settings()}
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


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


def settings() -> str:
  """The value of GLIBC_TUNABLES."""
  kept = int(_memory() * _KEPT)
  values = {
    # Other arenas than the first give every large block back.
    'arena_max': 1,
    'mmap_threshold': kept,
    'trim_threshold': 2 * kept,
    'hugetlb': 1,
  }
  return ':'.join(f'glibc.malloc.{k}={v}' for k, v in values.items())


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
