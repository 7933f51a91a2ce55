"""Webdataset tars as inputs of `vit-jax pack`: 0001.cls beside 0001.jpg."""

from collections.abc import Mapping
import json

from vit_jax.data.labels import Label
from vit_jax.data.listing import File, Listing
from vit_jax.data.record_inputs import (
  FLAT,
  LABEL_FIELDS,
  Record,
  Records,
  record_labels,
  split_of,
)


def read_webdataset(
  listing: Listing, label_field: str | None
) -> Records | None:
  """The images of tars whose labels are in files beside them.

  Args:
    listing: of a tar or folder.
    label_field: 'cls' for the files .cls, or the field of the files .json.

  Returns:
    None if the labels are not given in this way.

  Raises:
    ValueError: some images have no label, or there are two readings.
  """
  sidecars = {
    suffix: {
      name.removesuffix(suffix): file
      for name, file in listing.sidecars.items()
      if name.endswith(suffix)
    }
    for suffix in ('.cls', '.json')
  }
  keys = [_key(file.name) for file in listing.files]
  declared = label_field is not None
  flat = all(k.rpartition('/')[0] in {'', *listing.flat_tars} for k in keys)
  for suffix, beside in sidecars.items():
    labeled = sum(key in beside for key in keys)
    if not labeled or (
      declared and (suffix == '.cls') != (label_field == 'cls')
    ):
      continue
    if suffix == '.json' and not declared:
      first = beside[next(key for key in keys if key in beside)]
      if not flat or not _json_label(first, None):
        continue
    if suffix == '.cls' and not declared and not flat:
      raise ValueError(
        f'{listing.root} has folders of classes and {labeled:,} files .cls: '
        'declare --label-column cls to take the files, or remove them'
      )
    if labeled < len(keys):
      lost = next(key for key in keys if key not in beside)
      raise ValueError(
        f'{listing.root}: {len(keys) - labeled:,} of {len(keys):,} images have '
        f'no {suffix} beside them, such as {lost}'
      )
    return Records(
      listing.root, _webdataset_splits(listing, beside, label_field)
    )
  if declared:
    raise ValueError(
      f'{listing.root} has no {label_field!r} beside its images: declare cls '
      'for files .cls, or a field of files .json'
    )
  return None


def _webdataset_splits(
  listing: Listing, beside: Mapping[str, File], label_field: str | None
) -> dict[str, list[Record]]:
  """The images by the splits that the names of their tars tell."""
  splits: dict[str, list[Record]] = {}
  for file in listing.files:
    sidecar = beside[_key(file.name)]
    if sidecar.name.endswith('.cls'):
      labels: list[Label] = [_text(sidecar)]
    else:
      labels = _json_label(sidecar, label_field) or []
    split = split_of(file.name.rpartition('/')[0])
    splits.setdefault(split, []).append(Record(file, '', labels))
  if FLAT in splits and len(splits) > 1:
    return {FLAT: [row for group in splits.values() for row in group]}
  return splits


def _key(name: str) -> str:
  """The name of a webdataset's sample: up to the first dot of the file name."""
  folder, slash, base = name.rpartition('/')
  return folder + slash + base.partition('.')[0]


def _text(file: File) -> str:
  text = file.read().decode('utf-8', 'replace').strip()
  if not text:
    raise ValueError(f'{file.name} is empty: it has no label')
  return text


def _json_label(file: File, field: str | None) -> list[Label] | None:
  """The label of a .json beside an image; None if it has none."""
  try:
    value = json.loads(file.read())
  except ValueError as e:
    if field is None:
      return None
    raise ValueError(f'{file.name} is not JSON: {e}') from e
  fields = [field] if field else LABEL_FIELDS
  for name in fields:
    if isinstance(value, dict) and value.get(name) is not None:
      return record_labels(value[name], file.name)
  if field is not None:
    raise ValueError(f'{file.name} has no field {field!r}')
  return None
