"""Self-training (Noisy Student, arXiv:1911.04252): pseudo-labels.

A teacher labels images that nobody has labelled; confident ones are kept and
balanced over the classes; a student, equal or larger and noised, learns from
both kinds (configs/noisy_student.py), and may be the next teacher:

    vit-jax pack LABELLED DATA --split train
    vit-jax pseudo-label TEACHER UNLABELLED DATA --threshold 0.3 --per-class N
    python -m vit_jax.main --config=configs/noisy_student.py:s16 \
        --config.data.dir=DATA --workdir=DIR

The pseudo-labelled images become the packed split 'pseudo' beside 'train', and
data.split='train+pseudo' reads both. Soft labels, the default as in the paper,
are the teacher's probabilities of its most probable classes.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import numpy as np

from vit_jax.data import pack
from vit_jax.data.sources.folder import IMAGE_SUFFIXES
from vit_jax.data.sources.source import Source
from vit_jax.inference import classifier as classifier_lib
from vit_jax.teachers.classes import check_classes
from vit_jax.teachers.stored_logits import forward


class Unlabelled(Source):
  """Images of folders and tar files, without labels (all 0)."""

  num_classes = 1

  def __init__(self, inputs: Sequence[str | os.PathLike]):
    paths = [pathlib.Path(p).expanduser() for p in inputs]
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
      raise ValueError(
        f'{", ".join(missing)} does not exist: give folders or '
        'tar files of images'
      )
    self.items = sorted(
      (i for p in paths for i in pack.list_items(p, True)), key=lambda i: i.name
    )
    self.name = ', '.join(map(str, paths))
    if not self.items:
      raise ValueError(
        f'{self.name} has no images ({", ".join(IMAGE_SUFFIXES)}, in any case)'
      )

  def __len__(self):
    return len(self.items)

  def __getitem__(self, i):
    return {'image': self.items[i].read(), 'label': 0, 'id': self.describe(i)}

  def describe(self, i):
    return self.items[i].name


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
    per_class: images of every class in the result: of a rich class the most
      confident ones, of a scarce class all, then all again, and so on, the last
      round drawn at random. Classes without images stay empty. None: all
      images, once.
    seed: of that draw.

  Returns:
    int64 (M,), numbers of images; repeated where an image is there repeatedly.
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


def pseudo_label(
  weights,
  data_dir,
  out,
  *,
  threshold: float = 0.3,
  per_class: int | None = None,
  soft: bool = True,
  max_labels: int = 100,
  split: str = 'pseudo',
  seed: int = 0,
  batch_size: int = 64,
  threads: int = 4,
  overwrite: bool = False,
  **options,
) -> dict[str, Any]:
  """Labels images with a teacher, filters, balances and packs them.

  Args:
    weights: of the teacher, see `predict.load_classifier`.
    data_dir: folder (searched to any depth) or tar file of images, or several.
    out: directory of the packed split. If it has a packed 'train', the teacher
      must know the same classes.
    threshold: least probability of an image's most probable class.
    per_class: see `balance`.
    soft: keep probabilities, of the `max_labels` most probable classes, scaled
      to a sum of 1; False keeps the most probable class.
    split: name of the split.
    seed: of the balancing.
    batch_size, threads: see `distill.forward`.
    overwrite: replace a split that is there already.
    **options: of `predict.load_classifier`.

  Returns:
    The split's metadata with 'images' (found), 'unreadable', 'confident',
    'distinct' (images that were taken) and 'labelled' (records, with copies).

  Raises:
    ValueError: nothing to label, nothing confident, other classes than those of
      'train', or a split that is there.
  """
  if not 0 <= threshold <= 1:
    raise ValueError(f'threshold={threshold}: must be in [0, 1]')
  for key, value in (('per_class', per_class), ('max_labels', max_labels)):
    if value is not None and value < 1:
      raise ValueError(f'{key}={value}: must be at least 1')
  inputs = [data_dir] if isinstance(data_dir, (str, os.PathLike)) else data_dir
  source, out = Unlabelled(inputs), pathlib.Path(out).expanduser()
  classifier = classifier_lib.load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(f'{weights} has no head: a teacher must name classes')
  classes = _classes(classifier, weights, split, out, soft)
  if not overwrite and pack.has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another '
      'split or directory, or overwrite'
    )

  k = min(max_labels if soft else 1, classifier.num_classes)
  top = np.zeros((len(source), k), np.int32)
  probability = np.zeros((len(source), k), np.float32)
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
    top[index], readable[index] = best, True
    probability[index] = np.take_along_axis(p, best, axis=1)

  confidence = np.where(readable, probability[:, 0], -1.0)
  chosen = balance(
    top[:, 0], confidence, threshold=threshold, per_class=per_class, seed=seed
  )
  if not len(chosen):
    raise ValueError(
      f'none of the {int(readable.sum())} readable images reaches threshold='
      f'{threshold}; the highest probability is {confidence.max():.3f}'
    )

  def label(i):
    if not soft:
      return [int(top[i, 0])]
    total = float(probability[i].sum())
    return {
      int(c): float(p) / total
      for c, p in zip(top[i], probability[i], strict=True)
    }

  out.mkdir(parents=True, exist_ok=True)
  meta = pack.write_split(
    split,
    out,
    [source.items[i] for i in chosen],
    [label(i) for i in chosen],
    classes,
    threads=threads,
    overwrite=overwrite,
  )
  return {
    **meta,
    'images': len(source),
    'unreadable': int(len(source) - readable.sum()),
    'confident': int((confidence >= threshold).sum()),
    'distinct': len(np.unique(chosen)),
    'labelled': len(chosen),
  }


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
