"""Writes metrics.jsonl, TensorBoard events, config and summary of a run.

This is the only module that imports tensorboardX. Only process 0 writes; the
`Writer` of the other processes does nothing.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

from absl import logging
from etils import epath
import jax
import numpy as np

import vit_jax
from vit_jax.files import (
  as_path,
  is_remote,
  read_regular,
  upload,
  write_atomically,
)
from vit_jax.training.trackers import Trackers

# Seconds after which a bucket gets the metrics again. An object is replaced as
# a whole, and a bucket allows one change of an object in a second.
_UPLOAD_SECONDS = 20.0
# Beginnings of the names of values that are about the machine, not the model.
_SYSTEM = (
  'eta_',
  'goodput',
  'img_per_sec',
  'input_wait',
  'mfu',
  'steps_repeated',
  'time_',
)
# Values by which TensorBoard compares runs.
_COMPARED = ('eval/test_top1', 'eval/test_loss', 'train/loss')
# Packages whose versions can change the numbers of a run.
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
)


class Writer:
  """Writes one run's metrics into its workdir.

  Args:
    workdir: the run's directory, local or remote.
    resumed_step: number of finished steps of the resumed run. Lines that a
      killed run wrote about later steps are removed, because these steps run
      again.
    tensorboard: also write event files into WORKDIR/tensorboard.
    enabled: False writes nothing, for all processes but process 0.
    trackers: names of other programs that get the metrics, see
      `vit_jax.training.trackers`.
    name: of the run, for them.
    recipe: {'section.key': value} for them.
    compared: keys of the recipe that TensorBoard shows in its table of runs.

  Attributes:
    kept: the newest value of each name in the lines that are kept.
    last: the same with the lines that are removed.
    best: {eval set: (best top-1 accuracy, its step)}.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    resumed_step: int = 0,
    tensorboard: bool = True,
    enabled: bool = True,
    trackers: Sequence[str] = (),
    name: str = '',
    recipe: Mapping[str, Any] | None = None,
    compared: Sequence[str] = (),
  ):
    self.workdir = as_path(workdir)
    self._enabled = enabled
    self._start = time.monotonic()
    self._board, self._board_dir = None, ''
    self._remote, self._uploaded = is_remote(workdir), self._start
    self._resumed_step, self._resumed_keys = resumed_step, set()
    self.kept: dict[str, Any] = {}
    self.last: dict[str, Any] = {}
    self.best: dict[str, tuple[float, int]] = {}
    if not enabled:
      return
    self.workdir.mkdir(parents=True, exist_ok=True)
    self._path = self.workdir / 'metrics.jsonl'
    self._lines = []
    for line, values in sound_lines(self._path):
      self.last.update(values)
      if values['step'] > resumed_step:
        continue
      self.kept.update(values)
      self._note_best(values['step'], values)
      self._lines.append(line)
      if values['step'] == resumed_step:
        self._resumed_keys |= values.keys()
    self._rewrite()
    if tensorboard:
      tensorboardX = _import_tensorboardx()
      # TensorBoard drops the events of `purge_step` and of all later steps.
      self._board_dir = str(self.workdir / 'tensorboard')
      if self._remote:
        self._board_dir = tempfile.mkdtemp(prefix='vit_jax.')
      self._board = tensorboardX.SummaryWriter(
        self._board_dir,
        purge_step=resumed_step + 1,
        # A killed run loses the events of the last seconds.
        flush_secs=10,
        # tensorboardX names files by the second, and a second file of the same
        # name would replace the first.
        filename_suffix=f'.{time.time_ns()}',
      )
    recipe = recipe or {}
    self._describe({key: recipe[key] for key in compared})
    self._trackers = Trackers(
      trackers, self.workdir, name, recipe, bool(resumed_step)
    )

  def write(
    self,
    step: int,
    values: Mapping[str, Any],
    *,
    epoch: float = 0.0,
    prefix: str = '',
  ) -> None:
    """Appends one line of values, and the same values to TensorBoard.

    Args:
      step: number of finished steps.
      values: scalars by name. NaN and infinities become strings, because JSON
        has no such numbers.
      epoch: passes over the training data so far.
      prefix: added in front of every name, such as 'test_'.
    """
    if not self._enabled:
      return
    scalars = {prefix + k: float(v) for k, v in values.items()}
    self._note_best(step, scalars)
    line = json.dumps(
      {
        'step': step,
        'epoch': round(epoch, 4),
        'seconds': round(self._seconds(), 2),
        **{k: v if math.isfinite(v) else str(v) for k, v in scalars.items()},
      }
    )
    if self._remote:  # nothing can be appended to an object
      self._lines.append(line)
    else:
      with self._path.open('a') as file:
        file.write(line + '\n')
    named = {_board_name(name, prefix): v for name, v in scalars.items()}
    if self._board is not None:
      for name, value in named.items():
        self._board.add_scalar(name, value, step)
    self._trackers.scalars(step, {'epoch': epoch, **named})
    if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
      self.flush()

  def image(self, step: int, name: str, picture: Any) -> None:
    """Shows a picture, given as an image of Pillow, in TensorBoard."""
    if self._board is not None:
      pixels = np.asarray(picture.convert('RGB'))
      self._board.add_image(name, pixels, step, dataformats='HWC')
    if self._enabled:
      self._trackers.image(step, name, picture)

  def _describe(self, recipe: Mapping[str, Any]) -> None:
    """Adds the keys of the recipe to TensorBoard's table of runs."""
    if self._board is None or self._board.file_writer is None or not recipe:
      return
    from tensorboardX.summary import hparams

    plain = {
      k: v if isinstance(v, bool | int | float | str) else json.dumps(v)
      for k, v in recipe.items()
      if v is not None
    }
    # Beside the scalars, whose last values the table then shows, and not in a
    # folder of its own, as `SummaryWriter.add_hparams` has it.
    for summary in hparams(plain, dict.fromkeys(_COMPARED)):
      self._board.file_writer.add_summary(summary)

  def _note_best(self, step: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
      eval_set = name.removesuffix('_top1')
      if name == eval_set or eval_set == 'train' or isinstance(value, str):
        continue
      # Of two equal accuracies the later one counts, as for the checkpoints
      # that are kept.
      if value >= self.best.get(eval_set, (-1.0, 0))[0]:
        self.best[eval_set] = value, step

  def has_results(self, step: int, eval_set: str = '') -> bool:
    """Whether the stopped run wrote results of the step that it goes on from.

    Args:
      step: False for all steps but that one.
      eval_set: name; '' for any.
    """
    return step == self._resumed_step and any(
      key == f'{eval_set}_top1' if eval_set else key.endswith('_top1')
      for key in self._resumed_keys - {'train_top1'}
    )

  def config(self, recipe: Mapping[str, Any]) -> None:
    """Writes the recipe, given as plain JSON values, to WORKDIR/config.json."""
    self._write_json('config.json', recipe)

  def summary(self, values: Mapping[str, Any]) -> None:
    """Writes WORKDIR/summary.json.

    Wall time in seconds, versions of packages, git revision and devices are
    added to `values`.
    """
    self._write_json(
      'summary.json',
      {
        **values,
        'seconds': round(self._seconds(), 2),
        'versions': versions(),
        'git_revision': git_revision(),
        'device': jax.devices()[0].device_kind,
        'devices': jax.device_count(),
        'processes': jax.process_count(),
      },
    )

  def flush(self) -> None:
    """Writes to a bucket what it does not have yet.

    Local files have every line at once.
    """
    if not self._enabled or not self._remote:
      return
    self._uploaded = time.monotonic()
    self._rewrite()
    if self._board is not None:
      self._board.flush()
      upload(self._board_dir, self.workdir / 'tensorboard')

  def close(self) -> None:
    """Flushes and closes the files."""
    self.flush()
    if self._enabled:
      self._trackers.close()
    if self._board is not None:
      self._board.close()
      if self._remote:
        upload(self._board_dir, self.workdir / 'tensorboard')
        shutil.rmtree(self._board_dir)

  def _seconds(self) -> float:
    return time.monotonic() - self._start

  def _rewrite(self) -> None:
    write_atomically(self._path, ''.join(f'{x}\n' for x in self._lines))

  def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
    if self._enabled:
      text = json.dumps(_without_nan(value), indent=2, allow_nan=False)
      write_atomically(self.workdir / name, text + '\n')


def _import_tensorboardx() -> Any:
  """The module tensorboardX, without PyTorch.

  Where PyTorch is installed, tensorboardX imports it, to accept its tensors.
  That takes 1.5 seconds, and nothing here is a tensor.
  """
  without = 'torch' not in sys.modules
  if without:
    sys.modules['torch'] = cast(Any, None)  # makes `import torch` fail
  try:
    import tensorboardX
  finally:
    if without:
      del sys.modules['torch']
  return tensorboardX


def _board_name(name: str, prefix: str) -> str:
  """The name in TensorBoard: train/NAME, eval/SET_NAME or system/NAME."""
  if prefix:
    return f'eval/{name}'
  return f'system/{name}' if name.startswith(_SYSTEM) else f'train/{name}'


def sound_lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
  """The sound lines of a metrics file, with their values.

  Args:
    path: metrics.jsonl of a workdir; a missing file has no lines.

  Returns:
    (line, its values) for each line. Damaged lines are counted in the log.
  """
  lines, damaged = [], 0
  for data in read_regular(path).split(b'\n') if path.exists() else ():
    if not data.strip():
      continue
    try:
      line = data.decode()
      values = json.loads(line)
      if not isinstance(values['step'], int):
        raise TypeError('a step is a whole number')
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
      damaged += 1
      continue
    lines.append((line, values))
  if damaged:  # a killed run can leave half a line
    logging.warning(
      '%s: %d damaged lines were left out of %d',
      path,
      damaged,
      damaged + len(lines),
    )
  return lines


def _without_nan(value: Any) -> Any:
  """The same JSON values, with null for the numbers that JSON lacks."""
  if isinstance(value, Mapping):
    return {key: _without_nan(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_nan(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def versions() -> dict[str, str]:
  """Versions of vit_jax, Python and the packages that can change results."""
  return {
    'vit_jax': vit_jax.__version__,
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in _PACKAGES},
  }


def git_revision() -> str:
  """Git revision of the source tree; '' if it is not a git checkout."""
  folder = epath.Path(vit_jax.__file__).parent
  try:
    return subprocess.run(
      ['git', '-C', str(folder), 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''
