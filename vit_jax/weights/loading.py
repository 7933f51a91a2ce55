"""Reads every parameter of a model from the arrays of a file."""

import math
import re

from flax import linen as nn
import numpy as np

from vit_jax.weights import naming
from vit_jax.weights.detection import Detected
from vit_jax.weights.report import Report
from vit_jax.weights.rules import Rule, ShapeMismatch
from vit_jax.weights.tables import TABLE, Grid, Tables

# Paths of the parameters of classification heads.
HEAD = re.compile(r'params/\w*head\w*/(kernel|bias)')


class Loader:
  """Loads the parameters for `engine.from_state_dict`, in one pass.

  Attributes:
    problems: a line for each tensor that does not fit; empty after success.
    fresh: paths of the parameters that keep the model's initial values.
  """

  def __init__(
    self,
    model: nn.Module,
    detected: Detected,
    shapes: dict[str, naming.Shape],
    grid: Grid | None,
    report: Report,
    source_image_size: tuple[int, int] | None,
  ):
    self.problems: list[str] = []
    self.fresh: list[str] = []
    self._model, self._report = model, report
    self._shapes, self._grid = shapes, grid
    self._fmt, self._assigned = detected.fmt, detected.assigned
    self._arrays = detected.arrays
    self._class_row: np.ndarray | None = None
    self._tables = Tables(
      model, detected.fmt, detected.arrays, source_image_size
    )

  def run(self, strict: bool, new_head: bool = False) -> dict[str, np.ndarray]:
    """Loads all parameters that the file has, and fills the report.

    Args:
      strict, new_head: as in `engine.from_state_dict`.

    Returns:
      {Flax path: float32 array}.
    """
    optional = naming.assign(
      naming.rules_of(self._model, self._fmt),
      [path for path in naming.OPTIONAL if path not in self._shapes],
    )
    lacking = {name: path for path, (_, name) in optional.items()}
    heads = self._heads_to_reset(lacking, new_head)
    flat, used = {}, set()
    for path, shape in self._shapes.items():
      if path not in self._assigned:
        self.problems.append(f'{path} has no name in format {self._fmt}')
        continue
      rule, name = self._assigned[path]
      used.add(name)
      if path in heads:
        self.fresh.append(path)
        self._report.add(
          'reset',
          name,
          path,
          shape,
          heads[path],
          file_classes=self._file_classes(path),
          classes=shape[-1],
        )
      elif name in self._arrays:
        value = self._load(rule, name, path, shape)
        if value is not None:
          flat[path] = value
      elif strict:
        self.problems.append(f'missing {name}, expected {self._released(path)}')
      else:
        self.fresh.append(path)
        self._report.add('reset', name, path, shape, 'not in the file')
    if self._class_row is not None and 'params/cls' in flat:
      flat['params/cls'] = flat['params/cls'] + self._class_row
    self._record_left_over(used, lacking, strict)
    return flat

  def _heads_to_reset(
    self, lacking: dict[str, str], new_head: bool
  ) -> dict[str, str]:
    """The heads that get initial values: {path of a parameter: reason}.

    Args:
      lacking: {released name: path} of parameters that the file may have and
        the model has not.
      new_head: reset every head.
    """
    file_has_pre_logits = any(
      name in self._arrays
      for name, path in lacking.items()
      if '/pre_logits/' in path
    )
    heads = [
      path
      for path in self._shapes
      if HEAD.fullmatch(path) and path in self._assigned
    ]
    reasons: dict[str, str] = {}
    for path in heads:
      module = path.rpartition('/')[0]
      classes = self._shapes[path][-1]
      if self._assigned[path][1] not in self._arrays:
        reasons.setdefault(module, 'the file has no head')
      elif new_head:
        reasons[module] = 'the classes of the file are others'
      elif (
        path.endswith('/bias')
        and (in_file := self._file_classes(path)) != classes
      ):
        reasons[module] = (
          f'{in_file} classes in the file, {classes} in the model'
        )
      elif file_has_pre_logits:
        reasons.setdefault(
          module, "the file's head takes its pre_logits, which the model lacks"
        )
    return {
      path: reasons[path.rpartition('/')[0]]
      for path in heads
      if path.rpartition('/')[0] in reasons
    }

  def _file_classes(self, path: str) -> int | None:
    """Number of classes of a head in the file; None without such a head."""
    _, name = self._assigned[f'{path.rpartition("/")[0]}/bias']
    return math.prod(self._arrays[name].shape) if name in self._arrays else None

  def _released(self, path: str) -> naming.Shape:
    """The shape that a parameter should have in the file."""
    rule, name = self._assigned[path]
    like = naming.abstract(self._shapes[path])
    shape = rule.to_released(like, path, name).shape
    chunks = rule.chunk[1] if rule.chunk else 1
    return (chunks * shape[0], *shape[1:])

  def _load(
    self, rule: Rule, name: str, path: str, shape: naming.Shape
  ) -> np.ndarray | None:
    """Loads one parameter; for a mismatch, None and a line in `problems`."""
    released = self._arrays[name]
    action, note, grids = 'loaded', '', {}
    try:
      if TABLE.fullmatch(path):
        fit = self._tables.compare(tuple(released.shape), shape, self._grid)
        if fit.file_leading and not getattr(self._model, 'class_posemb', True):
          # The file adds a row of its table to the class token, and the model
          # adds none. So the row is added to the parameter of the token.
          self._class_row = np.asarray(released[:, :1], np.float32)
        released, note = self._tables.fit(np.asarray(released), fit)
        grids = {'file_grid': fit.file_grid, 'grid': fit.grid}
        if fit.file_grid != fit.grid:
          action = 'resized'
      value = np.asarray(rule.to_flax(released, shape), np.float32)
    except ShapeMismatch as e:
      self.problems.append(
        f'{name} is {tuple(self._arrays[name].shape)}, expected '
        f'{self._released(path)}{f" ({e})" if str(e) else ""}'
      )
      return None
    if bad := value.size - np.count_nonzero(np.isfinite(value)):
      self.problems.append(f'{name} has {bad} NaN or infinite values')
      return None
    self._report.add(action, name, path, shape, note, **grids)
    return value

  def _record_left_over(
    self, used: set[str], lacking: dict[str, str], strict: bool
  ) -> None:
    """Records the tensors of the file that are not loaded, with the reason."""
    module = naming.map_module(self._model)
    ignored = [*getattr(module, 'IGNORED', ()), r'.*num_batches_tracked']
    has_head = any(HEAD.fullmatch(path) for path in self._shapes)
    for name, x in self._arrays.items():
      if name in used:
        continue
      path, shape = lacking.get(name, ''), tuple(x.shape)
      if any(re.fullmatch(pattern, name) for pattern in ignored):
        reason = 'used in training only'
      elif '/pre_logits/' in path:
        reason = 'the model has no representation layer'
      elif path and not has_head:
        reason = 'the model has no head'
      elif strict:
        self.problems.append(f'left over {name} {shape}')
        continue
      else:
        self._report.add('left_over', name, '', shape)
        continue
      self._report.add('dropped', name, '', shape, reason)
