"""What loading did with every tensor."""

import dataclasses
from typing import Any

ACTIONS = ('loaded', 'resized', 'reset', 'dropped', 'left_over')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor: its released name, its Flax path, and what became of it."""

  action: str  # ACTIONS
  name: str
  path: str  # '' for one that the model does not have
  shape: tuple[int, ...]
  note: str = ''


@dataclasses.dataclass
class Report:
  """Every tensor of a file and of the model, once.

  `loaded`: taken with its values. `resized`: a position table on another grid.
  `reset`: keeps its initialisation. `dropped`: known, and the model lacks it.
  `left_over`: unknown, only with strict=False. `metadata` is the file's own:
  'classes', 'image_size' and the like.
  """

  source: str
  format: str
  entries: list[Entry] = dataclasses.field(default_factory=list)
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

  def add(self, action: str, name: str, path: str, shape, note: str = ''):
    self.entries.append(Entry(action, name, path, tuple(shape), note))

  def of(self, action: str) -> list[Entry]:
    return [e for e in self.entries if e.action == action]

  @property
  def loaded(self) -> list[Entry]:
    return self.of('loaded')

  @property
  def resized(self) -> list[Entry]:
    return self.of('resized')

  @property
  def reset(self) -> list[Entry]:
    return self.of('reset')

  @property
  def dropped(self) -> list[Entry]:
    return self.of('dropped')

  @property
  def left_over(self) -> list[Entry]:
    return self.of('left_over')

  @property
  def class_names(self) -> list[str] | None:
    return self.metadata.get('classes')

  def table(self) -> str:
    """All tensors, one a line."""
    return _table(self.entries)

  def __str__(self) -> str:
    """Counts, and a line for each tensor that was not taken as it is."""
    counts = ', '.join(
      f'{len(self.of(a))} {a.replace("_", " ")}' for a in ACTIONS if self.of(a)
    )
    special = [e for e in self.entries if e.action != 'loaded' or e.note]
    head = f'{self.source} ({self.format}): {counts or "nothing"}'
    return head + ('\n' + _table(special) if special else '')


def _table(entries) -> str:
  rows = [
    (
      e.action.replace('_', ' '),
      e.name,
      'x'.join(map(str, e.shape)) or 'scalar',
      e.note,
    )
    for e in entries
  ]
  widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
  return '\n'.join(
    f'  {a:{widths[0]}}  {n:{widths[1]}}  {s:{widths[2]}}  {note}'.rstrip()
    for a, n, s, note in rows
  )
