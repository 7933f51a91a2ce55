"""What a run writes: the live line, metrics.jsonl, TensorBoard, summary.json.

The only place that imports tensorboardX. Only process 0 writes.
"""

import json
import math
import platform
import subprocess
import time
from typing import Any

from absl import logging
from etils import epath
import jax

import vit_jax


def _plain(value):
  """A JSON number; non-finite values become strings, which JSON can hold."""
  value = float(value)
  return value if math.isfinite(value) else str(value)


class Writer:
  """Writes one run's metrics into its workdir.

  Args:
    workdir: the run's directory.
    resumed_step: lines of metrics.jsonl beyond it belong to steps that will be
      run again, and are removed.
    tensorboard: also write event files.
    main: False for all processes but the first: nothing is written.
  """

  def __init__(
    self,
    workdir,
    *,
    resumed_step: int = 0,
    tensorboard: bool = True,
    main: bool = True,
  ):
    self._main = main
    self.workdir = epath.Path(workdir)
    self._start = time.time()
    self._board = None
    if not main:
      return
    self.workdir.mkdir(parents=True, exist_ok=True)
    self._path = self.workdir / 'metrics.jsonl'
    lines = []
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        try:
          if json.loads(line)['step'] <= resumed_step:
            lines.append(line)
        except (ValueError, KeyError):  # half a line of a killed run
          pass
    self._lines = lines
    self._local = '://' not in str(self.workdir)
    self._path.write_text(''.join(f'{x}\n' for x in lines))
    if tensorboard:
      import tensorboardX

      self._board = tensorboardX.SummaryWriter(
        str(self.workdir / 'tensorboard'), purge_step=resumed_step or None
      )

  def write(
    self,
    step: int,
    values: dict[str, Any],
    *,
    epoch: float = 0.0,
    prefix: str = '',
  ):
    """Appends one line of values, and the same to TensorBoard."""
    if not self._main:
      return
    values = {prefix + k: _plain(v) for k, v in values.items()}
    line = json.dumps(
      {
        'step': step,
        'epoch': round(epoch, 4),
        'seconds': round(time.time() - self._start, 2),
        **values,
      }
    )
    if self._local:
      with self._path.open('a') as f:
        f.write(line + '\n')
    else:  # object stores cannot append
      self._lines.append(line)
      self._path.write_text(''.join(f'{x}\n' for x in self._lines))
    if self._board is not None:
      for key, value in values.items():
        self._board.add_scalar(key, float(value), step)

  def say(self, text: str):
    """One line for the person who watches."""
    if self._main:
      print(text, flush=True)
      logging.debug('%s', text)

  def config(self, config_json: dict[str, Any]):
    if self._main:
      _write_json(self.workdir / 'config.json', config_json)

  def summary(self, values: dict[str, Any]):
    """WORKDIR/summary.json: results, wall time, versions, revision, device."""
    if self._main:
      _write_json(
        self.workdir / 'summary.json',
        {
          **values,
          'seconds': round(time.time() - self._start, 2),
          'versions': versions(),
          'git_revision': git_revision(),
          'device': jax.devices()[0].device_kind,
          'devices': jax.device_count(),
          'processes': jax.process_count(),
        },
      )

  def close(self):
    if self._board is not None:
      self._board.close()


def _write_json(path, value):
  """Atomically: a reader never sees half a file."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(json.dumps(value, indent=2) + '\n')
  temporary.replace(path)


def versions() -> dict[str, str]:
  from importlib import metadata

  found = {'vit_jax': vit_jax.__version__, 'python': platform.python_version()}
  for name in (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'numpy',
  ):
    found[name] = metadata.version(name)
  return found


def git_revision() -> str:
  """Revision of the source tree, '' where it is not a git checkout."""
  folder = epath.Path(vit_jax.__file__).parent
  try:
    return subprocess.run(
      ['git', '-C', str(folder), 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''
