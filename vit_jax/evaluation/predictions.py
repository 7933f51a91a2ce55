"""What a classifier says about each image of a labeled source."""

import collections
from collections.abc import Callable
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.sources.source import Source
from vit_jax.evaluation import scores
from vit_jax.evaluation.exact import NonFiniteWeights
from vit_jax.parallel.mesh import Mesh, put_batch
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment, losses
from vit_jax.training.progress import progress_bar

TOP = 5
_MOST_IN_FLIGHT = 2  # batches whose results have not been read


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Labels and predictions of N images, in the order of the source.

  Attributes:
    source: the images.
    num_classes: C.
    index: (N,) numbers of the images in the source.
    labels: (N,) class numbers, or (N, C) for a source with several labels.
    best: (N, K) the most probable classes, K = min(5, C), the best first.
    confidence: (N, K) their probabilities.
    losses: (N,).
    probabilities: (N, C), if they were kept.
    bad: {path: reason} of the images that could not be read.
    images_per_second: from the first batch on, after the compilation.
  """

  source: Source
  num_classes: int
  index: np.ndarray
  labels: np.ndarray
  best: np.ndarray
  confidence: np.ndarray
  losses: np.ndarray
  probabilities: np.ndarray | None = None
  bad: dict[str, str] = dataclasses.field(default_factory=dict)
  images_per_second: float = 0.0

  @property
  def labeled(self) -> np.ndarray:
    """(N,) whether an image has a label."""
    return scores.weights(self.labels) > 0

  @property
  def right(self) -> np.ndarray:
    """(N,) whether the best class is a label of the image."""
    return scores.label_values(self.labels, self.best[:, :1])[:, 0] > 0

  def summary(self) -> dict[str, Any]:
    """The means over all labeled images.

    Returns:
      'top1', 'top5' and 'calibration_error' as fractions; 'loss'; 'examples',
      the number of labeled images; 'mean_per_class', the mean of the classes'
      accuracies; with several labels and kept probabilities also
      'mean_average_precision'.

    Raises:
      ValueError: no image has a label.
    """
    labels, labeled = self.labels, self.labeled
    right, total = self.per_class()
    result = {
      'top1': scores.top_k(labels, self.best, 1),
      'top5': scores.top_k(labels, self.best, TOP),
      'loss': scores.mean_loss(self.losses, labels),
      'examples': int(labeled.sum()),
      'mean_per_class': float(np.mean(right[total > 0] / total[total > 0])),
      'calibration_error': self.calibration().error,
    }
    if self.probabilities is not None and labels.ndim == 2:
      result['mean_average_precision'] = scores.mean_average_precision(
        self.probabilities[labeled], labels[labeled]
      )[0]
    return result

  def per_class(self) -> tuple[np.ndarray, np.ndarray]:
    """Right images and all images of each class, see `scores.per_class`."""
    return scores.per_class(self.labels, self.best[:, 0], self.num_classes)

  def calibration(self) -> scores.Calibration:
    """Confidence against accuracy of the labeled images."""
    labeled = self.labeled
    return scores.calibration(
      self.confidence[labeled, 0].astype(np.float64), self.right[labeled]
    )

  def confusion(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, predicted class and number of images, see `scores.confusion`.

    Raises:
      ValueError: images have several labels.
    """
    if self.labels.ndim == 2:
      raise ValueError(
        'a confusion matrix needs one label for each image; '
        f'{self.source.name} has several'
      )
    return scores.confusion(self.labels, self.best[:, 0], self.num_classes)


def predict_source(
  forward: Callable[[Any, jax.Array], jax.Array],
  variables: Any,
  source: Source,
  mesh: Mesh,
  *,
  num_classes: int,
  preprocessing: Preprocessing,
  loss: str = 'softmax',
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.01,
  decoding: Decoding = DEFAULT_DECODING,
  keep_probabilities: bool = False,
) -> Predictions:
  """Classifies every image of a source once.

  Args:
    forward: (variables, images (B, H, W, 3) of pixels in [0, 255]) -> logits.
    variables: of the model, on the devices of the mesh.
    source: labeled images, whose classes are the outputs of the model.
    mesh: the devices, of this process, that share a batch.
    num_classes: number of outputs.
    preprocessing: how images are prepared.
    loss: key of `losses.LOSSES`; 'sigmoid' makes a probability for each class
      by itself.
    batch_size: number of images in a batch.
    threads: number of threads that read and decode.
    max_bad_fraction: fraction of the images that may be unreadable.
    decoding: how images are decoded.
    keep_probabilities: keep those of all classes.

  Raises:
    TooManyBadImages: more than `max_bad_fraction` cannot be read.
    NonFiniteWeights: a loss is not a finite number.
    ValueError: the source has no images.
  """
  size = max(1, min(batch_size, len(source)) // mesh.size) * mesh.size
  step = _make_step(forward, num_classes, loss, keep_probabilities)
  read: list[dict[str, np.ndarray]] = []
  in_flight = collections.deque()
  start = 0.0
  with loader.eval_batches(
    source,
    preprocessing,
    batch_size=size,
    decoding=decoding,
    threads=threads,
    max_bad_fraction=max_bad_fraction,
  ) as batches:
    for batch in progress_bar(batches, len(batches), 'evaluating'):
      arrays = {key: batch[key] for key in ('image', 'label')}
      arrays = put_batch(arrays, mesh)
      if not start:  # all batches have one shape
        step = step.lower(variables, arrays).compile()
        start = time.perf_counter()
      in_flight.append((batch, step(variables, arrays)))
      if len(in_flight) > _MOST_IN_FLIGHT:
        read.append(_real(*in_flight.popleft()))
    read += [_real(*results) for results in in_flight]
    bad = dict(batches.bad)
  seconds = time.perf_counter() - start
  images = sum(len(x['index']) for x in read)
  if not images:
    raise ValueError(f'{source.name} has no image that can be read')
  arrays = {key: np.concatenate([x[key] for x in read]) for key in read[0]}
  if not np.isfinite(arrays['losses']).all():
    raise NonFiniteWeights(
      f'the loss of {np.sum(~np.isfinite(arrays["losses"])):,} of {images:,} '
      'images is not a finite number: the weights, or what they compute, are '
      'NaN or infinite'
    )
  return Predictions(
    source=source,
    num_classes=num_classes,
    bad=bad,
    images_per_second=images / seconds,
    **arrays,
  )


def _make_step(
  forward: Callable, num_classes: int, loss: str, keep_probabilities: bool
) -> Any:
  """The jitted function of one batch."""
  to_probabilities = {'sigmoid': jax.nn.sigmoid, 'bce': jax.nn.sigmoid}.get(
    loss, jax.nn.softmax
  )

  @jax.jit
  def step(variables, batch):
    logits = forward(variables, batch['image']).astype('float32')
    labels = batch['label']
    targets = (
      labels if labels.ndim > 1 else augment.one_hot(labels, num_classes)
    )
    probabilities = to_probabilities(logits)
    confidence, best = jax.lax.top_k(probabilities, min(TOP, num_classes))
    result = {
      'best': best,
      'confidence': confidence,
      'losses': losses.LOSSES[loss](logits, targets),
    }
    if keep_probabilities:
      result['probabilities'] = probabilities
    return result

  return step


def _real(batch: dict, results: dict) -> dict[str, np.ndarray]:
  """The results of a batch without its padding, on the host."""
  real = batch['mask'] > 0
  results = jax.device_get(results)
  return {
    'index': batch['index'][real],
    'labels': batch['label'][real],
    **{key: np.asarray(value)[real] for key, value in results.items()},
  }
