"""Converts lengths in steps, epochs or examples to steps."""

from typing import Any

UNITS = ('steps', 'epochs', 'examples')


def in_steps(
  section: Any, prefix: str, *, steps_per_epoch: float, batch_size: int
) -> float | None:
  """A length of a recipe's section in steps, whatever its unit.

  Args:
    section: a section of a recipe, such as `config.schedule`.
    prefix: prefix of the keys, such as 'warmup_' for `warmup_steps`,
      `warmup_epochs` and `warmup_examples`.
    steps_per_epoch: optimizer steps of an epoch; may be fractional.
    batch_size: number of images in a global batch.

  Returns:
    The length, which may be a fraction of a step; None if no unit is given.

  Raises:
    ValueError: several units are given.
  """
  factors = (1, steps_per_epoch, 1 / batch_size)
  given = {}
  for unit, factor in zip(UNITS, factors, strict=True):
    value = section.get(f'{prefix}{unit}')
    if value is not None:
      given[f'{prefix}{unit}'] = value * factor
  # A length of 0 does not count if another unit is set.
  chosen = {key: steps for key, steps in given.items() if steps} or given
  if len(chosen) > 1:
    raise ValueError(f'{" and ".join(chosen)} are both set: give one of them')
  return next(iter(chosen.values()), None)
