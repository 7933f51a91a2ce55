"""The machine of a measurement, and the versions of what was measured."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'grain', 'torch', 'torchvision', 'timm'),
  *('transformers', 'jax-image-models', 'equimo', 'tensorflow-cpu'),
  *('simplejpeg', 'turbojpeg', 'opencv-python-headless', 'pillow', 'numpy'),
)
_BUSY = 0.5  # load on each core, above which a table comes with a warning


def environment() -> dict[str, Any]:
  """The machine and the versions of what was measured."""
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return {
    'cpu': _cpu(),
    'gpu': _gpu(),
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
    'python': platform.python_version(),
    **versions,
  }


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  for line in info.read_text().splitlines() if info.exists() else ():
    if line.startswith('model name'):
      return line.split(':')[1].strip()
  return platform.processor()


def _gpu() -> str | None:
  """The names of the NVIDIA GPUs of this machine."""
  if shutil.which('nvidia-smi') is None:
    return None
  command = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
  done = subprocess.run(command, capture_output=True, text=True)
  return ', '.join(done.stdout.split('\n')).strip(', ') or None


def describe() -> str:
  """`environment` in one line, for the head of a table.

  A second line warns of a busy machine. Threads that wait for each other at the
  end of every product, as those of PyTorch, then lose far more than others.
  """
  known = environment()
  cpu, cores, load = (known.pop(k) for k in ('cpu', 'cores', 'load'))
  versions = ', '.join(f'{k} {v}' for k, v in known.items() if v)
  line = f'{cpu}, {cores} cores (load {load:.1f}); {versions}'
  if load > _BUSY * cores:
    line += (
      f'\nThe machine is busy (load {load:.1f} on {cores} cores): these '
      'figures say little. Measure again when nothing else runs.'
    )
  return line
