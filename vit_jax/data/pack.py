"""Packs images into ArrayRecord shards: the engine of `vit-jax pack`.

One sequential-friendly, shuffled copy of a large data set, read by the source
'packed'. The inputs may be

  a folder   DIR/class/x.jpg, or DIR/{train,val,test}/class/x.jpg, which packs
             every split
  tar files  of class directories; flat with one tar a class (its name is the
             class, as ImageNet-21k comes); or a tar of such tars (ImageNet)
  either, with a labels file: JSON {"x.jpg": label or [labels], ...} or CSV
             lines `x.jpg,label[,label...]` (or `label;label`). A label is a
             class name or a class number; lists make the data multi-label

What comes out is described in records.py. Files get their final names only
when everything is written, the metadata file last.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
import tarfile
import zlib

import numpy as np
from PIL import Image

from vit_jax.data import records, transforms
from vit_jax.data.sources.folder import IMAGE_SUFFIXES, scan_classes

log = logging.getLogger(__name__)

EXAMPLES_PER_SHARD = 10_000  # what the default number of shards aims at


@dataclasses.dataclass(frozen=True)
class Item:
  """One image: a file, or `size` bytes at `offset` of a tar."""

  path: str
  name: str  # the id
  label: str  # class name by its place; '' where there is none
  offset: int = 0
  size: int = -1

  def read(self) -> bytes:
    with open(self.path, 'rb') as f:
      f.seek(self.offset)
      return f.read(self.size)


def pack(
  inputs: str | os.PathLike | Sequence[str | os.PathLike],
  out_dir: str | os.PathLike,
  *,
  split: str | None = None,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  short_side: int | None = None,
  quality: int = 95,
  labels_file: str | os.PathLike | None = None,
  threads: int | None = None,
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict]:
  """Writes the shards and metadata of one or more splits.

  Args:
    inputs: a directory, a tar file, or several of either.
    out_dir: where to write; created if needed.
    split: the name of the split; by default 'train', or those of a directory
      that has train/ beside val/, validation/ or test/. Other splits take the
      class numbers of the 'train' that is in `out_dir` already.
    shards: files a split is cut into; by default one per 10,000 images.
    shuffle_seed: of the order; None keeps the order of the names.
    short_side: shrink larger images to this shorter side, re-encoded as JPEG.
    quality: of that JPEG.
    labels_file: JSON or CSV with the labels, see the module docstring.
    threads: that read, check and re-encode; by default one a core.
    overwrite: replace a split that is there already.
    progress: called with (images done, images in the split).

  Returns:
    {split: metadata}; `metadata['bad']` counts the images that could not be
    decoded and were left out, `metadata['bad_examples']` names them with the
    reason.

  Raises:
    ValueError: nothing to pack, a class or label that does not fit, a split
      that exists; each with the fix.
  """
  paths = [
    pathlib.Path(p).expanduser()
    for p in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
  ]
  missing = [str(p) for p in paths if not p.exists()]
  if missing or not paths:
    raise ValueError(
      f'nothing to pack: {", ".join(missing) or "no input"} '
      'does not exist. Give image folders or tar files.'
    )
  if shards is not None and shards < 1:
    raise ValueError(f'shards={shards}: must be at least 1')
  if not 1 <= quality <= 100:
    raise ValueError(f'quality={quality}: must be in [1, 100]')
  out = pathlib.Path(out_dir).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  options = dict(
    shards=shards,
    shuffle_seed=shuffle_seed,
    short_side=short_side,
    quality=quality,
    threads=threads or os.cpu_count() or 1,
    overwrite=overwrite,
    progress=progress,
  )
  labels = _read_labels(pathlib.Path(labels_file)) if labels_file else None
  if split is None and len(paths) == 1 and (paths[0] / 'train').is_dir():
    parts = [
      (name, [paths[0] / name])
      for name in ('train', 'validation', 'val', 'test')
      if (paths[0] / name).is_dir()
    ]
  else:
    parts = [(split or 'train', paths)]
  for name, _ in parts:
    if not overwrite and has_split(out, name):
      raise ValueError(
        f'{out} already has the split {name!r}: give another directory or '
        'split, or overwrite=True'
      )
  return {
    name: _pack_split(name, part, out, labels, **options)
    for name, part in parts
  }


def _pack_split(
  split,
  paths,
  out,
  labels,
  *,
  shards,
  shuffle_seed,
  short_side,
  quality,
  threads,
  overwrite,
  progress,
) -> dict:
  """Packs one split and returns its metadata."""
  items = sorted(
    (i for p in paths for i in list_items(p, labels is not None)),
    key=lambda i: i.name,
  )
  if not items:
    raise ValueError(
      f'{", ".join(map(str, paths))}: no images '
      f'({", ".join(IMAGE_SUFFIXES)}, in any case)'
    )
  numbers, classes = _number(items, labels, classes_of_train(split, out))
  return write_split(
    split,
    out,
    items,
    numbers,
    classes,
    shards=shards,
    shuffle_seed=shuffle_seed,
    short_side=short_side,
    quality=quality,
    threads=threads,
    overwrite=overwrite,
    progress=progress,
  )


def write_split(
  split: str,
  out: pathlib.Path,
  items: list[Item],
  numbers: list,
  classes: dict,
  *,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  short_side: int | None = None,
  quality: int = 95,
  threads: int = 1,
  overwrite: bool = False,
  progress: Callable | None = None,
) -> dict:
  """Writes images with known labels as one split.

  Args:
    split, out: its name and directory.
    items: the images; one may be there several times.
    numbers: for each the list of its class numbers, or {class: probability}.
    classes: 'num_classes', 'class_names', 'multi_label' of the metadata.
    shards, ..., progress: see `pack`.

  Returns:
    The metadata.

  Raises:
    ValueError: the split exists, or no image can be decoded.
  """
  if not overwrite and has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another directory or '
      'split, or overwrite=True'
    )
  if shuffle_seed is not None:
    order = np.random.Generator(np.random.Philox(shuffle_seed)).permutation(
      len(items)
    )
    items = [items[i] for i in order]
    numbers = [numbers[i] for i in order]
  shards = shards or -(-len(items) // EXAMPLES_PER_SHARD)
  bounds = [len(items) * i // shards for i in range(shards + 1)]
  names = [records.shard_name(split, i, shards) for i in range(shards)]
  soft = any(isinstance(n, dict) for n in numbers)
  counts, bad, shapes = [], [], set()
  per_class = np.zeros(classes['num_classes'], np.int64)
  digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode())
  done = 0
  check = lambda item: _check(item, short_side, quality)
  try:
    with futures.ThreadPoolExecutor(threads) as pool:
      for name, low, high in zip(names, bounds, bounds[1:], strict=False):
        writer = _writer(out / (name + '.tmp'))
        written = 0
        try:
          for i, (image, shape, reason) in zip(
            range(low, high),
            _ordered(pool, check, items[low:high]),
            strict=False,
          ):
            done += 1
            if progress:
              progress(done, len(items))
            if reason:
              bad.append({'id': items[i].name, 'reason': reason})
              log.warning('left out: %s (%s)', items[i].name, reason)
              continue
            record = records.encode_record(image, numbers[i], items[i].name)
            writer.write(record)
            digest.update(
              f'{items[i].name} {numbers[i]} {zlib.crc32(image)}\n'.encode()
            )
            per_class[_counted(numbers[i])] += 1
            shapes.add(shape)
            written += 1
        finally:
          writer.close()
        counts.append(written)
    if not sum(counts):
      raise ValueError(
        f'none of the {len(items)} images can be decoded; the first: '
        f'{bad[0]["id"]}: {bad[0]["reason"]}'
      )
    meta = {
      'format': 'vit_jax packed images',
      'version': records.SOFT_VERSION if soft else records.VERSION,
      'split': split,
      'num_examples': sum(counts),
      **classes,
      'image_shape': list(shapes.pop()) if len(shapes) == 1 else None,
      'shards': [
        {'file': n, 'count': c} for n, c in zip(names, counts, strict=False)
      ],
      'examples_per_class': per_class.tolist(),
      'bad': len(bad),
      'bad_examples': bad[:1000],
      'short_side': short_side,
      'shuffle_seed': shuffle_seed,
      'fingerprint': digest.hexdigest()[:16],
    }
    _publish(split, out, names, meta)
  finally:
    for name in names:
      (out / (name + '.tmp')).unlink(missing_ok=True)
  return meta


def _counted(labels):
  """What an example counts for: its labels, the most probable soft one."""
  return max(labels, key=labels.get) if isinstance(labels, dict) else labels


def _publish(split, out, names, meta):
  """Gives the files their names: stale metadata away, shards, metadata."""
  index = out / (split + records.META_SUFFIX)
  stale = []
  if index.exists():
    stale = [s['file'] for s in json.loads(index.read_text())['shards']]
    index.unlink()
  for name in names:
    os.replace(out / (name + '.tmp'), out / name)
  for name in set(stale) - set(names):
    (out / name).unlink(missing_ok=True)
  temporary = out / (index.name + '.tmp')
  temporary.write_text(json.dumps(meta, indent=1))
  os.replace(temporary, index)


def _writer(path: pathlib.Path):
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordWriter(
    str(path), 'group_size:1,uncompressed'
  )


def _ordered(pool, function, items) -> Iterator:
  """`map` in a pool, in order, with few results waiting."""
  chunk = 256
  for start in range(0, len(items), chunk):
    yield from pool.map(function, items[start : start + chunk])


def _check(item: Item, short_side, quality):
  """(bytes to store, (height, width), '') or (None, None, what is wrong)."""
  try:
    data = item.read()
    image = transforms.decode(data)
  except (OSError, transforms.BadImage) as e:
    return None, None, str(e)
  if short_side and min(image.shape[:2]) > short_side:
    height, width = transforms.short_side(*image.shape[:2], short_side)
    small = Image.fromarray(image).resize(
      (width, height), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    small.save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue(), (height, width), ''
  return data, image.shape[:2], ''


# --- What there is to pack --------------------------------------------------


def list_items(path: pathlib.Path, labelled: bool) -> list[Item]:
  """The images of a folder or tar file.

  `labelled`: labels come from elsewhere, so a folder is searched to any depth
  instead of taking its directories as classes.
  """
  if path.is_dir():
    if labelled:
      return [
        Item(str(p), p.relative_to(path).as_posix(), '')
        for p in path.rglob('*')
        if _is_image(p.name)
      ]
    return [
      Item(str(path / c / f), f'{c}/{f}', c)
      for c, files in scan_classes(path).items()
      for f in files
    ]
  if not tarfile.is_tarfile(path):
    raise ValueError(f'{path} is neither a directory nor a tar file')
  try:
    with tarfile.open(path, 'r:') as tar:
      return _list_tar(path, tar, 0, path.name.split('.')[0])
  except tarfile.ReadError as e:
    raise ValueError(
      f'{path} is a compressed or broken tar ({e}). Compressed tars cannot '
      f'be read at random: decompress it first, e.g. gunzip {path.name}'
    ) from e


def _list_tar(path, tar, base: int, stem: str) -> list[Item]:
  """The images of a tar that starts at byte `base` of the file `path`."""
  items = []
  for member in tar:
    if not member.isfile():
      continue
    name = pathlib.PurePosixPath(member.name.removeprefix('./'))
    start = base + member.offset_data
    if name.suffix.lower() == '.tar':
      with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
        items += _list_tar(path, inner, start, name.stem)
    elif _is_image(name.name):
      inside = name.parent.name
      full = name.as_posix() if inside else f'{stem}/{name}'
      items.append(Item(str(path), full, inside or stem, start, member.size))
  return items


def _is_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def _read_labels(path: pathlib.Path) -> dict[str, list | str | int]:
  """{file name: label or list of labels} of a JSON or CSV file."""
  if not path.exists():
    raise ValueError(f'labels_file={path} does not exist')
  number = lambda x: int(x) if x.lstrip('-').isdigit() else x
  if path.suffix.lower() == '.json':
    try:
      labels = json.loads(path.read_text())
    except json.JSONDecodeError as e:
      raise ValueError(f'labels_file={path} is not JSON: {e}') from e
    if not isinstance(labels, dict):
      raise ValueError(
        f'labels_file={path}: must be an object {{"x.jpg": label or '
        f'[labels]}}, not a {type(labels).__name__}'
      )
    return labels
  labels = {}
  with path.open(newline='') as f:
    for row in csv.reader(f):
      if not row or row[0].lower() in (
        'file',
        'filename',
        'image',
        'path',
        'id',
        'name',
        'image_id',
      ):
        continue  # empty, or a header
      cells = [
        number(x.strip())
        for cell in row[1:]
        for x in cell.split(';')
        if x.strip()
      ]
      labels[row[0]] = cells
  if all(len(v) == 1 for v in labels.values()):
    return {k: v[0] for k, v in labels.items()}
  return labels


def has_split(out: pathlib.Path, split: str) -> bool:
  """Whether a directory has a packed split of this name."""
  return (out / (split + records.META_SUFFIX)).exists()


def classes_of_train(split: str, out: pathlib.Path) -> dict | None:
  """The classes of the packed 'train', which other splits must follow."""
  index = out / ('train' + records.META_SUFFIX)
  if split == 'train' or not index.exists():
    return None
  meta = json.loads(index.read_text())
  return {k: meta[k] for k in ('num_classes', 'class_names', 'multi_label')}


def _number(items, labels, given) -> tuple[list[list[int]], dict]:
  """The class numbers of each item, and what the classes are."""
  if labels is None:
    raw = [[i.label] for i in items]
    multi = False
    if (
      len({i.label for i in items}) == 1
      and not given
      and all(i.size >= 0 for i in items)
    ):
      raise ValueError(
        f'all images are of one class, {items[0].label!r}: a tar needs class '
        'directories, or one tar a class, or give labels_file'
      )
  else:
    found = [_find(labels, i.name) for i in items]
    lost = [i.name for i, f in zip(items, found, strict=False) if f is None]
    if lost:
      raise ValueError(
        f'{len(lost)} of {len(items)} images have no entry in the labels '
        f'file, such as {", ".join(lost[:3])}'
      )
    multi = any(isinstance(f, list) for f in found)
    raw = [f if isinstance(f, list) else [f] for f in found]
  every = {x for r in raw for x in r}
  if given:
    multi = given['multi_label']
    if not multi and any(len(r) != 1 for r in raw):
      raise ValueError(
        'some images have several labels, those of the packed '
        "'train' have one each: pack 'train' again"
      )
  if all(isinstance(x, int) for x in every):
    limit = given['num_classes'] if given else max(every, default=0) + 1
    wrong = sorted(x for x in every if not 0 <= x < limit)
    names, lookup = (given['class_names'] if given else None), lambda x: x
  else:
    names = given['class_names'] if given else sorted(map(str, every))
    table = {n: i for i, n in enumerate(names or ())}
    limit = given['num_classes'] if given else len(table)
    wrong = sorted(str(x) for x in every if str(x) not in table)
    lookup = lambda x: table[str(x)]
  if wrong:
    raise ValueError(
      f'{len(wrong)} labels are not classes'
      + (" of the packed 'train'" if given else '')
      + f': {", ".join(map(str, wrong[:10]))}'
    )
  return [[lookup(x) for x in r] for r in raw], {
    'num_classes': limit,
    'class_names': names,
    'multi_label': multi,
  }


def _find(labels: dict, name: str):
  """The entry of an image: by its path, its file name, or its stem."""
  path = pathlib.PurePosixPath(name)
  for key in (name, path.name, path.stem):
    if key in labels:
      return labels[key]
  return None
