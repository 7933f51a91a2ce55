"""Where examples come from: random-access sources of (image, label, id).

A source is a sequence: `source[i]` gives

  image  encoded bytes (JPEG, PNG, WebP), or a uint8 array (H, W, 3)
  label  an int; when the source is `multi_label` a list of ints, or a soft
         label {class: probability}
  id     a string that names the example (a path, a TFDS id, ...)

`open_source(name, split=..., data_dir=...)` opens any of

  digits      scikit-learn's 1,797 digits, 8x8, in its package; 1,437 / 360
  folder      DIR/{train,val,test}/class/x.jpg, or DIR/class/x.jpg (held out)
  packed      ArrayRecord shards written by `vit-jax pack` (see pack.py)
  synthetic   any number of images, a pure function of the index
  tfds:NAME   a TFDS data set prepared as array_record, read without TensorFlow

Splits take TFDS's syntax everywhere: 'train', 'train[:98%]', 'train[-500:]',
'train+validation'. The order of every split is fixed and does not follow the
classes, so that a sub-split is a random sample.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re

from etils import epath
import numpy as np

from vit_jax.data import records

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
SOURCES = ('digits', 'folder', 'packed', 'synthetic', 'tfds:NAME')
# What a folder or file may call the split that is asked for, best first.
SPLIT_ALIASES = {
    'train': ('train',),
    'test': ('test', 'validation', 'val'),
    'validation': ('validation', 'val', 'test'),
    'val': ('val', 'validation', 'test'),
}


class Source(Sequence):
  """A fixed sequence of examples (see the module docstring).

  Attributes:
    name: what it is, for messages.
    num_classes: number of classes.
    class_names: list of names, or None where the source has none.
    multi_label: whether labels are lists of ints.
    image_shape: (height, width) where all images share it, else None.
    fingerprint: a stable string; changes if the examples or their order do.
    in_memory: whether examples are arrays that need no reading or decoding.
  """

  name: str = ''
  num_classes: int = 0
  class_names: list[str] | None = None
  multi_label: bool = False
  image_shape: tuple[int, int] | None = None
  fingerprint: str = ''
  in_memory: bool = False

  def describe(self, i: int) -> str:
    """The id or path of example i, also where the example cannot be read."""
    try:
      return self[i]['id']
    except Exception:  # this is for messages about broken examples
      return f'{self.name} example {i}'

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """All examples in memory: uint8 (N, H, W, 3) and int32 (N,) or float
    (N, C) multi-hot labels. Raises ValueError where image sizes differ."""
    from vit_jax.data import transforms
    images, labels = None, label_array(self, len(self))
    for i in range(len(self)):
      example = self[i]
      try:
        image = transforms.decode(example['image'])
      except transforms.BadImage as e:
        raise ValueError(
            f'{example["id"]}: {e}. A data set that is held in memory must be '
            'readable as a whole; remove the file, or set '
            "data.device_cache='off' to have it skipped.") from e
      if images is None:
        images = np.empty((len(self), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise ValueError(
            f'{example["id"]} is {image.shape[:2]}, others are '
            f'{images.shape[1:3]}: a data set held in memory needs images of '
            "one size. Set data.device_cache='off'.")
      images[i] = image
      set_label(labels, i, example['label'])
    return images, labels


def label_array(source: Source, n: int) -> np.ndarray:
  """Zeros for n labels: int32 (n,), or float32 (n, C) for multi-label."""
  if source.multi_label:
    return np.zeros((n, source.num_classes), np.float32)
  return np.zeros((n,), np.int32)


def set_label(labels: np.ndarray, i: int,
              label: int | Sequence[int] | dict[int, float]):
  """Writes one label into `label_array`'s row i."""
  if isinstance(label, dict):
    labels[i, list(label)] = list(label.values())
  elif labels.ndim == 2:
    labels[i, np.asarray(label, np.int64)] = 1.0
  else:
    labels[i] = label


def fingerprint(*parts) -> str:
  """16 hexadecimal digits of the JSON of `parts`."""
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Subset(Source):
  """Examples [start, stop) of a source."""

  def __init__(self, parent: Source, start: int, stop: int, name: str):
    self._parent, self._start, self._length = parent, start, stop - start
    self.name = name
    self.num_classes, self.class_names = parent.num_classes, parent.class_names
    self.multi_label, self.image_shape = parent.multi_label, parent.image_shape
    self.in_memory = parent.in_memory
    self.fingerprint = fingerprint(parent.fingerprint, start, stop)

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    return self._parent[self._start + _checked(i, self._length)]

  def describe(self, i):
    return self._parent.describe(self._start + i)

  def arrays(self):
    images, labels = self._parent.arrays()
    part = slice(self._start, self._start + self._length)
    return images[part], labels[part]


class Concat(Source):
  """Several sources with the same classes, one after the other."""

  def __init__(self, parts: Sequence[Source], name: str):
    first = parts[0]
    self._parts = list(parts)
    self._ends = np.cumsum([len(p) for p in parts])
    self.name = name
    self.num_classes, self.class_names = first.num_classes, first.class_names
    # Classes and soft labels side by side: the classes become one-hot.
    self.multi_label = any(p.multi_label for p in parts)
    self.in_memory = first.in_memory
    same = {p.image_shape for p in parts}
    self.image_shape = same.pop() if len(same) == 1 else None
    self.fingerprint = fingerprint([p.fingerprint for p in parts])

  def __len__(self):
    return int(self._ends[-1])

  def _find(self, i):
    part = int(np.searchsorted(self._ends, i, side='right'))
    return self._parts[part], i - (int(self._ends[part - 1]) if part else 0)

  def __getitem__(self, i):
    part, j = self._find(_checked(i, len(self)))
    return part[j]

  def describe(self, i):
    part, j = self._find(i)
    return part.describe(j)

  def arrays(self):
    images, labels = zip(*(p.arrays() for p in self._parts))
    if self.multi_label:
      labels = [x if x.ndim == 2 else np.eye(
          self.num_classes, dtype=np.float32)[x] for x in labels]
    return np.concatenate(images), np.concatenate(labels)


def _checked(i, length: int) -> int:
  """A valid index as int; negative ones count from the end."""
  i = int(i)
  if not -length <= i < length:
    raise IndexError(f'example {i} of a source of {length}')
  return i % length


class Digits(Source):
  """scikit-learn's handwritten digits: 8x8 grey, as uint8 RGB.

  The split is stratified and fixed: a seeded permutation of the 1,797 images,
  of which every fifth in the order of (class, permutation) is for testing.
  """

  image_shape = (8, 8)
  in_memory = True
  num_classes = 10

  def __init__(self, split: str):
    from sklearn import datasets  # takes a second: only when asked for
    data = datasets.load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(
        len(data.target))
    held_out = order[np.argsort(data.target[order], kind='stable')[::5]]
    is_test = np.zeros(len(order), bool)
    is_test[held_out] = True
    if split not in ('train', 'test'):
      raise _unknown_split(split, ('train', 'test'), 'digits')
    self._ids = order[is_test[order] == (split == 'test')]
    grey = np.round(data.images[self._ids] * (255 / 16)).astype(np.uint8)
    self._images = np.repeat(grey[..., None], 3, axis=-1)
    self._labels = data.target[self._ids].astype(np.int32)
    self.name = f'digits/{split}'
    self.class_names = [str(i) for i in range(10)]
    self.fingerprint = fingerprint('digits', split, self._ids.tolist())

  def __len__(self):
    return len(self._ids)

  def __getitem__(self, i):
    i = _checked(i, len(self))
    return {'image': self._images[i], 'label': int(self._labels[i]),
            'id': f'digits/{self._ids[i]}'}

  def arrays(self):
    return self._images, self._labels


class Synthetic(Source):
  """Noise around a colour that depends on the class; for smoke and speed runs.

  Image, label and id are a pure function of (split, index).
  """

  in_memory = True

  def __init__(self, split: str, num_examples: int, num_classes: int,
               image_size: int | tuple[int, int]):
    shape = ((image_size,) * 2 if isinstance(image_size, int)
             else tuple(image_size))
    if num_examples < 1 or num_classes < 1:
      raise ValueError(
          f'synthetic data with num_examples={num_examples}, num_classes='
          f'{num_classes}: both must be at least 1')
    self._n, self._stream = num_examples, int(fingerprint(split)[:8], 16)
    self.num_classes, self.image_shape = num_classes, shape
    self.name = f'synthetic/{split}'
    self.fingerprint = fingerprint(
        'synthetic', split, num_examples, num_classes, shape)

  def __len__(self):
    return self._n

  def __getitem__(self, i):
    i = _checked(i, self._n)
    label = i % self.num_classes
    rng = np.random.Generator(np.random.Philox(key=[self._stream, i]))
    # A colour from a van der Corput-like sequence keeps classes apart.
    colour = np.floor(np.array([0.618034, 0.754878, 0.569840]) * (label + 1)
                      % 1.0 * 192).astype(np.uint8)
    noise = rng.integers(0, 64, (*self.image_shape, 3), dtype=np.uint8)
    return {'image': noise + colour, 'label': label, 'id': f'{self.name}/{i}'}


class Folder(Source):
  """A directory of images, one directory a class.

  Either DIR/train/class/x.jpg with val/, validation/ or test/ beside it, or
  DIR/class/x.jpg, where a fixed fraction of every class (chosen by a hash of
  the file name) is held out as the split 'test'. Class numbers follow the
  sorted class names of the training part, whatever the split, so they agree.
  Examples are in the order of a hash of their path.
  """

  def __init__(self, split: str, data_dir: str, holdout: float):
    root = _directory(data_dir, 'folder')
    found = [n for n in ('train', 'val', 'validation', 'test')
             if (root / n).is_dir()]
    if 'train' in found:
      chosen = _pick_split(split, found, f'folder {root}')
      classes = scan_classes(root / 'train')
      files = classes if chosen == 'train' else scan_classes(root / chosen)
      names = sorted(classes)
      extra = sorted(set(files) - set(names))
      if extra:
        raise ValueError(
            f'{root / chosen} has classes that {root / "train"} has not: '
            f'{", ".join(extra[:10])}. A class needs training images: add '
            f'them, or remove the class from {chosen}.')
      prefix = chosen + '/'
    elif found:
      raise ValueError(
          f'{root} has {", ".join(found)} but no train directory. Class '
          'numbers come from the training images: add train/CLASS/*.jpg, or '
          'give a flat directory of classes.')
    else:
      if split not in ('train', *SPLIT_ALIASES['test']):
        raise _unknown_split(split, ('train', 'test'), f'folder {root}')
      if not 0 <= holdout < 1:
        raise ValueError(f'data.holdout={holdout}: must be in [0, 1)')
      every = scan_classes(root)
      names = sorted(every)
      files = {c: _held_out(every[c], holdout, split != 'train') for c in names}
      prefix = ''
    examples = sorted(
        (hashlib.md5(path.encode()).digest(), path, label)
        for label, c in enumerate(names)
        for path in (f'{prefix}{c}/{f}' for f in files.get(c, ())))
    if not examples:
      raise ValueError(
          f'{root}: the split {split!r} is empty (holdout={holdout})')
    self._root = str(root)
    self._paths = [path for _, path, _ in examples]
    self._labels = np.array([label for _, _, label in examples], np.int32)
    self.num_classes, self.class_names = len(names), names
    self.name = f'folder {root} ({split})'
    self.fingerprint = fingerprint('folder', self._paths, names)

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, i):
    i = _checked(i, len(self))
    path = self.describe(i)
    if '://' in path:
      data = epath.Path(path).read_bytes()
    else:
      with open(path, 'rb') as f:
        data = f.read()
    return {'image': data, 'label': int(self._labels[i]), 'id': self._paths[i]}

  def describe(self, i):
    return f'{self._root}/{self._paths[i]}'


def scan_classes(root: epath.Path) -> dict[str, list[str]]:
  """{class: its image file names}, for the classes that have any."""
  try:
    entries = sorted(p for p in root.iterdir() if not p.name.startswith('.'))
    loose = [p.name for p in entries if p.suffix.lower() in IMAGE_SUFFIXES]
    files = {}
    for directory in entries:
      if directory.name in loose or not directory.is_dir():
        continue
      images = sorted(
          p.name for p in directory.iterdir()
          if p.suffix.lower() in IMAGE_SUFFIXES
          and not p.name.startswith('.'))
      if images:
        files[directory.name] = images
  except PermissionError as e:
    raise ValueError(
        f'{e.filename}: not readable (permission denied). Give this user '
        'read access to the data.') from e
  if files:
    return files
  if loose:
    raise ValueError(
        f'{root} has {len(loose)} images but no class directories. Put them '
        f'into one directory a class: {root}/CLASS/{loose[0]}')
  raise ValueError(
      f'{root} has no images: nothing matches CLASS/*'
      f'{{{",".join(IMAGE_SUFFIXES)}}} (upper case is fine too)')


def _held_out(files: list[str], fraction: float, test: bool) -> list[str]:
  """The test (or training) part of one class; training keeps at least one."""
  ordered = sorted(files, key=lambda f: hashlib.md5(f.encode()).digest())
  n = min(max(round(len(files) * fraction), int(fraction > 0)), len(files) - 1)
  return ordered[:n] if test else ordered[n:]


@dataclasses.dataclass(frozen=True)
class _Shard:
  """What ArrayRecordDataSource must know of a file not to open it at once."""
  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Packed(Source):
  """ArrayRecord shards with a metadata file, written by `vit-jax pack`."""

  def __init__(self, split: str, data_dir: str):
    root = _directory(data_dir, 'packed')
    found = sorted(p.name[:-len(records.META_SUFFIX)] for p in root.iterdir()
                   if p.name.endswith(records.META_SUFFIX))
    if not found:
      raise ValueError(
          f'{root} has no *{records.META_SUFFIX}: not a packed data set, or '
          'one whose packing did not finish. Write it with `vit-jax pack`.')
    chosen = _pick_split(split, found, f'packed data in {root}')
    meta = json.loads((root / (chosen + records.META_SUFFIX)).read_text())
    if meta.get('version') not in (records.VERSION, records.SOFT_VERSION):
      raise ValueError(
          f'{root}/{chosen}{records.META_SUFFIX} has version '
          f'{meta.get("version")}, this reads {records.VERSION}: pack it again')
    missing = [s['file'] for s in meta['shards']
               if not (root / s['file']).exists()]
    if missing:
      raise ValueError(
          f'{root} lacks {len(missing)} of {len(meta["shards"])} shards '
          f'({", ".join(missing[:3])}): copy them, or pack again')
    self._shards = [_Shard(str(root / s['file']), 0, s['count'], s['count'])
                    for s in meta['shards'] if s['count']]
    self._records = None
    self._length = meta['num_examples']
    self.num_classes = meta['num_classes']
    self.class_names = meta['class_names']
    self.multi_label = meta['multi_label']
    self.image_shape = (tuple(meta['image_shape']) if meta['image_shape']
                        else None)
    self.name = f'packed {root} ({chosen})'
    self.fingerprint = meta['fingerprint']

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    if self._records is None:  # opened lazily: readers do not pickle
      from array_record.python import array_record_data_source
      self._records = array_record_data_source.ArrayRecordDataSource(
          self._shards)
    image, labels, name = records.decode_record(
        self._records[_checked(i, self._length)])
    return {'image': image, 'id': name,
            'label': labels if self.multi_label else labels[0]}

  def __getstate__(self):
    return {**self.__dict__, '_records': None}


class Tfds(Source):
  """A TFDS data set in array_record format; never imports TensorFlow.

  `name` is 'cifar10', 'cifar10:3.0.2' or 'NAME/CONFIG'; without a version the
  newest prepared one is read.
  """

  def __init__(self, name: str, split: str, data_dir: str):
    self._directory = _tfds_directory(name, data_dir)
    builder = _tfds_builder(self._directory)
    self._split = _pick_split(split, sorted(builder.info.splits),
                              f'tfds:{name}')
    features = builder.info.features
    self._keys = _tfds_features(name, features)
    self._data = None
    self._length = builder.info.splits[self._split].num_examples
    self.name = f'tfds:{name}/{self._split}'
    label = features[self._keys['label']]
    self.multi_label = type(label).__name__ != 'ClassLabel'
    label = label.feature if self.multi_label else label
    self.num_classes = label.num_classes
    try:
      self.class_names = list(label.names)
    except ValueError:  # TFDS raises it where no names were given
      self.class_names = None
    shape = features[self._keys['image']].shape
    self.image_shape = None if None in shape[:2] else tuple(shape[:2])
    self.fingerprint = fingerprint(
        'tfds', builder.info.full_name, self._split, self._length)

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    if self._data is None:  # opened lazily: readers do not pickle
      import tensorflow_datasets as tfds
      builder = _tfds_builder(self._directory)
      images = [k for k, v in builder.info.features.items()
                if type(v).__name__ == 'Image']
      self._data = builder.as_data_source(
          split=self._split,
          decoders={k: tfds.decode.SkipDecoding() for k in images})
    i = _checked(i, self._length)
    example = self._data[i]
    name = example.get(self._keys.get('id'), f'{self.name}/{i}')
    label = example[self._keys['label']]
    return {
        'image': example[self._keys['image']],
        'label': [int(x) for x in label] if self.multi_label else int(label),
        'id': name.decode() if isinstance(name, bytes) else str(name)}

  def __getstate__(self):
    return {**self.__dict__, '_data': None}


def _tfds_directory(name: str, data_dir: str) -> str:
  """The directory of the newest (or the named) prepared version."""
  root = epath.Path(data_dir or os.environ.get(
      'TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
  path, _, version = name.partition(':')
  base = root / path
  prepare = (f"prepare it once where TensorFlow is installed: `import "
             f"tensorflow_datasets as tfds; tfds.builder({path!r}, data_dir="
             f"'{root}', file_format='array_record').download_and_prepare()`")
  if not base.is_dir():
    there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    near = difflib.get_close_matches(path, there, n=3)
    raise ValueError(
        f'tfds:{name}: {base} does not exist'
        + (f'. Near names there: {", ".join(near)}' if near else '')
        + f'. Give data.dir the TFDS data_dir, or {prepare}')
  versions = sorted(
      (p.name for p in base.iterdir()
       if re.fullmatch(r'\d+\.\d+\.\d+', p.name)
       and (p / 'dataset_info.json').exists()),
      key=lambda v: [int(x) for x in v.split('.')])
  if not versions:
    configs = sorted(p.name for p in base.iterdir() if p.is_dir())
    raise ValueError(
        f'tfds:{name}: no prepared version in {base}'
        + (f' (configs: {", ".join(f"{path}/{c}" for c in configs)})'
           if configs else '') + f'; {prepare}')
  if version and version not in versions:
    raise ValueError(
        f'tfds:{name}: version {version} is not in {base}; there are '
        f'{", ".join(versions)}')
  return str(base / (version or versions[-1]))


def _tfds_builder(directory: str):
  """The read-only builder of a prepared directory."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ImportError(
        'TFDS data needs tensorflow-datasets (not TensorFlow): '
        'pip install tensorflow-datasets') from e
  builder = tfds.builder_from_directory(directory)
  kind = builder.info.file_format
  if kind is None or kind.value != 'array_record':
    raise ValueError(
        f'{directory} is prepared as {kind and kind.value}, which only '
        "TensorFlow reads. Prepare it again with file_format='array_record', "
        'or convert it with `tfds convert_format --out_file_format='
        'array_record`.')
  return builder


def _tfds_features(name: str, features) -> dict[str, str]:
  """Which feature is the image, the label (or labels) and the id."""
  kinds = {}
  for key, feature in features.items():
    kind = type(feature).__name__
    if kind == 'Sequence' and type(feature.feature).__name__ == 'ClassLabel':
      kind = 'ClassLabels'
    kinds[key] = kind
  images = [k for k, v in kinds.items() if v == 'Image']
  labels = [k for k, v in kinds.items() if v in ('ClassLabel', 'ClassLabels')]
  if not images or not labels:
    raise ValueError(
        f'tfds:{name} has features {kinds}: an Image and a ClassLabel (or a '
        'Sequence of ClassLabel) are needed')
  pick = lambda keys, *wanted: next((k for k in wanted if k in keys), keys[0])
  chosen = {'image': pick(images, 'image'),
            'label': pick(labels, 'label', 'labels')}
  for key in ('id', 'file_name', 'image/filename', 'filename'):
    if kinds.get(key) in ('Text', 'Tensor', 'Scalar'):
      chosen['id'] = key
      break
  return chosen


def _directory(data_dir: str, source: str) -> epath.Path:
  """An existing directory, or the error that says what is missing."""
  if not data_dir:
    raise ValueError(
        f'data.source={source!r} needs data.dir: the directory with the images'
        if source == 'folder' else
        f'data.source={source!r} needs data.dir: the directory that '
        '`vit-jax pack` wrote')
  root = epath.Path(data_dir).expanduser()
  if not root.exists():
    raise ValueError(f'data.dir={data_dir!r} does not exist')
  if not root.is_dir():
    raise ValueError(f'data.dir={data_dir!r} is a file, not a directory')
  return root


def _unknown_split(split: str, there, what: str) -> ValueError:
  return ValueError(
      f'{what} has no split {split!r}; it has {", ".join(there)}. A part of '
      "one can be held out: 'train[:90%]' and 'train[90%:]'")


def _pick_split(split: str, there: Sequence[str], what: str) -> str:
  """The split to read: itself, or what this source calls its test split."""
  for name in SPLIT_ALIASES.get(split, (split,)):
    if name in there:
      if name != split:
        log.info('%s has no split %r: using %r', what, split, name)
      return name
  raise _unknown_split(split, there, what)


def parse_split(split: str) -> list[tuple[str, str, str]]:
  """'train[:98%]+test' -> [('train', '', '98%'), ('test', '', '')].

  Raises:
    ValueError: the text is not in TFDS's split syntax.
  """
  parts = []
  for part in split.split('+'):
    match = re.fullmatch(
        r'\s*([\w\-.]+)(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*', part)
    if not match:
      raise ValueError(
          f'split {split!r}: cannot read {part!r}; examples are '
          "'train', 'train[:98%]', 'train[-500:]', 'train[10%:20%]+test'")
    parts.append((match[1], match[2] or '', match[3] or ''))
  return parts


def split_bounds(start: str, stop: str, n: int) -> tuple[int, int]:
  """Absolute [start, stop) of a slice of n examples; percentages round to the
  nearest, as in TFDS."""
  def absolute(text: str, default: int) -> int:
    if not text:
      return default
    value = (round(int(text[:-1]) * n / 100) if text.endswith('%')
             else int(text))
    return min(max(value + n if value < 0 else value, 0), n)
  return absolute(start, 0), absolute(stop, n)


def open_source(
    name: str,
    *,
    split: str,
    data_dir: str = '',
    holdout: float = 0.1,
    num_classes: int | None = None,
    num_examples: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Source:
  """Opens a source of examples.

  Args:
    name: one of `SOURCES`.
    split: a split or sub-split in TFDS's syntax, such as 'train[:98%]'.
    data_dir: the directory of 'folder' or 'packed', the data_dir of TFDS.
    holdout: fraction of a flat folder that is the split 'test'.
    num_classes: of 'synthetic' (default 10).
    num_examples: of 'synthetic' (default 1024).
    image_size: of 'synthetic' (default 224).

  Raises:
    ValueError: what is wrong with the name, split or directory, and the fix.
  """
  if name == 'digits':
    open_one = Digits
  elif name == 'folder':
    open_one = lambda s: Folder(s, data_dir, holdout)
  elif name == 'packed':
    open_one = lambda s: Packed(s, data_dir)
  elif name == 'synthetic':
    open_one = lambda s: Synthetic(
        s, num_examples or 1024, num_classes or 10, image_size or 224)
  elif name.startswith('tfds:') and name != 'tfds:':
    open_one = lambda s: Tfds(name.removeprefix('tfds:'), s, data_dir)
  else:
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    raise ValueError(
        f'unknown data source {name!r}'
        + (f': did you mean {near[0]!r}?' if near else '')
        + f' Sources: {", ".join(SOURCES)}')
  opened, parts = {}, []
  for part, start, stop in parse_split(split):
    if part not in opened:
      opened[part] = open_one(part)
    source = opened[part]
    if start or stop:
      low, high = split_bounds(start, stop, len(source))
      if low >= high:
        raise ValueError(
            f'split {split!r}: {part}[{start}:{stop}] is empty; {part} has '
            f'{len(source)} examples')
      source = Subset(source, low, high, f'{source.name}[{start}:{stop}]')
    parts.append(source)
  return parts[0] if len(parts) == 1 else Concat(
      parts, ' + '.join(p.name for p in parts))
