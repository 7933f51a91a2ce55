"""Lengths of a run in steps, whatever the unit they are given in."""

from typing import Any

UNITS = ('steps', 'epochs', 'examples')


def in_steps(
  section: Any, prefix: str, *, steps_per_epoch: float, batch_size: int
) -> float | None:
  """A length that a section gives in steps, epochs or examples, in steps.

  Args:
    section: a section of a recipe, such as `config.schedule`.
    prefix: of the keys, such as 'warmup_' for `warmup_steps`, `warmup_epochs`
      and `warmup_examples`.
    steps_per_epoch: of the run; may be fractional.
    batch_size: of the run.

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
  # A length of 0 in one unit leaves it to the others.
  chosen = {key: steps for key, steps in given.items() if steps} or given
  if len(chosen) > 1:
    raise ValueError(f'{" and ".join(chosen)} are both set: give one of them')
  return next(iter(chosen.values()), None)
