"""What loading did with every tensor of a file and of a model."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from vit_jax import text
from vit_jax.weights.metadata import WeightsMetadata

ACTIONS = ('loaded', 'resized', 'reset', 'dropped', 'left_over')


@dataclasses.dataclass(frozen=True)
class TensorRecord:
  """What became of one tensor.

  Attributes:
    action: one of ACTIONS, explained in `Report`.
    name: its name in the file.
    path: its Flax path, such as 'params/head/kernel'; '' where the model has
      no such parameter.
    shape: of the model's parameter, or of the file's tensor without one.
    note: the reason, for people; programs read the fields below.
    file_grid: (height, width) in patches of a position table in the file.
    grid: the same in the model.
    file_classes: number of classes of a head in the file, None where the file
      has no such head.
    classes: the same in the model.
  """

  action: str
  name: str
  path: str
  shape: tuple[int, ...]
  note: str = ''
  file_grid: tuple[int, int] | None = None
  grid: tuple[int, int] | None = None
  file_classes: int | None = None
  classes: int | None = None


@dataclasses.dataclass
class Report:
  """Every tensor of a file and of the model, once.

  The actions: `loaded`, taken with the file's values. `resized`, a position
  table interpolated to another grid. `reset`, a parameter with its initial
  values, because the file has none that fits. `dropped`, a known tensor of the
  file that the model has no use for. `left_over`, a tensor of the file that is
  unknown (only with strict=False; an error otherwise).

  Attributes:
    source: what was read, for messages.
    format: the naming that the file uses, a key of `known_formats`.
    image_size: (height, width) in pixels that the variables are for.
    records: one for each tensor.
    metadata: what the file says about itself.
  """

  source: str
  format: str
  image_size: tuple[int, int] | None = None
  records: list[TensorRecord] = dataclasses.field(default_factory=list)
  metadata: WeightsMetadata = dataclasses.field(default_factory=WeightsMetadata)

  def add(
    self,
    action: str,
    name: str,
    path: str,
    shape: Sequence[int],
    note: str = '',
    **numbers: Any,
  ) -> None:
    """Adds a record; `numbers` are the grids and classes of TensorRecord."""
    record = TensorRecord(action, name, path, tuple(shape), note, **numbers)
    self.records.append(record)

  def of(self, action: str) -> list[TensorRecord]:
    """The records of one of ACTIONS."""
    return [record for record in self.records if record.action == action]

  @property
  def loaded(self) -> list[TensorRecord]:
    return self.of('loaded')

  @property
  def resized(self) -> list[TensorRecord]:
    return self.of('resized')

  @property
  def reset(self) -> list[TensorRecord]:
    return self.of('reset')

  @property
  def dropped(self) -> list[TensorRecord]:
    return self.of('dropped')

  @property
  def left_over(self) -> list[TensorRecord]:
    return self.of('left_over')

  @property
  def class_names(self) -> tuple[str, ...] | None:
    return self.metadata.classes

  def table(self) -> str:
    """All tensors, one a line."""
    return _table(self.records)

  def __str__(self) -> str:
    """Counts, and a line for each tensor that was not taken as it is."""
    counts = ', '.join(
      f'{len(self.of(a))} {a.replace("_", " ")}' for a in ACTIONS if self.of(a)
    )
    special = [r for r in self.records if r.action != 'loaded' or r.note]
    first_line = f'{self.source} ({self.format}): {counts or "nothing"}'
    return first_line + ('\n' + _table(special) if special else '')


def _table(records: Sequence[TensorRecord]) -> str:
  rows = [
    (r.action.replace('_', ' '), r.name, text.shape(r.shape), r.note)
    for r in records
  ]
  return '\n'.join(f'  {line}' for line in text.table(rows).splitlines())
