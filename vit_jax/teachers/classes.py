"""Checks that a teacher has the classes of its student."""

from collections.abc import Sequence
import os

from absl import logging

from vit_jax.data.classes import ClassMismatch, match_classes
from vit_jax.recipe.keys import ConfigError


def check_classes(
  what: str | os.PathLike,
  count: int,
  names: Sequence[str] | None,
  num_classes: int,
  class_names: Sequence[str] | None,
  how: str = 'names',
) -> list[int] | None:
  """Compares a teacher's classes with those of the data.

  Args:
    what: name of the teacher, for messages.
    count, names: number and names of the teacher's classes.
    num_classes, class_names: number and names of the classes of the data.
    how: 'names' compares names if both have them; with 'numbers' class i of the
      data is class i of the teacher. A class may have several names (n01440764,
      tench).

  Returns:
    For each class of the data the teacher's number, if the order is another or
    the teacher has more classes; else None.

  Raises:
    ConfigError: the classes or their number differ.
  """
  if how != 'numbers' and names and class_names:
    fix = (
      'Train the teacher on this data, or compare no names, with '
      "data.match_classes='numbers'"
    )
    try:
      match = match_classes(
        class_names, names, 'the data', f'the teacher {what}', fix
      )
    except ClassMismatch as e:
      raise ConfigError(str(e)) from e
    if match.message:
      logging.warning('%s', match.message)
    return None if match.numbers is None else list(match.numbers)
  if count != num_classes:
    raise ConfigError(
      f'the teacher {what} has {count} classes and the data {num_classes}: '
      'train the teacher on the classes of the data, or take another teacher'
    )
  return None
