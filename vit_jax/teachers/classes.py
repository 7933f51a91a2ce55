"""Checks that a teacher has the classes of its student."""

from collections.abc import Sequence
import os

from absl import logging

from vit_jax.recipe.keys import ConfigError


def check_classes(
  what: str | os.PathLike,
  count: int,
  names: Sequence[str] | None,
  num_classes: int,
  class_names: Sequence[str] | None,
) -> None:
  """Checks that a teacher's classes are those of the data, in the same order.

  If both have names, a name that is in both lists must have the same number.
  Names in only one list are reported in the log and allowed, because a class
  may have several names (n01440764, tench).

  Args:
    what: name of the teacher, for messages.
    count, names: number and names of the teacher's classes.
    num_classes, class_names: number and names of the classes of the data.

  Raises:
    ConfigError: the number of classes or their order differs.
  """
  if count != num_classes:
    raise ConfigError(
      f'the teacher {what} has {count} classes and the data {num_classes}: '
      'train the teacher on the classes of the data, or take another teacher'
    )
  if not names or not class_names:
    return
  own, theirs = list(class_names), list(names)
  for i, (a, b) in enumerate(zip(own, theirs, strict=False)):
    if a != b and (a in theirs or b in own):
      raise ConfigError(
        f'the teacher {what} has its classes in another order: class {i} is '
        f'{a!r} in the data and {b!r} for the teacher. Train the teacher on '
        'this data, or use data with the order of the teacher'
      )
  other = [
    f'{a!r} / {b!r}' for a, b in zip(own, theirs, strict=False) if a != b
  ]
  if other:
    logging.warning(
      'the teacher has other names for %d classes than the data (%s); the '
      'order of the classes is taken to be the same',
      len(other),
      ', '.join(other[:3]),
    )
