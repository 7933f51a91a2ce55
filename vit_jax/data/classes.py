"""Whether two lists of classes are the same: by names and order, not counts.

`match_classes` compares the classes of data with those of a model. The data may
have the classes in another order, or only some of them: its labels are then
numbered as the model numbers its outputs. Anything else is an error that shows
both lists.
"""

from collections.abc import Sequence
import dataclasses
import logging

from vit_jax.data.names import normalized

log = logging.getLogger(__name__)

# Whether numbers of classes follow the names, are taken as they are, or belong
# to a new head.
MATCHES = ('names', 'numbers', 'new')
_SHOWN = 8  # names of a list in a message


class ClassMismatch(ValueError):
  """Two lists of classes that are not the same classes."""


@dataclasses.dataclass(frozen=True)
class ClassMatch:
  """How the classes of data are numbered by a model.

  Attributes:
    numbers: of each class of the data, the model's number; None if they are
      equal.
    message: what was found, '' if they are equal.
  """

  numbers: tuple[int, ...] | None = None
  message: str = ''


def match_classes(
  own: Sequence[str],
  reference: Sequence[str],
  own_name: str,
  reference_name: str,
  fix: str = '',
) -> ClassMatch:
  """Compares the classes of data with those of a model, or of other data.

  Args:
    own: class names of the data, in order.
    reference: class names of the model, in order.
    own_name, reference_name: what has them, for messages.
    fix: how the user can go on, for the error.

  Raises:
    ClassMismatch: `own` has a class that `reference` has not, or a name occurs
      twice in lists that differ. The message shows the first difference and
      both lists.
  """
  mine, theirs = [[normalized(x) for x in names] for names in (own, reference)]
  if mine == theirs:
    return ClassMatch()
  number = {name: i for i, name in enumerate(theirs)}
  clear = len(set(mine)) == len(mine) and len(number) == len(theirs)
  if not clear or not set(mine) <= set(theirs):
    raise ClassMismatch(
      f'{own_name} and {reference_name} have different classes: '
      + describe_difference(mine, theirs, own_name, reference_name)
      + (f'\n{fix}' if fix else '')
    )
  kind = 'the same classes in another order'
  if len(mine) < len(theirs):
    kind = f'{len(mine)} of its {len(theirs)} classes'
  return ClassMatch(
    tuple(number[name] for name in mine),
    f'{own_name} has, compared with {reference_name}, {kind}: the classes are '
    'numbered by their names',
  )


def describe_difference(
  own: Sequence[str], reference: Sequence[str], own_name: str, other_name: str
) -> str:
  """The first difference of two lists of classes, and the lists."""
  first = next(
    (i for i, (a, b) in enumerate(zip(own, reference, strict=False)) if a != b),
    min(len(own), len(reference)),
  )
  name = lambda names: repr(names[first]) if first < len(names) else 'missing'
  text = (
    f'class {first} is {name(own)} in {own_name}, {name(reference)} in '
    f'{other_name}'
  )
  for title, names, others in (
    (own_name, own, reference),
    (other_name, reference, own),
  ):
    start = max(0, min(first - 2, len(names) - _SHOWN))
    shown = ', '.join(names[start : start + _SHOWN])
    text += (
      f'\n  {title} ({len(names)}): {"..., " if start else ""}{shown}'
      f'{", ..." if start + _SHOWN < len(names) else ""}'
    )
    only = [x for x in names if x not in set(others)]
    if only:
      text += f'\n    not in the other: {", ".join(only[:_SHOWN])}'
      text += ', ...' if len(only) > _SHOWN else ''
  return text


def replace_names(
  names: Sequence[str], known: Sequence[str] | None, owner: str
) -> list[str]:
  """The names that a user gives for the outputs of a model.

  Args:
    names: given by the user, as many as the model has outputs.
    known: the names that the weights have; None if they have none.
    owner: the weights, for messages.

  Returns:
    The names in the order of the outputs.

  Raises:
    ClassMismatch: a name is that of another output of the weights.
  """
  mine = [normalized(name) for name in names]
  theirs = [normalized(name) for name in known or ()]
  if not theirs or mine == theirs:
    return list(names)
  if sorted(mine) == sorted(theirs):
    log.warning(
      'the class names are those of %s in another order: the order of %s is '
      'kept',
      owner,
      owner,
    )
    return list(known or ())
  number = {name: i for i, name in enumerate(theirs)}
  for i, name in enumerate(mine):
    if number.get(name, i) != i:
      raise ClassMismatch(
        f'the class name {name!r} is given for output {i}, and {owner} has it '
        f'for output {number[name]}: give the names in the order of the outputs'
        f', which begins {", ".join(theirs[:5])}'
      )
  new = [(a, b) for a, b in zip(theirs, mine, strict=False) if a != b]
  log.warning(
    '%d class names of %s are replaced by those given, such as %r by %r',
    len(new),
    owner,
    *new[0],
  )
  return list(names)
