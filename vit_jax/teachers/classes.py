"""Whether a teacher and a student have the same classes."""

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
  """Checks that a teacher's classes are the data's, in the same order.

  Names are compared where both have them. A name that both know must have the
  same number; names that only one knows are reported in the log, because the
  same class may go by several (n01440764, tench).

  Args:
    what: the teacher, for messages.
    count, names: number and names of the teacher's classes.
    num_classes, class_names: those of the data.

  Raises:
    ConfigError: another number of classes, or another order.
  """
  if count != num_classes:
    raise ConfigError(
      f'the teacher {what} has {count} classes, the data {num_classes}: '
      'teacher and student must tell the same classes apart'
    )
  if not names or not class_names:
    return
  own, theirs = list(class_names), list(names)
  for i, (a, b) in enumerate(zip(own, theirs, strict=False)):
    if a != b and (a in theirs or b in own):
      raise ConfigError(
        f'the teacher {what} has its classes in another order: class {i} is '
        f'{a!r} in the data, {b!r} for the teacher. Train the teacher on '
        'this data, or order the data as the teacher was trained'
      )
  other = [
    f'{a!r} / {b!r}' for a, b in zip(own, theirs, strict=False) if a != b
  ]
  if other:
    logging.warning(
      '%d classes have other names for the teacher than in the data; their '
      'order is taken to be the same: %s',
      len(other),
      ', '.join(other[:3]),
    )
