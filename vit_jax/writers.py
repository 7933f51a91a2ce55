"""What a run writes: the live line, metrics.jsonl, TensorBoard, summary.json.

The only place that imports tensorboardX. Only process 0 writes.
"""

import json
import math
import platform
import subprocess
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax

import vit_jax


def duration(seconds: float) -> str:
  """'42s', '3m10s', '5h02m', '3d04h'."""
  seconds = max(0, int(round(seconds)))
  if seconds < 60:
    return f'{seconds}s'
  minutes, seconds = divmod(seconds, 60)
  if minutes < 60:
    return f'{minutes}m{seconds:02d}s'
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f'{hours}h{minutes:02d}m'
  days, hours = divmod(hours, 24)
  return f'{days}d{hours:02d}h'


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

  def __init__(self, workdir, *, resumed_step: int = 0,
               tensorboard: bool = True, main: bool = True):
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
          str(self.workdir / 'tensorboard'), purge_step=resumed_step or None)

  def write(self, step: int, values: dict[str, Any], *, epoch: float = 0.0,
            prefix: str = ''):
    """Appends one line of values, and the same to TensorBoard."""
    if not self._main:
      return
    values = {prefix + k: _plain(v) for k, v in values.items()}
    line = json.dumps({'step': step, 'epoch': round(epoch, 4), 'seconds': round(
        time.time() - self._start, 2), **values})
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
      _write_json(self.workdir / 'summary.json', {
          **values, 'seconds': round(time.time() - self._start, 2),
          'versions': versions(), 'git_revision': git_revision(),
          'device': jax.devices()[0].device_kind,
          'devices': jax.device_count(), 'processes': jax.process_count()})

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
  for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain',
               'numpy'):
    found[name] = metadata.version(name)
  return found


def git_revision() -> str:
  """Revision of the source tree, '' where it is not a git checkout."""
  folder = epath.Path(vit_jax.__file__).parent
  try:
    return subprocess.run(
        ['git', '-C', str(folder), 'describe', '--always', '--dirty'],
        capture_output=True, text=True, timeout=10, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''


class Progress:
  """The live line: step, loss, lr, img/s, MFU, ETA.

  Args:
    total_steps: of the run.
    first_step: where this process started.
    batch_size: global.
    flops_per_image: of a training step; None leaves MFU out.
    peak: FLOP/s of one device; None leaves MFU out.
    devices: how many take part.
  """

  def __init__(self, total_steps: int, first_step: int, batch_size: int,
               flops_per_image: float | None, peak: float | None,
               devices: int = 1):
    self._total, self._batch = total_steps, batch_size
    self._flops, self._peak, self._devices = flops_per_image, peak, devices
    self._last_step, self._last_time = first_step, time.time()
    self._paused = 0.0
    self._rate = None  # steps per second, smoothed
    self._steps = self._seconds = 0

  @property
  def img_per_sec(self) -> float | None:
    """Of all steps that were measured; None before the first."""
    return self._batch * self._steps / self._seconds if self._steps else None

  def pause(self, seconds: float):
    """Time that was not training (evaluation, the first compilation)."""
    self._paused += seconds

  def restart(self, step: int):
    """Starts measuring afresh at `step` (after compilation)."""
    self._last_step, self._last_time = step, time.time()
    self._paused = 0.0

  def update(self, step: int) -> dict[str, float]:
    """Speed since the last call: img/s, img/s per device, MFU, ETA seconds."""
    now = time.time()
    seconds = max(1e-9, now - self._last_time - self._paused)
    rate = (step - self._last_step) / seconds
    self._steps += step - self._last_step
    self._seconds += seconds
    self._last_step, self._last_time, self._paused = step, now, 0.0
    if rate > 0:
      self._rate = rate if self._rate is None else (
          0.7 * self._rate + 0.3 * rate)
    speed = {'img_per_sec': rate * self._batch,
             'img_per_sec_per_device': rate * self._batch / self._devices}
    if self._flops and self._peak:
      speed['mfu'] = rate * self._batch * self._flops / (
          self._peak * self._devices)
    if self._rate:
      speed['eta_seconds'] = (self._total - step) / self._rate
    return speed

  def line(self, step: int, epoch: float, values, speed) -> str:
    parts = [f'step {step}/{self._total}', f'epoch {epoch:.2f}',
             f'loss {float(values["loss"]):.4f}',
             f'lr {float(values["lr"]):.2e}',
             f'{speed["img_per_sec"]:.0f} img/s']
    if self._devices > 1:
      parts.append(f'{speed["img_per_sec_per_device"]:.0f}/device')
    if 'mfu' in speed:
      parts.append(f'MFU {speed["mfu"]:.1%}')
    if 'eta_seconds' in speed and step < self._total:
      parts.append(f'ETA {duration(speed["eta_seconds"])}')
    return '  '.join(parts)


def progress_bar(items, total: int, what: str):
  """Iterates with a rich progress bar and ETA, on a terminal; else plainly."""
  if not sys.stderr.isatty():
    yield from items
    return
  from rich import console, progress
  with progress.Progress(
      progress.TextColumn(what), progress.BarColumn(),
      progress.MofNCompleteColumn(), progress.TimeRemainingColumn(),
      console=console.Console(stderr=True)) as bar:
    yield from bar.track(items, total=total)
