"""TFDS data sets that were prepared in the array_record format."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import logging
import os
import re
from typing import Any

from etils import epath
import numpy as np

from vit_jax.data.decode import decode
from vit_jax.data.identity import fingerprint
from vit_jax.data.sources.source import Source, checked_index
from vit_jax.data.splits import pick_split
from vit_jax.files import as_path

log = logging.getLogger(__name__)

# Names of the feature that holds the labels; the first one that a data set has
# is read. ImageNet-ReaL (arXiv:2006.07159) has its labels in 'real_label', and
# ImageNet's own in 'original_label'.
_LABEL_FEATURES = ('label', 'labels', 'real_label')


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels that are computed from the features of an example.

  Attributes:
    names: names of the classes.
    number: from an example, {feature: value}, to its class number.
    pixel_factor: what the stored pixels are multiplied by.
  """

  names: tuple[str, ...]
  number: Callable[[Mapping[str, Any]], int]
  pixel_factor: int = 1


class Tfds(Source):
  """A TFDS data set in array_record format; never imports TensorFlow."""

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str,
    labels: Labels | str | None = None,
  ):
    """Opens a prepared data set.

    Args:
      name: 'cifar10', 'cifar10:3.0.2' or 'NAME/CONFIG'; without a version, the
        newest that is prepared. 'imagenet2012_real' has the labels of ReaL.
      split: name of a split, or an alias (see `splits.SPLIT_ALIASES`).
      data_dir: TFDS's data_dir; '' for $TFDS_DATA_DIR or TFDS's default.
      labels: the feature that holds the labels, or labels to compute; None
        finds the feature.

    Raises:
      ValueError: the data set is not prepared, is not in array_record format,
        or has no such split.
      ImportError: the package tensorflow-datasets is missing.
    """
    self._directory = _tfds_directory(name, data_dir)
    builder = _tfds_builder(self._directory)
    self._split = pick_split(split, sorted(builder.info.splits), f'tfds:{name}')
    features: Any = builder.info.features
    self._labels = labels if isinstance(labels, Labels) else None
    self._keys = _tfds_features(name, features, labels)
    self._data: Any = None
    self._length = builder.info.splits[self._split].num_examples
    self.name = f'tfds:{name}/{self._split}'
    self._set_classes(features)
    shape = features[self._keys['image']].shape
    self.image_shape = None if None in shape[:2] else tuple(shape[:2])
    stored: Any = builder.info.splits[self._split]
    self._identity = 'tfds', builder.info.full_name, self._split
    self.fingerprint = fingerprint(
      *self._identity,
      stored.shard_lengths,
      stored.num_bytes,
      [p.name for p in map(epath.Path, stored.filepaths)],
      self.class_names,
    )

  def _set_classes(self, features: Any) -> None:
    """Sets the number and the names of the classes."""
    if self._labels is not None:
      self.class_names = list(self._labels.names)
      self.num_classes = len(self.class_names)
      return
    label = features[self._keys['label']]
    self.multi_label = type(label).__name__ != 'ClassLabel'
    label = label.feature if self.multi_label else label
    self.num_classes = label.num_classes
    try:
      self.class_names = list(label.names)
    except ValueError:  # TFDS raises it where no names were given
      self.class_names = None

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    if self._data is None:
      # Not opened in __init__: a source is pickled for worker processes, and
      # an open reader cannot be.
      import tensorflow_datasets as tfds

      builder = _tfds_builder(self._directory)
      features: Any = builder.info.features
      images = [k for k, v in features.items() if type(v).__name__ == 'Image']
      self._data = builder.as_data_source(
        split=self._split,
        decoders={k: tfds.decode.SkipDecoding() for k in images},
      )
    i = checked_index(i, self._length)
    example = self._data[i]
    name = example.get(self._keys.get('id'), f'{self.name}/{i}')
    image = example[self._keys['image']]
    if self._labels is not None:
      label = self._labels.number(example)
      if self._labels.pixel_factor != 1:
        image = decode(image) * np.uint8(self._labels.pixel_factor)
    else:
      label = example[self._keys['label']]
      label = [int(x) for x in label] if self.multi_label else int(label)
    return {
      'image': image,
      'label': label,
      'id': name.decode() if isinstance(name, bytes) else str(name),
    }

  def earlier_fingerprint(self) -> str:
    return fingerprint(*self._identity, self._length)

  def __getstate__(self):
    return {**self.__dict__, '_data': None}


def _tfds_directory(name: str, data_dir: str) -> str:
  """The directory of the newest (or the named) prepared version."""
  root = as_path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  )
  path, _, version = name.partition(':')
  base = root / path
  prepare = (
    'prepare it once where TensorFlow is installed: `tfds build '
    f'{path} --data_dir={root} --file_format=array_record`'
  )
  if not base.is_dir():
    names = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    near = difflib.get_close_matches(path, names, n=3)
    raise ValueError(
      f'tfds:{name}: {base} does not exist'
      + (f'. Near names there: {", ".join(near)}' if near else '')
      + f'. Set data.dir to the data_dir of TFDS, or {prepare}'
    )
  versions = sorted(
    (
      p.name
      for p in base.iterdir()
      if re.fullmatch(r'\d+\.\d+\.\d+', p.name)
      and (p / 'dataset_info.json').exists()
    ),
    key=lambda v: [int(x) for x in v.split('.')],
  )
  if not versions:
    configs = sorted(p.name for p in base.iterdir() if p.is_dir())
    raise ValueError(
      f'tfds:{name}: no prepared version in {base}'
      + (
        f' (configs: {", ".join(f"{path}/{c}" for c in configs)})'
        if configs
        else ''
      )
      + f'; {prepare}'
    )
  if version and version not in versions:
    raise ValueError(
      f'tfds:{name}: version {version} is not in {base}, which has '
      f'{", ".join(versions)}'
    )
  return str(base / (version or versions[-1]))


def _tfds_builder(directory: str) -> Any:
  """The read-only builder of a prepared directory."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ImportError(
      'TFDS data needs tensorflow-datasets (not TensorFlow): '
      'pip install tensorflow-datasets'
    ) from e
  builder = tfds.builder_from_directory(directory)
  kind = builder.info.file_format
  if kind is None or kind.value != 'array_record':
    raise ValueError(
      f'{directory} is prepared as {kind and kind.value}, which only '
      "TensorFlow reads. Prepare it again with file_format='array_record', "
      'or convert it with `tfds convert_format --out_file_format='
      'array_record`.'
    )
  return builder


def _tfds_features(
  name: str, features: Any, wanted: Labels | str | None = None
) -> dict[str, str]:
  """The features to read: {'image': ..., 'label': ..., 'id': ...}.

  'id' is left out if no feature identifies the examples, and 'label' if
  `wanted` computes the labels.
  """
  kinds = {}
  for key, feature in features.items():
    kind = type(feature).__name__
    if kind == 'Sequence' and type(feature.feature).__name__ == 'ClassLabel':
      kind = 'ClassLabels'
    kinds[key] = kind
  images = [k for k, v in kinds.items() if v == 'Image']
  labels = [k for k, v in kinds.items() if v in ('ClassLabel', 'ClassLabels')]
  computed = isinstance(wanted, Labels)
  if not images or (not computed and not labels):
    raise ValueError(
      f'tfds:{name} has the features {kinds}; it needs an Image and a '
      'ClassLabel (or a Sequence of ClassLabel)'
    )
  chosen = {'image': _choose(name, images, ('image',))}
  if not computed:
    preferred = (wanted,) if wanted else _LABEL_FEATURES
    chosen['label'] = _choose(name, labels, preferred)
  for key in ('id', 'file_name', 'image/filename', 'filename'):
    if kinds.get(key) in ('Text', 'Tensor', 'Scalar'):
      chosen['id'] = key
      break
  return chosen


def _choose(name: str, keys: list[str], preferred: tuple[str, ...]) -> str:
  """The first preferred feature of one kind, or the first of all; logs it."""
  chosen = next((k for k in preferred if k in keys), keys[0])
  others = [k for k in keys if k != chosen]
  if others:
    log.info(
      'tfds:%s: reading feature %r, not %s', name, chosen, ', '.join(others)
    )
  return chosen
