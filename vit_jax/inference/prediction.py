"""Classifies image files and directories: `predict`."""

from collections.abc import Iterator, Sequence
import json
import os
from typing import Any

from etils import epath

from vit_jax.data import listing
from vit_jax.data.decode import image_suffixes
from vit_jax.data.identity import fingerprint
from vit_jax.data.names import printable
from vit_jax.files import as_path, is_remote, open_atomically
from vit_jax.inference.classifier import ImageClassifier
from vit_jax.inference.export import load_exported
from vit_jax.inference.jobs import ALONE, Job, Share, identify
from vit_jax.inference.loading import load_classifier

# Images whose results a run that is killed loses at most, for each process.
SHARD_SIZE = 512


def predict(
  weights: str | os.PathLike,
  images: Sequence[str | os.PathLike] | str | os.PathLike,
  *,
  top_k: int = 5,
  batch_size: int = 32,
  **options: Any,
) -> list[dict[str, Any]]:
  """Classifies images and directories of images.

  Args:
    weights: the first argument of `load_classifier`, or an exported .stablehlo
      file.
    images: one path or several, of images or of directories. Directories are
      searched recursively.
    top_k: how many of the most probable classes to return.
    batch_size: number of images in a batch.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    A result for each image, as from `ImageClassifier.classify`.

  Raises:
    WeightsError: the weights cannot be read, or are of another model.
    ValueError: a directory has no images, the weights have no head, or an
      option does not fit them.
  """
  if isinstance(images, str | os.PathLike):
    images = [images]
  paths = list_images(images)
  classifier = open_classifier(weights, **options)
  return list(classifier.classify(paths, top_k=top_k, batch_size=batch_size))


def open_classifier(
  weights: str | os.PathLike,
  *,
  classes: Sequence[str] | None = None,
  **options: Any,
) -> ImageClassifier:
  """Loads weights or an exported program.

  Args:
    weights: the first argument of `load_classifier`, or an exported .stablehlo
      file.
    classes: class names, instead of those in the file.
    **options: other arguments of `load_classifier`. An exported program has a
      fixed model and image size, so it takes none of them.

  Raises:
    ValueError: an option was given for an exported program, or see
      `load_classifier`.
  """
  if not str(weights).endswith('.stablehlo'):
    return load_classifier(weights, classes=classes, **options)
  given = [name for name, value in options.items() if value]
  if given:
    raise ValueError(
      f'{weights} is an exported program, whose {given[0]} is fixed: export '
      f'the weights again with another {given[0]}'
    )
  classifier = load_exported(weights)
  if classes:
    classifier.set_classes(classes)
  return classifier


def list_images(paths: Sequence[str | os.PathLike]) -> list[str]:
  """Replaces directories by the images in them, sorted by name.

  Args:
    paths: files and directories. Files are kept, whatever their names are.

  Raises:
    ValueError: a directory has no images.
  """
  return [path for path, _ in list_sizes(paths)]


def list_sizes(paths: Sequence[str | os.PathLike]) -> list[tuple[str, int]]:
  """The images of `list_images` with their sizes in bytes, -1 if not known."""
  images = []
  for path in map(as_path, paths):
    if not path.is_dir():
      images.append((str(path), _size(path)))
      continue
    read = listing.list_images(path, tars=False)
    left_out = listing.in_words(read.skipped)
    if not read.files:
      raise ValueError(
        f'{path} has no images ({", ".join(image_suffixes())})'
        + (f'; skipped: {left_out}' if left_out else '')
      )
    summary = f'{path}: {len(read.files):,} images'
    if left_out:
      summary += f'; skipped: {left_out}'
    listing.report(summary, not set(+read.skipped) - {'hidden'})
    images += sorted((file.path, file.size) for file in read.files)
  return images


def _size(path: epath.Path) -> int:
  if is_remote(path):
    return -1
  try:
    return os.stat(path).st_size
  except OSError:  # reading the image will give the reason
    return -1


def predict_in_shards(
  classifier: ImageClassifier,
  images: Sequence[tuple[str, int]],
  directory: str | os.PathLike,
  *,
  top_k: int = 5,
  batch_size: int = 32,
  share: Share = ALONE,
) -> Job:
  """Classifies images so that a run that was killed goes on where it was.

  Args:
    classifier: the model.
    images: paths and sizes, see `list_sizes`.
    directory: directory of the shards of results.
    top_k, batch_size: as in `predict`.
    share: which of several processes this one is.

  Returns:
    The job, all of whose shards of this process are written; see
    `read_results`.

  Raises:
    ValueError: the directory has results of another model, other images or
      options.
  """
  names = [path for path, _ in images]
  job = Job(
    as_path(directory),
    len(names),
    {
      **identify(classifier),
      'images': fingerprint([(printable(p), size) for p, size in images]),
      'top_k': top_k,
      'max_pixels': classifier.max_pixels,
    },
    shard_size=SHARD_SIZE,
    suffix='.jsonl',
    share=share,
  )
  batch_size = min(batch_size, len(names))
  with job.progress('predicting') as progress:
    for shard in job.open_shards():
      start, stop = job.bounds(shard)
      with open_atomically(job.path(shard)) as file:
        for result in classifier.classify(
          names[start:stop], top_k=top_k, batch_size=batch_size, fixed=True
        ):
          file.write(json.dumps(result) + '\n')
          progress.advance()
  return job


def read_results(job: Job) -> Iterator[dict[str, Any]]:
  """The results of all images in order, from the shards of a complete job."""
  for shard in range(len(job.names)):
    for line in job.path(shard).read_text().splitlines():
      yield json.loads(line)
