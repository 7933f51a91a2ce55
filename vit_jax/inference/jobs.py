"""Work on many images that can be stopped and shared by processes.

The images of a job, in their order, are cut into shards. The result of a shard
is a file that appears when it is complete, so a job that was killed goes on
with the first shard that is missing, and every image has exactly one result.
Each process works on every n-th shard, and process 0 joins the results when all
shards are there. The processes share nothing but the directory, which may be in
a bucket; each uses all of its own devices.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from vit_jax.data.identity import fingerprint
from vit_jax.files import as_path, list_directory, write_atomically
from vit_jax.inference.classifier import ImageClassifier
from vit_jax.training.progress import ImageProgress

PLAN = 'plan.json'


@dataclasses.dataclass(frozen=True)
class Share:
  """Which of `processes` processes this one is, from 0.

  Raises:
    ValueError: there is no such process.
  """

  process: int = 0
  processes: int = 1

  def __post_init__(self):
    if not 0 <= self.process < self.processes:
      raise ValueError(
        f'--process-id={self.process}: must be from 0 to '
        f'{self.processes - 1}, as --num-processes={self.processes}'
      )


ALONE = Share()


class Job:
  """The shards of a job in a directory.

  Args:
    directory: local or remote directory of the shards, which is created.
    items: number of images.
    plan: what the results depend on: the model, its weights, the images and
      the options. It is written into the directory as `plan.json`.
    shard_size: number of images of a shard.
    prefix, suffix: of the names of the files of shards.
    share: which shards this process works on.

  Raises:
    ValueError: the directory has results of another plan.
  """

  def __init__(
    self,
    directory: epath.Path,
    items: int,
    plan: Mapping[str, Any],
    *,
    shard_size: int,
    prefix: str = 'shard',
    suffix: str = '',
    share: Share = ALONE,
  ):
    self.directory = as_path(directory)
    self.items, self.shard_size, self.share = items, shard_size, share
    number = -(-items // shard_size)
    self.names = [
      f'{prefix}-{i:05d}-of-{number:05d}{suffix}' for i in range(number)
    ]
    self.directory.mkdir(parents=True, exist_ok=True)
    claim(self.directory, {**plan, 'shard_size': shard_size})

  def path(self, shard: int) -> epath.Path:
    return self.directory / self.names[shard]

  def bounds(self, shard: int) -> tuple[int, int]:
    """The images [start, stop) of a shard."""
    start = shard * self.shard_size
    return start, min(start + self.shard_size, self.items)

  def own_images(self) -> int:
    """The number of images of this process's shards."""
    own = range(self.share.process, len(self.names), self.share.processes)
    return sum(np.diff(self.bounds(shard))[0] for shard in own)

  def open_shards(self) -> list[int]:
    """This process's shards whose results are missing."""
    present = self._present()
    own = range(self.share.process, len(self.names), self.share.processes)
    return [shard for shard in own if self.names[shard] not in present]

  def progress(self, label: str) -> ImageProgress:
    """The progress of this process, which says how much was done before."""
    sizes = [np.diff(self.bounds(shard))[0] for shard in self.open_shards()]
    own, left = self.own_images(), int(sum(sizes))
    if left < own:
      print(
        f'{self.directory}: {own - left:,} of {own:,} images are done, '
        f'{left:,} are left',
        file=sys.stderr,
      )
    return ImageProgress(left, label)

  def is_complete(self, period: float = 2.0) -> bool:
    """Whether this process is to join the results, which are all there.

    Process 0 waits for the shards of the others, for which it gets True.

    Args:
      period: seconds from look to look.
    """
    if self.share.process:
      return False
    waiting = None
    while missing := set(self.names) - self._present():
      if len(missing) != waiting:
        waiting = len(missing)
        print(
          f'waiting for {waiting:,} of {len(self.names):,} shards of the other '
          f'processes, such as {min(missing)}',
          flush=True,
        )
      time.sleep(period)
    return True

  def remove(self) -> None:
    """Removes the directory, when the results are joined."""
    self.directory.rmtree(missing_ok=True)

  def _present(self) -> set[str]:
    return {path.name for path in list_directory(self.directory)}


def claim(directory: epath.Path, plan: Mapping[str, Any]) -> None:
  """Writes into a directory which results it gets.

  Raises:
    ValueError: it has results of another plan.
  """
  path, text = directory / PLAN, json.dumps(plan, sort_keys=True)
  if path.exists():
    stored = path.read_text()
    if stored == text:
      return
    old = json.loads(stored)
    # Version 0.1.0 wrote plans with fewer entries.
    different = [key for key in old if plan.get(key) != old[key]]
    if not different:
      return
    raise ValueError(
      f'{directory} has results with another {", ".join(different)}: to go on '
      'with them, give the arguments with which they were begun; to start '
      'anew, remove this directory or write to another one'
    )
  write_atomically(path, text)


def identify(classifier: ImageClassifier) -> dict[str, Any]:
  """What the predictions of a classifier depend on, as JSON values."""
  if classifier.variables:
    weights = weights_fingerprint(classifier.variables)
  else:  # an exported program, which has its weights inside
    data = as_path(classifier.source).read_bytes()
    weights = hashlib.sha256(data).hexdigest()[:16]
  return {
    'model': classifier.name,
    'weights': weights,
    'classes': fingerprint(classifier.classes),
    'preprocessing': repr(classifier.preprocessing),
  }


def weights_fingerprint(variables: Mapping[str, Any]) -> str:
  """A fingerprint of weights: of the names, shapes and sums of all arrays."""
  return fingerprint(
    [
      (jax.tree_util.keystr(path), np.shape(x), float(np.sum(x)))
      for path, x in jax.tree_util.tree_leaves_with_path(variables)
    ]
  )
