"""Self-training (Noisy Student, arXiv:1911.04252): pseudo-labels.

A teacher predicts labels for images without labels. The images with confident
predictions are kept, and balanced over the classes. A student of the same size
or larger learns from the labeled and the pseudo-labeled images with strong
augmentation (configs/noisy_student.py), and can be the next teacher:

    vit-jax pseudo-label TEACHER UNLABELED -o PSEUDO --per-class N
    python -m vit_jax.main --config=configs/noisy_student.py:l2 \
        --config.data.dir=TFDS_DIR --config.data.pseudo_dir=PSEUDO --workdir=DIR

The pseudo-labeled images become the packed split 'pseudo' in the directory
PSEUDO. If it also has the labeled images as its split 'train',
data.split='train+pseudo' reads both. By default labels are soft, as in the
paper: the teacher's probabilities of the most probable classes.
"""

from collections.abc import Sequence
import dataclasses
import io
import os
from typing import Any

from etils import epath
import numpy as np
from PIL import Image

from vit_jax.data import pack
from vit_jax.data.decode import image_suffixes
from vit_jax.data.identity import fingerprint
from vit_jax.data.pack_inputs import list_items
from vit_jax.data.records import PSEUDO_SPLIT
from vit_jax.data.sources.source import Source
from vit_jax.files import as_path
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.jobs import ALONE, Job, Share, identify
from vit_jax.inference.loading import load_classifier
from vit_jax.teachers.classes import check_classes
from vit_jax.teachers.predictions import (
  Predictions,
  predict_all,
  read_predictions,
)
from vit_jax.teachers.stored_logits import SHARD_SIZE


class Unlabeled(Source):
  """Images without labels, from files or another source; all labels are 0."""

  num_classes = 1

  def __init__(self, items: Sequence[Any], name: str):
    """Makes a source of images.

    Args:
      items: the images.
      name: name of the source, for messages.

    Raises:
      ValueError: there are no images.
    """
    self.items, self.name = list(items), name
    if not self.items:
      raise ValueError(
        f'{self.name} has no images: give folders or tar files with '
        f'{", ".join(image_suffixes())} (in any case)'
      )

  def __len__(self):
    return len(self.items)

  def __getitem__(self, i):
    return {'image': self.items[i].read(), 'label': 0, 'id': self.describe(i)}

  def describe(self, i: int) -> str:
    return self.items[i].name

  def names(self) -> list[str]:
    """The names of all images, in their order."""
    return [item.name for item in self.items]


@dataclasses.dataclass(frozen=True)
class _Example:
  """Image number `index` of a source, without its label."""

  source: Source
  index: int

  @property
  def name(self) -> str:
    """The name of the image."""
    return self.source.describe(self.index)

  def read(self) -> bytes:
    """The bytes of an image file; an array of pixels is encoded as PNG."""
    image = self.source[self.index]['image']
    if isinstance(image, bytes):
      return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


def unlabeled(
  images: Source | str | os.PathLike | Sequence[str | os.PathLike],
) -> Unlabeled:
  """Opens images whose labels are not needed.

  Args:
    images: a source; or folders, which are searched to any depth, and tar
      files.

  Raises:
    ValueError: a path does not exist, or there are no images.
  """
  if isinstance(images, Source):
    return Unlabeled(
      [_Example(images, i) for i in range(len(images))], images.name
    )
  inputs = [images] if isinstance(images, (str, os.PathLike)) else images
  paths = [as_path(p) for p in inputs]
  missing = [str(p) for p in paths if not p.exists()]
  if missing:
    raise ValueError(
      f'{", ".join(missing)} does not exist: give folders or tar files of '
      'images'
    )
  items = [i for p in paths for i in list_items(p)]
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
  """Chooses confident images and balances classes (arXiv:1911.04252, 3.1).

  Args:
    classes: int (N,), the most probable class of each image.
    confidence: (N,), the probability of this class.
    threshold: images with a lower confidence are left out.
    per_class: number of images of every class in the result. Of a class with
      more images, the most confident ones are taken. A class with fewer images
      is repeated as often as it fits, and filled up with a random choice of its
      images. A class without images stays empty. None takes every image once.
    seed: seed of the random choice.

  Returns:
    int64 (M,), the numbers of the images, with repetitions.
  """
  kept = np.flatnonzero(confidence >= threshold)
  if per_class is None:
    return kept
  rng = np.random.Generator(np.random.Philox(seed))
  chosen = []
  for c in np.unique(classes[kept]):
    images = kept[classes[kept] == c]
    images = images[np.argsort(-confidence[images], kind='stable')][:per_class]
    repeats, rest = divmod(per_class, len(images))
    chosen += [np.tile(images, repeats), rng.permutation(images)[:rest]]
  return np.concatenate(chosen) if chosen else kept


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
  match_classes: str = 'names',
  share: Share = ALONE,
  **options: Any,
) -> dict[str, Any]:
  """Labels images with a teacher, and packs the confident ones.

  Args:
    weights: weights of the teacher, the first argument of `load_classifier`.
    images: a folder, which is searched to any depth, or a tar file of images,
      or several of these; or a source, whose labels are not read.
    out: directory of the packed split. If it has a packed 'train', the teacher
      must have the same classes.
    threshold, per_class, seed: as in `balance`.
    soft: whether the labels are probabilities of the `max_labels` most probable
      classes, scaled to a sum of 1. False keeps only the most probable class.
    max_labels: see `soft`.
    split, overwrite: name of the split, and whether to replace it.
    match_classes: see `classes.check_classes`.
    batch_size, threads: as in `stored_logits.Forward`.
    share: which of several processes this one is. A run that was stopped goes
      on where it was; process 0 writes the split.
    **options: other arguments of `load_classifier`.

  Returns:
    The metadata of the split, and numbers of images: all 'images', those that
    are 'unreadable' or 'confident', those in the split ('distinct'), and those
    in the split with repetitions ('labelled'). For a process other than 0,
    which only predicts, {}.

  Raises:
    ValueError: there are no images, no prediction is confident, the classes are
      not those of 'train', or there is such a split already.
  """
  _check_arguments(threshold, per_class, max_labels)
  source, out = unlabeled(images), as_path(out)
  classifier = load_classifier(weights, **options)
  classes, columns = _classes(classifier, split, out, soft, match_classes)
  _check_free(out, split, overwrite)
  k = min(max_labels if soft else 1, classes['num_classes'])
  job = _job(classifier, source, out / f'{split}.unfinished', columns, k, share)
  how = {'batch_size': batch_size, 'threads': threads}
  predict_all(classifier, source, job, k, columns=columns, **how)
  if not job.is_complete():
    return {}
  predictions = read_predictions(job)
  best, confidence = predictions.classes[:, 0], predictions.confidence
  chosen = balance(
    best, confidence, threshold=threshold, per_class=per_class, seed=seed
  )
  if not len(chosen):
    raise ValueError(
      f'none of the {predictions.readable.sum()} readable images reaches '
      f'threshold={threshold}; the highest confidence is {confidence.max():.3f}'
    )
  meta = pack.write_split(
    split,
    out,
    [source.items[i] for i in chosen],
    [predictions.soft_label(i) if soft else [int(best[i])] for i in chosen],
    classes,
    threads=threads,
    overwrite=overwrite,
  )
  job.remove()
  return {**meta, **_counts(source, predictions, threshold, chosen)}


def _job(
  classifier: Classifier,
  source: Unlabeled,
  directory: epath.Path,
  columns: list[int] | None,
  k: int,
  share: Share,
) -> Job:
  """The job of predicting `k` classes of all images; see `predict_all`."""
  plan = {
    **identify(classifier),
    'images': fingerprint(source.names()),
    'columns': fingerprint(columns),
    'labels': k,
  }
  return Job(
    directory,
    len(source),
    plan,
    shard_size=SHARD_SIZE,
    suffix='.npz',
    share=share,
  )


def _counts(
  source: Source, predictions: Predictions, threshold: float, chosen: np.ndarray
) -> dict[str, int]:
  """The numbers of images that `pseudo_label` returns."""
  return {
    'images': len(source),
    'unreadable': int(len(source) - predictions.readable.sum()),
    'confident': int((predictions.confidence >= threshold).sum()),
    'distinct': len(np.unique(chosen)),
    'labelled': len(chosen),
  }


def _check_free(out: epath.Path, split: str, overwrite: bool) -> None:
  """Raises ValueError if there is such a split and it must be kept."""
  if not overwrite and pack.has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another split or '
      'directory, or overwrite it'
    )


def _check_arguments(
  threshold: float, per_class: int | None, max_labels: int
) -> None:
  if not 0 <= threshold <= 1:
    raise ValueError(f'threshold={threshold}: must be in [0, 1]')
  for key, value in (('per_class', per_class), ('max_labels', max_labels)):
    if value is not None and value < 1:
      raise ValueError(f'{key}={value}: must be at least 1')


def _classes(
  classifier: Classifier,
  split: str,
  out: epath.Path,
  soft: bool,
  how: str,
) -> tuple[dict[str, Any], list[int] | None]:
  """The entries of the metadata about classes, and their teacher's numbers.

  The names are those of the packed split 'train' if there is one, after a check
  that the teacher has these classes.
  """
  if not classifier.num_classes:
    raise ValueError(
      f'{classifier.source} has no head, so it cannot be a teacher: give '
      'weights that have one'
    )
  train, columns = pack.classes_of_train(split, out), None
  if train:
    columns = check_classes(
      classifier.source,
      classifier.num_classes,
      classifier.classes,
      train['num_classes'],
      train['class_names'],
      how,
    )
  names = train['class_names'] if train else classifier.classes
  return {
    'num_classes': train['num_classes'] if train else classifier.num_classes,
    'class_names': names,
    'multi_label': soft,
  }, columns
