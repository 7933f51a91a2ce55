"""Self-training (Noisy Student, arXiv:1911.04252): pseudo-labels.

A teacher labels images without labels. The confident ones are kept and
balanced over the classes. A student of the same size or larger learns from the
labeled and the pseudo-labeled images with strong augmentation
(configs/noisy_student.py), and can be the next teacher:

    vit-jax pseudo-label TEACHER UNLABELED PSEUDO --threshold 0.3 --per-class N
    python -m vit_jax.main --config=configs/noisy_student.py:l2 \
        --config.data.dir=TFDS_DIR --config.data.pseudo_dir=PSEUDO --workdir=DIR

The pseudo-labeled images become the packed split 'pseudo' of PSEUDO. If PSEUDO
also has the labeled images as its split 'train', data.split='train+pseudo'
reads both. Soft labels, the default as in the paper, are the teacher's
probabilities of its most probable classes.
"""

from collections.abc import Sequence
import dataclasses
import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import pack
from vit_jax.data.pack_inputs import list_items
from vit_jax.data.records import PSEUDO_SPLIT
from vit_jax.data.sources.folder import IMAGE_SUFFIXES
from vit_jax.data.sources.source import Source
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.loading import load_classifier
from vit_jax.teachers.classes import check_classes
from vit_jax.teachers.stored_logits import forward


class Unlabeled(Source):
  """Images without labels (all 0), of files or of another source."""

  num_classes = 1

  def __init__(self, items: Sequence[Any], name: str):
    """Args: objects with `name` and `read()`; name of the source."""
    self.items, self.name = list(items), name
    if not self.items:
      raise ValueError(
        f'{self.name} has no images ({", ".join(IMAGE_SUFFIXES)}, in any case)'
      )

  def __len__(self):
    return len(self.items)

  def __getitem__(self, i):
    return {'image': self.items[i].read(), 'label': 0, 'id': self.describe(i)}

  def describe(self, i: int) -> str:
    return self.items[i].name


@dataclasses.dataclass(frozen=True)
class _Example:
  """An image of a source, whose label is not read."""

  source: Source
  index: int

  @property
  def name(self) -> str:
    return self.source.describe(self.index)

  def read(self) -> bytes:
    """The encoded image; arrays of pixels become PNG files."""
    image = self.source[self.index]['image']
    if isinstance(image, bytes):
      return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


def unlabeled(
  images: Source | str | os.PathLike | Sequence[str | os.PathLike],
) -> Unlabeled:
  """The images of a source, or of folders (at any depth) and tar files.

  Raises:
    ValueError: a path does not exist, or there are no images.
  """
  if isinstance(images, Source):
    return Unlabeled(
      [_Example(images, i) for i in range(len(images))], images.name
    )
  inputs = [images] if isinstance(images, (str, os.PathLike)) else images
  paths = [pathlib.Path(p).expanduser() for p in inputs]
  missing = [str(p) for p in paths if not p.exists()]
  if missing:
    raise ValueError(
      f'{", ".join(missing)} does not exist: give folders or '
      'tar files of images'
    )
  items = [i for p in paths for i in list_items(p, True)]
  return Unlabeled(
    sorted(items, key=lambda i: i.name), ', '.join(map(str, paths))
  )


def balance(
  classes: np.ndarray,
  confidence: np.ndarray,
  *,
  threshold: float,
  per_class: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Which images to take, and how often (arXiv:1911.04252, section 3.1).

  Args:
    classes: int (N,), the most probable class of each image.
    confidence: (N,), its probability.
    threshold: images below it are left out.
    per_class: images of every class in the result. A class with more images
      gives its most confident ones. A class with fewer gives all of them, as
      often as they fit, and a random choice of them for the rest. Classes
      without images stay empty. None takes every image once.
    seed: of the random choice.

  Returns:
    int64 (M,), numbers of images; an image that is taken twice is there twice.
  """
  kept = np.flatnonzero(confidence >= threshold)
  if per_class is None:
    return kept
  rng = np.random.Generator(np.random.Philox(seed))
  chosen = []
  for c in np.unique(classes[kept]):
    mine = kept[classes[kept] == c]
    mine = mine[np.argsort(-confidence[mine], kind='stable')][:per_class]
    rounds, rest = divmod(per_class, len(mine))
    chosen += [np.tile(mine, rounds), rng.permutation(mine)[:rest]]
  return np.concatenate(chosen) if chosen else kept


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a teacher says of N images.

  Attributes:
    classes: int32 (N, k), the most probable classes, best first.
    probabilities: float32 (N, k) of these classes.
    readable: bool (N,), False for images that could not be decoded.
  """

  classes: np.ndarray
  probabilities: np.ndarray
  readable: np.ndarray

  @property
  def confidence(self) -> np.ndarray:
    """(N,) probability of the best class, -1 for unreadable images."""
    return np.where(self.readable, self.probabilities[:, 0], -1.0)

  def soft_label(self, i: int) -> dict[int, float]:
    """Class to probability, scaled to a sum of 1."""
    total = float(self.probabilities[i].sum())
    return {
      int(c): float(p) / total
      for c, p in zip(self.classes[i], self.probabilities[i], strict=True)
    }


def predict_all(
  classifier: Classifier,
  source: Source,
  k: int,
  *,
  batch_size: int = 64,
  threads: int = 4,
) -> Predictions:
  """The k most probable classes of every image of a source."""
  classes = np.zeros((len(source), k), np.int32)
  probabilities = np.zeros((len(source), k), np.float32)
  readable = np.zeros(len(source), bool)
  for index, logits in forward(
    classifier,
    source,
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=1.0,
  ):
    p = _probabilities(logits, classifier.loss)
    best = np.argsort(-p, axis=1, kind='stable')[:, :k]
    classes[index], readable[index] = best, True
    probabilities[index] = np.take_along_axis(p, best, axis=1)
  return Predictions(classes, probabilities, readable)


def pseudo_label(
  weights: str | os.PathLike,
  images: Source | str | os.PathLike | Sequence[str | os.PathLike],
  out: str | os.PathLike,
  *,
  threshold: float = 0.3,
  per_class: int | None = None,
  soft: bool = True,
  max_labels: int = 100,
  split: str = PSEUDO_SPLIT,
  seed: int = 0,
  batch_size: int = 64,
  threads: int = 4,
  overwrite: bool = False,
  **options: Any,
) -> dict[str, Any]:
  """Labels images with a teacher, filters, balances and packs them.

  Args:
    weights: of the teacher, see `load_classifier`.
    images: folder (searched to any depth) or tar file of images, or several,
      or an opened source, whose labels are not read.
    out: directory of the packed split. If it has a packed 'train', the teacher
      must know the same classes.
    threshold, per_class, seed: see `balance`.
    soft: keep probabilities, of the `max_labels` most probable classes, scaled
      to a sum of 1; False keeps the most probable class.
    split, overwrite: name of the split; whether to replace one that is there.
    batch_size, threads: see `stored_logits.forward`.
    **options: of `load_classifier`.

  Returns:
    The split's metadata with 'images' (all of images), 'unreadable',
    'confident', 'distinct' (images taken) and 'labelled' (records).

  Raises:
    ValueError: nothing to label, nothing confident, other classes than those of
      'train', or a split that is there.
  """
  _check_arguments(threshold, per_class, max_labels)
  source, out = unlabeled(images), pathlib.Path(out).expanduser()
  classifier = load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(f'{weights} has no head: a teacher must name classes')
  classes = _classes(classifier, weights, split, out, soft)
  _check_free(out, split, overwrite)
  predictions = predict_all(
    classifier,
    source,
    min(max_labels if soft else 1, classifier.num_classes),
    batch_size=batch_size,
    threads=threads,
  )
  best, confidence = predictions.classes[:, 0], predictions.confidence
  chosen = balance(
    best, confidence, threshold=threshold, per_class=per_class, seed=seed
  )
  if not len(chosen):
    raise ValueError(
      f'none of the {predictions.readable.sum()} readable images reaches '
      f'threshold={threshold}; the highest is {confidence.max():.3f}'
    )
  out.mkdir(parents=True, exist_ok=True)
  meta = pack.write_split(
    split,
    out,
    [source.items[i] for i in chosen],
    [predictions.soft_label(i) if soft else [int(best[i])] for i in chosen],
    classes,
    threads=threads,
    overwrite=overwrite,
  )
  return {
    **meta,
    'images': len(source),
    'unreadable': int(len(source) - predictions.readable.sum()),
    'confident': int((confidence >= threshold).sum()),
    'distinct': len(np.unique(chosen)),
    'labelled': len(chosen),
  }


def _check_free(out: pathlib.Path, split: str, overwrite: bool) -> None:
  if not overwrite and pack.has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another '
      'split or directory, or overwrite'
    )


def _check_arguments(
  threshold: float, per_class: int | None, max_labels: int
) -> None:
  if not 0 <= threshold <= 1:
    raise ValueError(f'threshold={threshold}: must be in [0, 1]')
  for key, value in (('per_class', per_class), ('max_labels', max_labels)):
    if value is not None and value < 1:
      raise ValueError(f'{key}={value}: must be at least 1')


def _probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
  """(n, C) probabilities; of a sigmoid model each class has its own."""
  x = logits.astype(np.float64)
  if loss == 'sigmoid':
    return 1 / (1 + np.exp(-x))
  x = np.exp(x - x.max(axis=1, keepdims=True))
  return x / x.sum(axis=1, keepdims=True)


def _classes(classifier, weights, split, out, soft) -> dict[str, Any]:
  """What the metadata says of the classes: those of 'train' if it is there."""
  train = pack.classes_of_train(split, out)
  if train:
    check_classes(
      weights,
      classifier.num_classes,
      classifier.classes,
      train['num_classes'],
      train['class_names'],
    )
  names = train['class_names'] if train else classifier.classes
  return {
    'num_classes': classifier.num_classes,
    'class_names': names,
    'multi_label': soft,
  }
