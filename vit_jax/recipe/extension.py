"""Going on with a finished run: for more epochs, or with other settings.

A run with `run.extend=N` goes on for N epochs after the length that it began
with. From that point on it has the learning rate of a run of the whole length:
10 epochs of a cosine that go on for 5 more have the last third of a cosine of
15 epochs. The state of the optimizer is kept.

A run that goes on after its end may have other settings, such as another
learning rate or batch size (`SETTINGS`). It then stores in `run.extended` where
they began: (finished steps, finished epochs, epochs of run.extend in them).
"""

from collections.abc import Callable
import json
import os
from typing import Any, NamedTuple

from vit_jax.files import as_path, read_text
from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.sections import Config
from vit_jax.training.schedules import Schedule
from vit_jax.weights.steps import FOLDER, absolute, list_steps

# Keys that may change where a finished run goes on. They change what is learned
# from there on, and neither the model nor the arrays of the optimizer.
SETTINGS = (
  'optim.lr',
  'optim.lr_batch',
  'optim.weight_decay',
  'optim.clip',
  'optim.accumulate',
  'optim.momentum',
  'optim.b1',
  'optim.b2',
  'optim.layer_decay',
  'schedule',
  'loss.label_smoothing',
  'data.batch_size',
  'data.crop',
  'data.area',
  'data.aspect',
  'data.flip',
  'data.randaugment',
  'data.color_jitter',
  'data.mixup',
  'data.cutmix',
  'data.switch_prob',
  'data.mix_prob',
  'data.erasing',
)


class Lengthened(NamedTuple):
  """The length and the learning rate of a run.

  Attributes:
    total_steps: length in optimizer steps.
    schedule: step -> learning rate.
    begin: number of steps after which the run is extended; its length if it is
      not.
    extra_steps: what is added to a step so that the sum, divided by the steps
      of an epoch, is the number of epochs. Not 0 only where the batch size
      changed.
  """

  total_steps: int
  schedule: Schedule
  begin: int
  extra_steps: int = 0


def is_setting(key: str) -> bool:
  """Whether a key may change where a finished run goes on."""
  return any(key == k or key.startswith(f'{k}.') for k in SETTINGS)


def lengthened(
  config: Config,
  steps: int,
  steps_per_epoch: float,
  make_schedule: Callable[[int], Schedule],
) -> Lengthened:
  """The length and the learning rate of a run, with `run.extend`.

  Args:
    config: the recipe.
    steps: length in steps without `run.extend`.
    steps_per_epoch: optimizer steps of an epoch.
    make_schedule: length in steps -> schedule.
  """
  if not config.run.extend:
    return Lengthened(steps, make_schedule(max(1, steps)), steps)
  begin, epochs, done = (
    config.run.extended or (steps, steps / steps_per_epoch, 0.0)
  )  # fmt: skip
  begin = int(begin)
  more = max(1, round((config.run.extend - done) * steps_per_epoch))
  extra = round(epochs * steps_per_epoch) - begin
  after = make_schedule(begin + more + extra)
  if config.run.extended:  # the steps before are done
    rate = lambda step: after(step + extra)
  else:
    import jax.numpy as jnp

    before = make_schedule(steps)
    rate = lambda step: jnp.where(step < begin, before(step), after(step))
  return Lengthened(begin + more, Schedule(rate, after.peak), begin, extra)


def adopt(
  config: Config, stored: dict[str, Any], changed: list[str], workdir: Any
) -> list[str]:
  """Sets `run.extend` and `run.extended` of a run that goes on.

  Args:
    config: the new recipe; changed in place.
    stored: {key: value} of the recipe that the workdir stores.
    changed: keys that differ in the two.
    workdir: of the run.

  Returns:
    'key=value' of what the recipe does not say and the run has.

  Raises:
    ConfigError: the new recipe has fewer epochs than the run, or other settings
      before the run has finished.
  """
  before = stored.get('run.extend') or 0.0
  config.run.extended = tuple(stored.get('run.extended') or ())
  if config.run.extend is None:
    config.run.extend = before or None
    return [f'run.extend={before:g}'] if before else []
  if config.run.extend < before:
    raise ConfigError(
      f'run.extend={config.run.extend:g}: the run of {workdir} goes on for '
      f'{before:g} epochs already. The number counts from the length that the '
      f'run began with: give at least {before:g}'
    )
  if config.run.extend == before:
    return []
  end = finished(workdir)
  if end is not None:
    config.run.extended = (*end, before)
  elif any(map(is_setting, changed)):
    raise ConfigError(
      f'the run of {workdir} has not finished, and its settings can change '
      f'only at its end ({", ".join(filter(is_setting, changed))}): let it '
      'finish with its own settings first'
    )
  return []


def begin_after(config: Config, workdir: str | os.PathLike) -> None:
  """Sets `run.extended` of a new run that goes on from the end of another.

  Args:
    config: a recipe with `run.resume` and `run.extend`; changed in place.
    workdir: `run.resume`.

  Raises:
    ConfigError: that run has not finished.
  """
  end = finished(workdir)
  if end is None:
    raise ConfigError(
      f'run.extend={config.run.extend:g} goes on from the end of a run, and '
      f'run.resume={os.fspath(workdir)!r} has no finished one'
    )
  config.run.extended = (*end, 0.0)


def begins(config: Config, workdir: str | os.PathLike) -> bool:
  """Whether no step has been made since the settings were allowed to change."""
  return bool(config.run.extended) and (
    _newest(workdir) == int(config.run.extended[0])
  )


def finished(workdir: str | os.PathLike) -> tuple[int, float] | None:
  """(steps, epochs) of a finished run; None if its last step is not its end."""
  try:
    summary = json.loads(read_text(as_path(workdir) / 'summary.json'))
    step, epochs = int(summary['step']), float(summary['epochs'])
  except (OSError, ValueError, TypeError, KeyError):
    return None
  return (step, epochs) if step == _newest(workdir) else None


def _newest(workdir: str | os.PathLike) -> int | None:
  steps = list_steps(absolute(workdir) / FOLDER)
  return int(steps[-1].name) if steps else None


def in_words(length: Lengthened, steps_per_epoch: float, step: int) -> str:
  """What happens to the learning rate of a run that goes on.

  Args:
    length: of the run.
    steps_per_epoch: optimizer steps of an epoch.
    step: number of finished steps.
  """
  epochs = lambda n: f'{(n + length.extra_steps) / steps_per_epoch:.4g}'
  rate = lambda n: f'{float(length.schedule(n)):.3g}'
  begin, total = length.begin, length.total_steps
  now = max(step, begin)
  return (
    f'going on after {epochs(begin)} epochs: steps {begin:,} to {total:,}. '
    'From there on the learning rate is that of a schedule of '
    f'{epochs(total)} epochs: {rate(now)} at step {now:,}, {rate(total - 1)} '
    'at the last. The state of the optimizer is kept'
  )
