"""The report of loading: what was done with every tensor."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from vit_jax import text
from vit_jax.weights.metadata import WeightsMetadata

ACTIONS = ('loaded', 'resized', 'reset', 'dropped', 'left_over')


@dataclasses.dataclass(frozen=True)
class TensorRecord:
  """What was done with one tensor.

  Attributes:
    action: one of ACTIONS, which `Report` explains.
    name: name of the tensor in the file.
    path: Flax path of the parameter, such as 'params/head/kernel'; '' if the
      model has no such parameter.
    shape: shape of the parameter; if there is none, of the file's tensor.
    note: the reason in words; programs should use the following attributes.
    file_grid: (height, width) in patches of a position table in the file.
    grid: (height, width) in patches of the table in the model.
    file_classes: number of classes of a head in the file; None if the file has
      no such head.
    classes: number of classes of the head in the model.
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
  """What was done with every tensor of a file and every parameter of a model.

  The action of a record is one of
  - 'loaded': the parameter has the file's values;
  - 'resized': a position table was interpolated to the model's grid;
  - 'reset': the parameter has initial values, because the file has no tensor
    that fits;
  - 'dropped': the model does not need the tensor, for a known reason;
  - 'left_over': the tensor is unknown (with strict=False; otherwise an error).

  Attributes:
    source: name of what was read, for messages.
    format: the format of the file, a key of `known_formats`.
    image_size: (height, width) in pixels that the variables are for.
    records: one record for each tensor.
    metadata: the file's metadata.
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
    """Adds a `TensorRecord`; `numbers` are its grids and numbers of classes."""
    record = TensorRecord(action, name, path, tuple(shape), note, **numbers)
    self.records.append(record)

  def of(self, action: str) -> list[TensorRecord]:
    """The records of one of ACTIONS."""
    return [record for record in self.records if record.action == action]

  @property
  def loaded(self) -> list[TensorRecord]:
    """The records of parameters with the file's values."""
    return self.of('loaded')

  @property
  def resized(self) -> list[TensorRecord]:
    """The records of position tables that were interpolated."""
    return self.of('resized')

  @property
  def reset(self) -> list[TensorRecord]:
    """The records of parameters with initial values."""
    return self.of('reset')

  @property
  def dropped(self) -> list[TensorRecord]:
    """The records of tensors that the model does not need."""
    return self.of('dropped')

  @property
  def left_over(self) -> list[TensorRecord]:
    """The records of unknown tensors."""
    return self.of('left_over')

  @property
  def class_names(self) -> tuple[str, ...] | None:
    """The class names in the file, in the order of the outputs, or None."""
    return self.metadata.classes

  def table(self) -> str:
    """All records as text, with one line for each."""
    return _table(self.records)

  def __str__(self) -> str:
    """The number of records by action, and a line for each unusual one."""
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
