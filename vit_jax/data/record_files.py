"""Files of records as inputs of `vit-jax pack`: images with their labels.

  TFRecord  files of tf.train.Example, as TensorFlow Datasets writes them
  Parquet   tables with a column of encoded images, as Hugging Face has them

The name of a file, or of its folder, tells the split: train-00000.parquet,
imagenet2012-validation.tfrecord-00000-of-00064, data/test/0.parquet. The fields
of the image and of the label are found by their usual names; the field of the
label can be declared.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

from etils import epath

from vit_jax import files
from vit_jax.data.identity import fingerprint
from vit_jax.data.listing import File
from vit_jax.data.names import is_hidden, printable
from vit_jax.data.record_inputs import (
  FLAT,
  LABEL_FIELDS,
  Record,
  Records,
  record_labels,
  split_of,
)
from vit_jax.data.tfrecords import (
  is_tfrecord_name,
  parse_example,
  read_records,
)

# The usual names of fields, the best first.
_IMAGE_FIELDS = (
  *('image/encoded', 'image', 'img', 'jpg', 'jpeg', 'png', 'webp'),
  *('image_bytes', 'image_raw', 'encoded', 'photo', 'bytes'),
)
_FILE_FIELDS = ('image/filename', 'file_name', 'filename', '__key__', 'path')


def find_record_files(path: epath.Path) -> list[epath.Path]:
  """The files of records in a folder, at any depth, or the file itself."""
  if not path.is_dir():
    return [path] if _reader(path.name) else []
  result = []
  for entry in sorted(files.list_directory(path)):
    if is_hidden(entry.name):
      continue
    if _reader(entry.name):
      result.append(entry)
    elif '.' not in entry.name[-9:] and entry.is_dir():
      result += find_record_files(entry)
  return result


def read_record_files(
  root: epath.Path,
  paths: Sequence[epath.Path],
  *,
  spool: epath.Path,
  label_field: str | None = None,
) -> Records:
  """The images and labels of files of records.

  Args:
    root: that they were found in, or the only file.
    paths: the files.
    spool: folder for the images of Parquet files, whose columns are compressed
      as a whole: they are copied there, to be read in any order.
    label_field: declared name of the field of the label.

  Raises:
    ValueError: a file is damaged, has no image or label, has other classes than
      the one before, or only some files name a split.
  """
  splits: dict[str, list[Record]] = {}
  class_names: list[str] | None = None
  for i, path in enumerate(paths):
    below = os.path.relpath(path, root) if path != root else path.name
    reader = _reader(path.name)
    assert reader
    try:
      files.check_regular(path)
    except OSError as e:
      raise ValueError(f'{path}: {e}') from e
    rows, names = reader(path, printable(below), spool, label_field)
    if i and names != class_names:
      raise ValueError(f'{path} and {paths[0]} name different classes')
    class_names = names
    splits.setdefault(split_of(below), []).extend(rows)
  if FLAT in splits and len(splits) > 1:
    raise ValueError(
      f'{root}: {splits[FLAT][0].file.path} names no split, and others do: '
      'pack them one after the other, and name the split with --split'
    )
  return Records(str(root), splits, class_names)


def _reader(name: str) -> Callable | None:
  """The function that reads a file of records of this name."""
  if name.lower().endswith('.parquet'):
    return _read_parquet
  return _read_tfrecords if is_tfrecord_name(name) else None


def _read_tfrecords(
  path: epath.Path, name: str, spool: epath.Path, label_field: str | None
) -> tuple[list[Record], list[str] | None]:
  """The images of a file of TFRecords, which are read from it in place."""
  rows, fields = [], None
  for number, (start, data) in enumerate(read_records(path)):
    features = parse_example(data)
    if fields is None:
      fields = _fields(path, list(features), label_field)
    image, label = fields
    values = features.get(image, [])
    if len(values) != 1 or not isinstance(values[0], bytes):
      raise ValueError(f'{path}: record {number} has no image in {image!r}')
    rows.append(
      Record(
        File(
          f'{name}/{number:08d}',
          os.fspath(path),
          len(values[0]),
          start + data.index(values[0]),
        ),
        _stored_name(features),
        record_labels(features.get(label, []), f'{path}: record {number}'),
      )
    )
  names = path.parent / f'{fields[1] if fields else ""}.labels.txt'
  if names.exists():  # beside the files of TensorFlow Datasets
    return rows, names.read_text().rstrip('\n').split('\n')
  return rows, None


def _read_parquet(
  path: epath.Path, name: str, spool: epath.Path, label_field: str | None
) -> tuple[list[Record], list[str] | None]:
  """The images of a Parquet file, which are copied to a file in `spool`."""
  try:
    from pyarrow import ArrowException, parquet
  except ImportError as e:
    raise ValueError(
      f"{path} needs the package pyarrow: pip install 'vit_jax[records]'"
    ) from e
  spool.mkdir(parents=True, exist_ok=True)
  copy = spool / f'{fingerprint(os.fspath(path))}.images'
  rows: list[Record] = []
  offset = number = 0
  try:
    with (
      path.open('rb') as file,
      files.open_atomically(copy, 'wb') as images,
    ):
      table = parquet.ParquetFile(file)
      schema = table.schema_arrow
      image, label = _fields(path, schema.names, label_field)
      columns = [x for x in schema.names if x in {image, label, *_FILE_FIELDS}]
      for batch in table.iter_batches(batch_size=64, columns=columns):
        for row in batch.to_pylist():
          where = f'{path}: row {number}'
          data, stored = _image_cell(row[image], where)
          images.write(data)
          rows.append(
            Record(
              File(f'{name}/{number:08d}', str(copy), len(data), offset),
              stored or _stored_name({k: [v] for k, v in row.items()}),
              record_labels(row[label], where),
            )
          )
          offset, number = offset + len(data), number + 1
  except ArrowException as e:
    raise ValueError(f'{path}: {e}') from e
  return rows, _class_names(schema.metadata or {}, label)


def _image_cell(cell: Any, where: str) -> tuple[bytes, str]:
  """The encoded image of a cell, and its file name; no bytes if it is null."""
  stored = ''
  if isinstance(cell, dict):
    stored = str(cell.get('path') or '')
    if cell.get('bytes') is None and stored:
      raise ValueError(f'{where} has the path {stored!r} and no image')
    cell = cell.get('bytes')
  if cell is not None and not isinstance(cell, bytes):
    raise ValueError(f'{where} has no encoded image')
  return cell or b'', stored


def _class_names(metadata: Mapping, label: str) -> list[str] | None:
  """The names of the classes that Hugging Face's `datasets` stores."""
  try:
    info = json.loads(metadata.get(b'huggingface', b'{}'))
    feature = info['info']['features'][label]
  except (KeyError, TypeError, ValueError):
    return None
  while isinstance(feature, dict) and isinstance(feature.get('feature'), dict):
    feature = feature['feature']  # of a list
  if isinstance(feature, list) and feature:
    feature = feature[0]
  names = feature.get('names') if isinstance(feature, dict) else None
  return [str(x) for x in names] if names else None


def _fields(
  path: epath.Path, names: Sequence[str], label_field: str | None
) -> tuple[str, str]:
  """The fields of the image and of the label."""
  image = next((x for x in _IMAGE_FIELDS if x in names), None)
  if label_field is not None and label_field not in names:
    raise ValueError(
      f'{path} has no field {label_field!r}; it has {", ".join(sorted(names))}'
    )
  label = label_field or next((x for x in LABEL_FIELDS if x in names), None)
  if image is None or label is None:
    has = f'{path}: which of the fields {", ".join(sorted(names))} has the '
    if image is None:
      raise ValueError(f'{has}image? Call it one of {", ".join(_IMAGE_FIELDS)}')
    raise ValueError(f'{has}label? Name it with label_column (--label-column)')
  return image, label


def _stored_name(fields: Mapping[str, Sequence]) -> str:
  """The file name of a record; '' if it has none."""
  for field in _FILE_FIELDS:
    for value in fields.get(field, ()):
      text = (
        printable(os.fsdecode(value)) if isinstance(value, bytes) else value
      )
      if text and isinstance(text, str):
        return text
  return ''
