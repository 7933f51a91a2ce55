"""Progress of long work: speed, ETA, the live line."""

import sys
import time


def duration(seconds: float) -> str:
  """'42s', '3m10s', '5h02m', '3d04h'."""
  seconds = max(0, round(seconds))
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

  def __init__(
    self,
    total_steps: int,
    first_step: int,
    batch_size: int,
    flops_per_image: float | None,
    peak: float | None,
    devices: int = 1,
  ):
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
      self._rate = (
        rate if self._rate is None else (0.7 * self._rate + 0.3 * rate)
      )
    speed = {
      'img_per_sec': rate * self._batch,
      'img_per_sec_per_device': rate * self._batch / self._devices,
    }
    if self._flops and self._peak:
      speed['mfu'] = (
        rate * self._batch * self._flops / (self._peak * self._devices)
      )
    if self._rate:
      speed['eta_seconds'] = (self._total - step) / self._rate
    return speed

  def line(self, step: int, epoch: float, values, speed) -> str:
    parts = [
      f'step {step}/{self._total}',
      f'epoch {epoch:.2f}',
      f'loss {float(values["loss"]):.4f}',
      f'lr {float(values["lr"]):.2e}',
      f'{speed["img_per_sec"]:.0f} img/s',
    ]
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
    progress.TextColumn(what),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeRemainingColumn(),
    console=console.Console(stderr=True),
  ) as bar:
    yield from bar.track(items, total=total)
