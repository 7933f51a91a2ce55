"""Packs on many machines: the shards are written by an Apache Beam pipeline.

This process lists the inputs and decides what every shard holds, as
`vit-jax pack` always does (pack_shards.py). It stores the plan of each shard
beside the output; the workers of the pipeline read the plans and write the
shards, with the same bytes as one process. A worker stores a record of each
shard that it has finished. A pipeline that is started again after a failure
keeps the finished shards whose plan, size and hash have not changed.

Beam's runners are DirectRunner (processes of this machine), DataflowRunner,
FlinkRunner and SparkRunner. All but DirectRunner need inputs and output in a
bucket or on a disk that every worker sees under the same path.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
from importlib.util import find_spec
import json
import logging
import os
import threading

from etils import epath

from vit_jax import files
from vit_jax.data.pack_shards import Shard, ShardPlan, is_intact, write_shard

log = logging.getLogger(__name__)

_SECONDS = 2.0  # from one look at the progress to the next
_DONE = '.done.json'
_PLAN = '.plan.json'


@dataclasses.dataclass(frozen=True)
class Runner:
  """A runner of Apache Beam.

  Attributes:
    name: of the runner, such as 'DirectRunner'.
    options: its options, such as '--direct_num_workers=4'.
  """

  name: str
  options: Sequence[str] = ()

  def __post_init__(self):
    if find_spec('apache_beam') is None:
      raise ValueError(
        f'the runner {self.name} needs the package apache-beam: '
        "pip install 'vit_jax[beam]'"
      )

  def write_shards(
    self,
    plans: Sequence[ShardPlan],
    paths: Sequence[epath.Path],
    folder: epath.Path,
    threads: int,
    progress: Callable[[int, int], None],
  ) -> list[Shard]:
    """Writes shards; those that are finished already are kept.

    Args:
      plans: of all shards.
      paths: where they are written.
      folder: of the plans and records; it is left to be removed.
      threads: number of threads of each worker.
      progress: called with (images done, all images), from another thread.

    Returns:
      The shards, in the order of the plans.
    """
    store_plans(plans, folder)
    tasks = [
      (os.fspath(folder), plan.name, os.fspath(path), threads)
      for plan, path in zip(plans, paths, strict=True)
    ]
    with _progress_of(folder, plans, progress):
      self.run_tasks(tasks)
    shards = [_read_done(folder, plan) for plan in plans]
    return [shard for shard in shards if shard]

  def run_tasks(self, tasks: Sequence[tuple[str, str, str, int]]) -> None:
    """Runs a pipeline that calls `write_task` for each task."""
    import apache_beam as beam  # pyright: ignore[reportMissingImports]
    from apache_beam.options import (  # pyright: ignore[reportMissingImports]
      pipeline_options,
    )

    options = pipeline_options.PipelineOptions(
      list(self.options), runner=self.name
    )
    with beam.Pipeline(options=options) as pipeline:
      _ = (
        pipeline
        | 'Shards' >> beam.Create(tasks, reshuffle=True)
        | 'Write' >> beam.MapTuple(write_task)
      )


def store_plans(plans: Sequence[ShardPlan], folder: epath.Path) -> None:
  """Writes the plans of shards, for the workers to read."""
  folder.mkdir(parents=True, exist_ok=True)
  for plan in plans:
    path = folder / (plan.name + _PLAN)
    text = json.dumps(plan.to_json())
    if not path.exists() or path.read_text() != text:
      files.write_atomically(path, text)


def write_task(folder: str, name: str, path: str, threads: int) -> str:
  """Writes the shard of a plan, unless it is there: the work of a worker.

  Args:
    folder: of the plans and records.
    name: of the shard.
    path: where it is written.
    threads: that prepare images.

  Returns:
    The name.
  """
  where = files.as_path(folder)
  plan = ShardPlan.from_json(json.loads((where / (name + _PLAN)).read_text()))
  shard = _read_done(where, plan)
  if shard and is_intact(shard, path):
    log.info('%s is kept: it is finished', name)
    return name
  with futures.ThreadPoolExecutor(threads) as pool:
    shard = write_shard(plan, path, pool)
  files.write_atomically(
    where / (name + _DONE),
    json.dumps({'plan': plan.fingerprint, **dataclasses.asdict(shard)}),
  )
  return name


def _read_done(folder: epath.Path, plan: ShardPlan) -> Shard | None:
  """The record of a shard that was written by this plan."""
  try:
    record = json.loads((folder / (plan.name + _DONE)).read_text())
  except FileNotFoundError:
    return None
  return Shard(**record) if record.pop('plan') == plan.fingerprint else None


@contextlib.contextmanager
def _progress_of(
  folder: epath.Path,
  plans: Sequence[ShardPlan],
  progress: Callable[[int, int], None],
) -> Iterator[None]:
  """Reports the images of finished shards while the pipeline runs.

  The records are looked for, because the runners have no other way in common to
  tell how far they are.
  """
  images = {plan.name + _DONE: len(plan.examples) for plan in plans}
  total, stop = sum(images.values()), threading.Event()

  def look():
    done = -1
    while not stop.wait(_SECONDS):
      now = sum(images.get(path.name, 0) for path in folder.iterdir())
      if now != done:
        done = now
        progress(done, total)

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
  progress(total, total)
