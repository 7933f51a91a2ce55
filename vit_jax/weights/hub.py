"""The files of an entry of the Hugging Face hub, downloaded or in a folder.

An entry has its weights in one file, or in several with an index, and beside
them `config.json`, which says which model they are of, and for the models of
transformers `preprocessor_config.json`.
"""

import json
import os
import re
import types
from typing import Any

from absl import logging
from etils import epath

from vit_jax.files import as_path, read_text
from vit_jax.weights.errors import WeightsError

INDEX = '.index.json'
# Names of files of weights, in the order in which they are tried.
_WEIGHTS = (
  'model.safetensors',
  'pytorch_model.bin',
  f'model.safetensors{INDEX}',
  f'pytorch_model.bin{INDEX}',
)
_SCHEMES = ('hf:', 'hf-hub:', 'hf_hub:')
_NAME = re.compile(
  r'[^:]*:(//)?(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<file>.+))?'
)
# The hub's cache keeps each file in a folder that is named after the commit.
_COMMIT = re.compile(r'[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]')


def is_hub_name(source: str | os.PathLike) -> bool:
  """Whether a source is the name of a hub entry, such as 'hf:timm/NAME'."""
  return str(source).startswith(_SCHEMES)


def local_file(source: str | os.PathLike) -> epath.Path:
  """The path of a source: that of a file for a hub entry, else its own.

  Raises:
    WeightsError: the hub cannot be reached or has no such entry.
  """
  if is_hub_name(source):
    return _downloaded(str(source))
  path = as_path(source)
  if path.is_dir():
    for name in _WEIGHTS:
      if (path / name).exists():
        return path / name
  return path


def shards(index: epath.Path) -> list[epath.Path]:
  """The files that an index of shards names.

  Raises:
    WeightsError: the index is damaged, names files of other folders, or a file
      is missing.
  """
  try:
    names = sorted(set(json.loads(read_text(index))['weight_map'].values()))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise WeightsError(f'it is no index of shards ({e})') from e
  if not names or any('/' in name or '\\' in name for name in names):
    raise WeightsError('its weight_map names no files beside the index')
  missing = [name for name in names if not (index.parent / name).exists()]
  if missing:
    raise WeightsError(
      f'{len(missing)} of its {len(names)} shards are missing: {missing[0]}'
    )
  return [index.parent / name for name in names]


def read_config(
  source: str | os.PathLike, name: str = 'config.json'
) -> dict[str, Any] | None:
  """A JSON file of a hub entry; None if there is none that can be read.

  Args:
    source: hub name, folder, or a file of weights in such a folder.
    name: name of the JSON file.
  """
  try:
    if is_hub_name(source):
      repo, revision, _ = _split(str(source))
      path = epath.Path(_hub().hf_hub_download(repo, name, revision=revision))
    else:
      path = as_path(source)
      path = (path if path.is_dir() else path.parent) / name
    values = json.loads(read_text(path))
  except Exception:  # the hub's errors have no common ancestor
    return None
  return values if isinstance(values, dict) else None


def _hub() -> types.ModuleType:
  """The package huggingface_hub; ImportError if it is not installed."""
  import huggingface_hub  # pyright: ignore[reportMissingImports]

  return huggingface_hub


def _split(name: str) -> tuple[str, str, str]:
  """The entry, revision and file of 'hf:ORG/NAME@REVISION/FILE'.

  Without a revision it is 'main', the newest files. The file may be missing.

  Raises:
    WeightsError: it is not such a name.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise WeightsError(
      f'{name!r} is not a hub name: write hf:ORG/NAME, such as '
      'hf:timm/vit_base_patch16_224.augreg_in21k, or with the revision, '
      'hf:ORG/NAME@REVISION'
    )
  return match['repo'], match['revision'] or 'main', match['file'] or ''


def _downloaded(name: str) -> epath.Path:
  """Downloads a file of the hub, see `_split`; returns the local path."""
  repo, revision, file = _split(name)
  try:
    huggingface_hub = _hub()
  except ImportError as e:
    raise WeightsError(
      f'{name} needs huggingface_hub: pip install '
      "'vit_jax[hub]', or download the file and give its "
      'path'
    ) from e
  missing = huggingface_hub.errors.EntryNotFoundError
  download = lambda file: huggingface_hub.hf_hub_download(
    repo, file, revision=revision
  )
  candidates = [file] if file else list(_WEIGHTS)
  for candidate in candidates:
    try:
      path = epath.Path(download(candidate))
      if candidate.endswith(INDEX):
        names = json.loads(path.read_text())['weight_map'].values()
        for shard in sorted(set(names)):
          download(shard)
    except missing:
      continue
    except Exception as e:  # the hub's errors have no common ancestor
      raise WeightsError(
        f'{name} could not be fetched ({type(e).__name__}: '
        f'{str(e).splitlines()[0] if str(e) else ""}). Check the name and '
        'the connection, or download the file and give its path'
      ) from e
    commit = _COMMIT.search(str(path))
    if revision == 'main' and commit:
      logging.warning(
        '%s names no revision, so its newest files were taken. To get the same '
        'files again, write hf:%s@%s',
        name,
        repo,
        commit[1] + (f'/{file}' if file else ''),
      )
    return path
  raise WeightsError(
    f'{name} has no file {" or ".join(candidates)}: name the file of weights, '
    'hf:ORG/NAME/FILE'
  )


def upload(
  folder: str | os.PathLike, repo: str, *, private: bool = False
) -> str:
  """Uploads a folder to an entry of the hub, which is made if it is missing.

  Args:
    folder: local folder; all of its files are uploaded.
    repo: 'ORG/NAME'.
    private: whether a new entry is private.

  Returns:
    The address of the entry.

  Raises:
    WeightsError: the package, the network or the login is missing. The folder
      stays as it is.
  """
  later = (
    f'{os.fspath(folder)} is complete and was not uploaded. Later: '
    f'hf upload {repo} {os.fspath(folder)}'
  )
  try:
    api = _hub().HfApi()
  except ImportError as e:
    raise WeightsError(
      f"{later} (that needs huggingface_hub: pip install 'vit_jax[hub]')"
    ) from e
  try:
    address = api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=os.fspath(folder))
  except Exception as e:  # the hub's errors have no common ancestor
    reason = str(e).splitlines()[0] if str(e) else ''
    raise WeightsError(f'{later} ({type(e).__name__}: {reason})') from e
  return str(address)
