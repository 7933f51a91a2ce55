"""Keeps the compiled training step of a recipe for its next start.

JAX keeps compiled programs too, but it knows a program only when it has traced
and lowered it, which takes 4 CPU seconds for ViT-S/16. Here the step is found
by what it is traced from: the recipe, the sources of this package, versions,
settings of JAX, the machine, and the shapes of all arguments. It is the
program of the run that kept it, so its numbers are the same.

Only a command keeps and takes steps: a program of a user can replace functions
of this package. Neither does a run with several devices or processes, a model
of the user, a teacher, or data that are held on the device.
"""

from collections.abc import Mapping
import concurrent.futures
import hashlib
from importlib import metadata
import json
import os
import pathlib
import pickle
import platform
import re
from typing import TYPE_CHECKING, Any
import zlib

import jax
from jax.experimental import serialize_executable

from vit_jax.files import write_atomically
from vit_jax.parallel import agreement, processes
from vit_jax.parallel.compilation import in_thread
from vit_jax.recipe.keys import to_json
from vit_jax.recipe.sections import Config

if TYPE_CHECKING:
  # A command begins before it imports what they need.
  from vit_jax.recipe.build import Run
  from vit_jax.recipe.inputs import TrainInput

_FOLDER = 'steps'  # in the folder of JAX's cache
_MOST = 64  # files; those that were used least recently are deleted
# Packages that trace or compile the step.
_PACKAGES = 'jax', 'jaxlib', 'flax', 'optax', 'chex', 'numpy', 'ml_dtypes'
_VARIABLES = 'XLA_', 'TF_', 'JAX_', 'LIBTPU_'  # beginnings of their names
# Sections and keys of the recipe that the step does not depend on.
_SECTIONS = 'log', 'eval'
_KEYS = ('run', 'name'), ('data', 'dir')

_ADDRESS = re.compile(' at 0x[0-9a-f]+')  # of a function, in its text

# The steps that a command of this process may take and keep: {file: (facts
# about the run that kept it, its loading)}.
_known: dict[pathlib.Path, tuple[str, concurrent.futures.Future]] = {}


def begin(config: Config) -> None:
  """Begins to load the step of a recipe, in a thread; called by a command.

  It can be called before the data are opened and the model is made, which take
  as long.

  Args:
    config: the recipe, checked.
  """
  path = _path(config)
  if path is None or processes.current_job() is not None:
    return
  try:
    facts, program = _read(path)
    _known[path] = facts, in_thread(_load, program)
  except (OSError, ValueError):  # it is missing or damaged
    _known[path] = '', concurrent.futures.Future()


class KeptStep:
  """The kept step of a run, if there is one.

  Args:
    run: the run, see `vit_jax.recipe.build.Run`.
    inputs: its training input, see `vit_jax.recipe.inputs.TrainInput`.
    batch: its first batch.

  Attributes:
    fits: whether there is a step of the same recipe and the same data.
  """

  def __init__(self, run: 'Run', inputs: 'TrainInput', batch: Any):
    path = _path(run.config)
    ordinary = (
      jax.device_count() == 1
      and jax.default_backend() == 'cpu'
      and inputs.load_batch is None
      and run.config.loss.distill == 'none'
      and type(run.model).__module__.startswith('vit_jax.')
    )
    self._path = path if ordinary and path in _known else None
    self._facts = _facts(run, (run.abstract_state, batch, inputs.extras))
    self.fits = self._path is not None and _known[self._path][0] == self._facts

  def load(self) -> Any:
    """Waits for a step that fits; None if it cannot be loaded."""
    assert self._path is not None
    return _known[self._path][1].result()

  def keep(self, compiled: jax.stages.Compiled) -> None:
    """Writes the step of this run, in a thread.

    Args:
      compiled: the step, compiled in this process. A program that JAX has read
        from its own cache cannot be written again.
    """
    if self._path is not None:
      in_thread(_write, self._path, self._facts, compiled)


def _path(config: Config) -> pathlib.Path | None:
  """The file of a recipe's step; None where no step is kept."""
  settings = jax.config.values
  folder = settings['jax_compilation_cache_dir']
  enabled = settings['jax_enable_compilation_cache']
  if not folder or '://' in folder or not enabled:
    return None
  if not config.run.compilation_cache or config.model.get('module'):
    return None
  identity = {
    'recipe': _traced_keys(config),
    'code': agreement.code_fingerprint(),
    'versions': {name: metadata.version(name) for name in _PACKAGES},
    'python': platform.python_version(),
    'jax': {k: repr(v) for k, v in settings.items()},
    'environment': {
      k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)
    },
    'machine': _machine(),
  }
  return pathlib.Path(folder) / _FOLDER / f'{_digest(identity)}.step'


def _traced_keys(config: Config) -> Mapping[str, Any]:
  """The keys of a recipe on which the traced step can depend."""
  recipe = to_json(config)
  for section in _SECTIONS:
    recipe.pop(section, None)
  for section, key in _KEYS:
    recipe[section].pop(key, None)
  return recipe


def _machine() -> list[str]:
  """The processor, its instructions and the number of its cores."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().split('\n\n')[0] if info.exists() else ''
  kept = 'model name', 'flags', 'cpu family', 'stepping', 'Features'
  cores = [os.cpu_count()]
  if hasattr(os, 'sched_getaffinity'):
    cores.append(len(os.sched_getaffinity(0)))
  return [
    platform.platform(),
    platform.machine(),
    str(cores),
    *(line for line in lines.split('\n') if line.startswith(kept)),
  ]


def _facts(run: Any, arguments: Any) -> str:
  """A digest of what is known of a run when its data have been opened."""
  leaves, tree = jax.tree.flatten(arguments)
  return _digest(
    {
      'model': _ADDRESS.sub('', repr(run.model)),
      'classes': run.num_classes,
      'steps': [run.steps_per_epoch, run.total_steps],
      'length': repr(run.length.extra_steps),
      'mesh': repr(run.mesh),
      'tree': str(tree),
      'arguments': [
        [x.shape, str(x.dtype), repr(getattr(x, 'sharding', None))]
        for x in leaves
      ],
    }
  )


def _digest(value: Any) -> str:
  text = json.dumps(value, sort_keys=True, default=repr)
  return hashlib.sha256(text.encode()).hexdigest()


def _read(path: pathlib.Path) -> tuple[str, bytes]:
  """The facts and the program of a file.

  Raises:
    OSError: it cannot be read.
    ValueError: it is damaged.
  """
  data = path.read_bytes()
  facts, checksum, program = data[:64], data[64:96], data[96:]
  if hashlib.sha256(program).digest() != checksum:
    raise ValueError(f'{path} is damaged')
  os.utime(path)
  return facts.decode(), program


def _load(program: bytes) -> Any:
  """The compiled step; None if it cannot be loaded."""
  try:
    step = pickle.loads(zlib.decompress(program))
    return serialize_executable.deserialize_and_load(*step)
  except Exception:  # then it is compiled
    return None


def _write(path: pathlib.Path, facts: str, compiled: Any) -> None:
  try:
    step = pickle.dumps(serialize_executable.serialize(compiled))
    program = zlib.compress(step, 1)
    checksum = hashlib.sha256(program).digest()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, facts.encode() + checksum + program)
    files = sorted(path.parent.glob('*.step'), key=lambda p: p.stat().st_mtime)
    for old in files[:-_MOST]:
      old.unlink(missing_ok=True)
  except Exception:  # a full disk, or a folder of another user
    return
