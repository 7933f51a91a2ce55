"""Speed, remaining time and live line of a run; progress bars."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import math
import sys
import time
from typing import Any, TypeVar

from vit_jax.text import duration, is_quiet, line_width

Item = TypeVar('Item')


class Progress:
  """Measures the speed of training and writes the live line.

  The time inside `paused()` (evaluation, saving) does not count, and neither
  does the time before `start` (compilation of the first step).

  Args:
    total_steps: length of the run in steps.
    first_step: number of finished steps when the run was started or resumed.
    batch_size: number of images in a global batch.
    flops_per_image: floating-point operations of a training step, per image;
      None leaves MFU out.
    peak_flops: peak FLOP/s of one device; None leaves MFU out.
    devices: number of devices.
    clock: seconds that only increase.
  """

  def __init__(
    self,
    total_steps: int,
    first_step: int,
    batch_size: int,
    *,
    flops_per_image: float | None = None,
    peak_flops: float | None = None,
    devices: int = 1,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._total, self._batch, self._devices = total_steps, batch_size, devices
    self._flops, self._peak = flops_per_image, peak_flops
    self._clock = clock
    self._rate: float | None = None  # steps per second, smoothed
    self._steps, self._seconds = 0, 0.0  # all that was measured so far
    self._waited = 0.0
    self.start(first_step)

  @property
  def img_per_sec(self) -> float | None:
    """Images per second over all measured steps; None before the first one."""
    return self._batch * self._steps / self._seconds if self._steps else None

  def start(self, step: int) -> None:
    """Measures from now on, at `step` finished steps."""
    self._last_step, self._last_time = step, self._clock()
    self._paused = 0.0

  def seconds(self) -> float:
    """Seconds since the last call of `start` or `update`."""
    return self._clock() - self._last_time

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Context manager: the time inside does not count for the speed."""
    begin = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - begin

  def update(self, step: int, waited: float = 0.0) -> dict[str, float]:
    """The speed since the last call.

    Args:
      step: number of finished steps.
      waited: seconds that the run has waited for its input so far.

    Returns:
      'img_per_sec' and 'img_per_sec_per_device'; 'mfu', the model FLOP/s as a
      fraction of the devices' peak (arXiv:2204.02311, appendix B), if both are
      known; 'input_wait', the fraction of the time that went into waiting for
      images; 'eta_seconds', the time until the end at a smoothed speed. Nothing
      without a new step since the last call, as after the compilation.
    """
    now = self._clock()
    steps = step - self._last_step
    waited, self._waited = waited - self._waited, waited
    if not steps:
      return {}
    seconds = max(1e-9, now - self._last_time - self._paused)
    self._steps += steps
    self._seconds += seconds
    self.start(step)
    rate = steps / seconds
    self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
    images = rate * self._batch
    speed = {
      'img_per_sec': images,
      'img_per_sec_per_device': images / self._devices,
    }
    if self._flops and self._peak:
      speed['mfu'] = images * self._flops / (self._peak * self._devices)
    speed['input_wait'] = min(1.0, max(0.0, waited / seconds))
    speed['eta_seconds'] = (self._total - step) / self._rate
    return speed

  def line(
    self,
    step: int,
    epoch: float,
    values: Mapping[str, Any],
    speed: Mapping[str, float],
  ) -> str:
    """The live line.

    Args:
      step: number of finished steps.
      epoch: passes over the training data so far.
      values: 'loss', 'lr' and, if it is known, 'train_top1'.
      speed: what `update` returned.
    """
    columns = [
      f'step {step}/{self._total}',
      f'epoch {epoch:.2f}',
      f'loss {float(values["loss"]):.4f}',
    ]
    if 'train_top1' in values:
      columns.append(f'top-1 {float(values["train_top1"]):.1%}')
    columns.append(f'lr {float(values["lr"]):.3g}')
    if 'img_per_sec' in speed:
      columns.append(f'{speed["img_per_sec"]:.0f} img/s')
    if self._devices > 1 and speed:
      columns.append(f'{speed["img_per_sec_per_device"]:.0f}/device')
    if 'mfu' in speed:
      columns.append(f'MFU {speed["mfu"]:.1%}')
    if 'eta_seconds' in speed and step < self._total:
      columns.append(f'ETA {duration(speed["eta_seconds"])}')
    if speed.get('input_wait', 0) >= 0.01:
      columns.append(f'input {speed["input_wait"]:.0%}')
    return '  '.join(columns)

  def bar(self, step: int, line: str, epoch: float | None = None) -> str:
    """A bar with the step, the remaining time and what was logged last.

    Args:
      step: number of finished steps.
      line: the newest live line; its loss and speed are shown until the next.
      epoch: passes over the training data so far; None for those of the line.
    """
    filled = 10 * step // self._total
    columns = [x for x in line.split('  ')[1:] if not x.startswith('ETA ')]
    columns.insert(0, f'[{"#" * filled:-<10}] {step}/{self._total}')
    if epoch is not None and len(columns) > 1:
      columns[1] = f'epoch {epoch:.2f}'
    if self._rate:
      left = (self._total - step) / self._rate
      # Among the first columns: narrow terminals cut the last ones.
      columns.insert(4, f'ETA {duration(left)}')
      columns.append(f'{1 / self._rate:.3g} s/step')
    return '  '.join(columns)


class LiveLine:
  """The lowest line of a terminal, replaced by `show` and removed by `clear`.

  Nothing is shown in a pipe, or if the run is quiet.

  Args:
    stream: a text stream; None for the process's own stderr, whatever
      sys.stderr copies to a log.
    period: seconds in which the line is shown once at most.
  """

  def __init__(self, stream: Any = None, period: float = 0.2):
    stream = sys.__stderr__ if stream is None else stream
    # sys.__stderr__ is None in a program without a console.
    is_terminal = stream is not None and stream.isatty()
    self._stream = stream if is_terminal and not is_quiet() else None
    self._period, self._shown, self._is_empty = period, -math.inf, True

  def show(self, make_line: Callable[[], str]) -> None:
    """Shows the line that a function makes.

    Columns, which two spaces separate, are left out where the terminal ends.
    """
    if self._stream is None:
      return
    if time.monotonic() - self._shown >= self._period:
      self._shown, self._is_empty = time.monotonic(), False
      line, width = make_line(), line_width() - 1
      while len(line) > width and '  ' in line:
        line = line[: line.rindex('  ')]
      line = line[:width]
      self._stream.write(f'\r{line}\x1b[K')
      self._stream.flush()

  def clear(self) -> None:
    """Removes the line, before something else is printed."""
    if self._stream is not None and not self._is_empty:
      self._is_empty = True
      self._stream.write('\r\x1b[K')
      self._stream.flush()


def progress_bar(
  items: Iterable[Item], total: int, label: str
) -> Iterator[Item]:
  """Iterates over items, and shows a progress bar if stderr is a terminal.

  Args:
    items: what to iterate over.
    total: number of items.
    label: text at the left of the bar.
  """
  if not sys.stderr.isatty() or is_quiet():
    yield from items
    return
  from rich import console, progress

  with progress.Progress(
    progress.TextColumn(label),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeRemainingColumn(),
    console=console.Console(stderr=True),
    transient=True,  # the results that follow say more
  ) as bar:
    yield from bar.track(items, total=total)


class ImageProgress:
  """A context that shows how far a job over images is, on stderr.

  On a terminal it is a bar; elsewhere, such as in the log of a batch system, a
  line now and then. Both have the images done, img/s and the remaining time.

  Args:
    total: number of images.
    label: text at the left.
    period: seconds from line to line.
    clock: seconds that only increase.
  """

  def __init__(
    self,
    total: int,
    label: str,
    *,
    period: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._total, self._label, self._period = total, label, period
    self._clock, self._done, self._bar = clock, 0, None
    self._start = self._said = clock()

  def __enter__(self) -> 'ImageProgress':
    if is_quiet():
      self._period = math.inf
    elif sys.stderr.isatty():
      from rich import console, progress

      self._bar = progress.Progress(
        progress.TextColumn(self._label),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn('{task.fields[speed]}'),
        console=console.Console(stderr=True),
      )
      self._bar.start()
      self._bar.add_task('', total=self._total, speed='')
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._said > self._start:  # a long job
      print(self.line(), file=sys.stderr, flush=True)

  def advance(self, images: int = 1) -> None:
    """Adds to the images that are done."""
    self._done += images
    if self._bar is not None:
      self._bar.update(
        self._bar.task_ids[0], completed=self._done, speed=self._speed()
      )
    elif self._clock() - self._said >= self._period:
      self._said = self._clock()
      print(self.line(), file=sys.stderr, flush=True)

  def line(self) -> str:
    """'predicting: 1,000 of 20,000 images  250 img/s  ETA 1m16s'."""
    return (
      f'{self._label}: {self._done:,} of {self._total:,} images  '
      f'{self._speed()}'
    )

  def _speed(self) -> str:
    seconds = self._clock() - self._start
    if not self._done or seconds <= 0:
      return ''
    speed = self._done / seconds
    left = (self._total - self._done) / speed
    return f'{speed:.4g} img/s' + (f'  ETA {duration(left)}' if left else '')
