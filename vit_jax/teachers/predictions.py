"""What a teacher predicts for every image of a source, in shards."""

from collections.abc import Sequence
import dataclasses
import io

import numpy as np

from vit_jax.data.sources.source import Source
from vit_jax.files import open_atomically
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.jobs import Job
from vit_jax.teachers.stored_logits import Forward


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The predictions of a teacher for N images.

  Attributes:
    classes: int32 (N, k), the most probable classes, the best one first.
    probabilities: float32 (N, k), the probabilities of these classes.
    readable: bool (N,), False for images that could not be decoded.
  """

  classes: np.ndarray
  probabilities: np.ndarray
  readable: np.ndarray

  @property
  def confidence(self) -> np.ndarray:
    """The probability of the best class, (N,); -1 for unreadable images."""
    return np.where(self.readable, self.probabilities[:, 0], -1.0)

  def soft_label(self, i: int) -> dict[int, float]:
    """{class: probability} of image i, scaled to a sum of 1."""
    total = float(self.probabilities[i].sum())
    return {
      int(c): float(p) / total
      for c, p in zip(self.classes[i], self.probabilities[i], strict=True)
    }


def predict_all(
  classifier: Classifier,
  source: Source,
  job: Job,
  k: int,
  *,
  columns: Sequence[int] | None = None,
  batch_size: int = 64,
  threads: int = 4,
) -> None:
  """Predicts the k most probable classes of the images of a job.

  Args:
    classifier: the teacher.
    source: the images.
    job: gets a file of `Predictions` for each shard of the source.
    k: number of classes to keep for each image.
    columns: the teacher's number of each class of the result; None: the same.
    batch_size, threads: as in `stored_logits.Forward`.
  """
  forward = Forward(
    classifier, batch_size=batch_size, threads=threads, max_bad_fraction=1.0
  )
  with job.progress('pseudo-labels') as progress:
    for shard in job.open_shards():
      start, stop = job.bounds(shard)
      predictions = Predictions(
        np.zeros((stop - start, k), np.int32),
        np.zeros((stop - start, k), np.float32),
        np.zeros(stop - start, bool),
      )
      for index, logits in forward(source, start, stop):
        if columns is not None:
          logits = logits[:, np.asarray(columns)]
        p = _probabilities(logits, classifier.loss)
        best = np.argsort(-p, axis=1, kind='stable')[:, :k]
        predictions.classes[index], predictions.readable[index] = best, True
        predictions.probabilities[index] = np.take_along_axis(p, best, axis=1)
        progress.advance(len(index))
      with open_atomically(job.path(shard), 'wb') as file:
        np.savez(file, **dataclasses.asdict(predictions))


def read_predictions(job: Job) -> Predictions:
  """The predictions for all images of a complete job, in their order."""
  shards = []
  for shard in range(len(job.names)):
    with job.path(shard).open('rb') as file:
      arrays = np.load(io.BytesIO(file.read()))
      shards.append({name: arrays[name] for name in arrays.files})
  return Predictions(
    **{name: np.concatenate([x[name] for x in shards]) for name in shards[0]}
  )


def _probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
  """The probabilities (n, C) for logits (n, C), in float64.

  Args:
    logits: the logits.
    loss: 'softmax', or 'sigmoid' for a probability of each class by itself.
  """
  x = logits.astype(np.float64)
  if loss == 'sigmoid':
    return 1 / (1 + np.exp(-x))
  x = np.exp(x - x.max(axis=1, keepdims=True))
  return x / x.sum(axis=1, keepdims=True)
