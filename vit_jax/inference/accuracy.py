"""Measures the accuracy of weights on labeled images: `evaluate`."""

import dataclasses
import os
from typing import Any

from etils import epath
import jax

from vit_jax.data.decode import Decoding
from vit_jax.data.layout import NoClasses
from vit_jax.data.sources.labeled import LabeledFiles
from vit_jax.data.sources.opening import directory_source, open_source
from vit_jax.data.sources.renumbered import Renumbered, with_classes
from vit_jax.data.sources.source import Source
from vit_jax.data.splits import SPLIT_ALIASES, SPLIT_FOLDERS, NoSplit
from vit_jax.evaluation.exact import check_finite
from vit_jax.evaluation.predictions import Predictions, predict_source
from vit_jax.files import as_path
from vit_jax.inference.classifier import Classifier, ImageClassifier
from vit_jax.inference.prediction import open_classifier
from vit_jax.parallel.mesh import make_mesh, put_replicated

# What is counted. 'imagenet': the one label of an image. 'real': an image is
# right if the best class is one of its labels; images without labels are left
# out (ReaL, arXiv:2006.07159). 'v2': folders are called by class numbers, as in
# ImageNet-V2 (arXiv:1902.10811). 'multilabel': as 'real', and the mean average
# precision.
PROTOCOLS = ('imagenet', 'real', 'v2', 'multilabel')
_SEVERAL = ('real', 'multilabel')


def evaluate(
  weights: str | os.PathLike, data: str | os.PathLike, **options: Any
) -> dict[str, Any]:
  """Measures accuracy and loss on labeled images, each counted once.

  Args:
    weights, data, **options: as for `predict_labeled`.

  Returns:
    'top1' and 'top5', as fractions of the images; 'loss', the mean of the loss
    that the weights were trained with; 'examples', the number of images; and
    the other entries of `Predictions.summary`.

  Raises:
    WeightsError, ValueError: see `predict_labeled`.
  """
  return predict_labeled(weights, data, **options)[1].summary()


def predict_labeled(
  weights: str | os.PathLike,
  data: str | os.PathLike,
  *,
  source: str = '',
  split: str | None = None,
  labels: str | os.PathLike | None = None,
  protocol: str | None = None,
  crop: float | None = None,
  interpolation: str | None = None,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.01,
  max_pixels: int | None = None,
  match_classes: str = 'names',
  flat: bool = False,
  **options: Any,
) -> tuple[ImageClassifier, Predictions]:
  """Classifies labeled images.

  Args:
    weights: the first argument of `load_classifier`, or an exported .stablehlo
      file.
    data: a folder with one directory of images per class, a folder with train/
      and test/ (or val/, validation/) of that form, a tar of such a folder, or
      a packed data set; with `labels` a folder or tar of images.
    source: as in a recipe, such as 'tfds:imagenet_v2', of which `data` is the
      directory; '' finds out what `data` is.
    split: a split such as 'test' or 'train[:500]'. None is the test split; if
      there is none, as in a folder with only directories of classes, it is all
      images.
    labels: a file of labels, see `LabeledFiles`.
    protocol: one of PROTOCOLS. None is 'imagenet' for images of one label each,
      'multilabel' for others.
    crop, interpolation: of `Preprocessing`, instead of those of the weights.
    batch_size: number of images in a batch, which all devices share.
    threads: number of threads that read and decode images.
    max_bad_fraction: largest share of images that cannot be read. Such images
      are named in the log and left out.
    max_pixels: images with more pixels cannot be read.
    match_classes: 'names' numbers the classes of the data by their names, of
      which the weights must know all; 'numbers' compares no names.
    flat: take every folder for a class, also one named 'train' or 'test'.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    The classifier, and what it says about each image.

  Raises:
    WeightsError: the weights cannot be read, or are of another model.
    ValueError: there is no such data or split, the classes are not those of the
      model, the protocol does not fit the data, or too many images cannot be
      read.
  """
  if protocol is not None and protocol not in PROTOCOLS:
    raise ValueError(f'protocol={protocol!r}; allowed: {", ".join(PROTOCOLS)}')
  classifier = _load(weights, crop, interpolation, options)
  opened = _open(data, source, split, labels, flat, classifier)
  images = _with_outputs(opened, classifier, protocol, match_classes)
  protocol = _check_protocol(protocol, images)
  predictions = classify_source(
    classifier,
    images,
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=max_bad_fraction,
    max_pixels=max_pixels,
    keep_probabilities=protocol == 'multilabel',
  )
  return classifier, predictions


def classify_source(
  classifier: ImageClassifier,
  images: Source,
  *,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.01,
  max_pixels: int | None = None,
  keep_probabilities: bool = False,
) -> Predictions:
  """Classifies all images of a source on all local devices.

  Args:
    classifier: the model.
    images: labeled images, whose classes are numbered as the outputs.
    batch_size, threads, max_bad_fraction, max_pixels: as for `predict_labeled`.
    keep_probabilities: keep those of all classes.

  Raises:
    ValueError: too many images cannot be read, or the weights are not finite.
  """
  # An exported program is one of a single device.
  one = None if isinstance(classifier, Classifier) else 1
  mesh = make_mesh(devices=jax.local_devices()[:one])
  check_finite(variables := put_replicated(classifier.variables, mesh))
  return predict_source(
    lambda variables, x: classifier.forward(variables, x)[0],
    variables,
    images,
    mesh,
    num_classes=classifier.num_classes,
    preprocessing=classifier.preprocessing,
    loss=classifier.loss,
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=max_bad_fraction,
    decoding=Decoding(max_pixels=max_pixels or classifier.max_pixels),
    keep_probabilities=keep_probabilities,
  )


def _load(
  weights: str | os.PathLike,
  crop: float | None,
  interpolation: str | None,
  options: dict[str, Any],
) -> ImageClassifier:
  """The classifier, with another preprocessing on request."""
  classifier = open_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(
      f'{weights} has no head, so it has features but no classes: fine-tune it '
      'first, or measure its features with vit-jax fewshot'
    )
  changes = {'crop': crop, 'interpolation': interpolation}
  classifier.preprocessing = dataclasses.replace(
    classifier.preprocessing,
    **{key: value for key, value in changes.items() if value is not None},
  )
  return classifier


def _with_outputs(
  images: Source,
  classifier: ImageClassifier,
  protocol: str | None,
  match_classes: str,
) -> Source:
  """The images with their labels as the outputs are numbered."""
  # Of TFDS's imagenet_v2 the labels are numbers of outputs already.
  if protocol == 'v2' and not images.name.startswith('tfds:'):
    return _numbered_folders(images, classifier.num_classes)
  return with_classes(
    images,
    classifier.num_classes,
    classifier.classes,
    classifier.source or 'the program',
    how=match_classes,
    fix='Rename the classes of the data; or take class i of the data for '
    "output i of the weights, with match_classes='numbers'",
  )


def _check_protocol(protocol: str | None, source: Source) -> str:
  """The protocol; ValueError if it does not go with the labels."""
  several = source.multi_label
  if protocol is None:
    return 'multilabel' if several else 'imagenet'
  if several != (protocol in _SEVERAL):
    fits = _SEVERAL if several else ('imagenet', 'v2')
    raise ValueError(
      f'protocol={protocol!r}: {source.name} has '
      f'{"several labels or none" if several else "one label"} for an image. '
      f'Choose {" or ".join(fits)}'
      + ('' if several else ', or give a file of several labels (labels)')
    )
  return protocol


def _numbered_folders(source: Source, num_classes: int) -> Source:
  """The source with its folders' names as class numbers (ImageNet-V2)."""
  names = source.class_names or []
  wrong = [x for x in names if not x.isdecimal() or int(x) >= num_classes]
  if wrong or not names:
    has = f'the folder {wrong[0]!r}' if wrong else 'no names of classes'
    raise ValueError(
      "protocol='v2' needs folders that are called by class numbers, 0 to "
      f'{num_classes - 1}, as in ImageNet-V2; {source.name} has {has}'
    )
  all_names = [str(i) for i in range(num_classes)]
  return Renumbered(source, [int(x) for x in names], all_names)


def _open(
  data: str | os.PathLike,
  name: str,
  split: str | None,
  labels: str | os.PathLike | None,
  flat: bool,
  classifier: ImageClassifier,
) -> Source:
  """Opens a split of labeled images; see `predict_labeled` for None."""
  data = str(as_path(data)) if data else ''
  if labels is not None:
    if name or split:
      raise ValueError(
        f'labels={os.fspath(labels)!r} goes with a folder or tar file of '
        'images, of which all are taken: give no source and no split'
      )
    return LabeledFiles(
      data, labels, classifier.num_classes, classifier.classes
    )
  kind = name or directory_source(data)
  if kind == 'folder':
    data, split = _without_train(data, split, flat)
  open_split = lambda split: open_source(
    kind, split=split, data_dir=data, holdout=0.0, flat=flat
  )
  if split is not None:
    return open_split(split)
  try:
    return open_split('test')  # or 'validation', if the source has that one
  except NoClasses as e:
    raise ValueError(
      f'{e}. Or give a file with the labels of the images (labels)'
    ) from e
  except NoSplit as no_test_split:
    # In a folder of classes no images are held out for 'test', so 'train' is
    # all images. A packed data set may have only one split.
    try:
      images = open_split('train')
    except NoSplit:
      raise no_test_split from None
    if kind == 'folder':
      images.name = f'folder {data}'
    return images


def _without_train(
  data: str, split: str | None, flat: bool
) -> tuple[str, str | None]:
  """The folder of the images to test, of a data set without a train folder.

  A folder that holds nothing but val/ has no training images, from which its
  classes could be numbered; they are then those of val/ itself.

  Returns:
    The folder to read and the split of it.
  """
  root = as_path(data)
  if flat or not root.is_dir():
    return data, split
  folders = {
    SPLIT_FOLDERS[path.name.lower()]: path
    for path in root.iterdir()
    if path.name.lower() in SPLIT_FOLDERS and path.is_dir()
  }
  if not folders or 'train' in folders:
    return data, split
  wanted = SPLIT_ALIASES.get(split or 'test', (split,))
  for name in wanted:
    if name in folders and _has_folders(folders[name]):
      return str(folders[name]), None
  return data, split


def _has_folders(folder: epath.Path) -> bool:
  return any(path.is_dir() for path in folder.iterdir())
