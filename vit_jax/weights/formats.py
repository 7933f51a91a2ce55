"""Reads weights from .npz, .pth and .safetensors files, steps and the hub.

The kind of a file is recognized by its first bytes, not by its name. No code in
a file is run.
"""

from collections.abc import Callable, Mapping
import io
import json
import math
import os
from typing import IO, Any, NamedTuple
import zipfile
import zlib

from absl import logging
from etils import epath
import ml_dtypes
import numpy as np

from vit_jax import files, text
from vit_jax.weights import archives, hub, prefixes
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.torch_reader import read_torch

# Name under which .npz and .safetensors files hold `WeightsMetadata` as JSON.
METADATA = 'vit_jax'
# Name under which .safetensors files hold the checksums of their arrays; .npz
# files have checksums in their zip archive.
CHECKSUMS = 'vit_jax_crc32'

_SAFETENSORS_DTYPES = {
  'F64': 'f8',
  'F32': 'f4',
  'F16': 'f2',
  'BF16': ml_dtypes.bfloat16,
  'I64': 'i8',
  'I32': 'i4',
  'I16': 'i2',
  'I8': 'i1',
  'U64': 'u8',
  'U32': 'u4',
  'U16': 'u2',
  'U8': 'u1',
  'BOOL': '?',
}
# First bytes of files that users give instead of weights by mistake, and what
# the error message says about such a file.
_FOREIGN = (
  (
    b'version https://git-lfs',
    'a Git LFS pointer; fetch the file itself (git lfs pull)',
  ),
  (b'<', 'a web page; the download did not give the file'),
  (b'{', 'JSON text'),
  (b'\x89HDF', 'an HDF5 file (Keras); convert it first'),
  (b'\x93NUMPY', 'a single numpy array (.npy)'),
  (b'\x1f\x8b', 'gzip data; unpack it first'),
  (b'\x89PNG', 'a PNG image'),
  (b'\xff\xd8\xff', 'a JPEG image'),
  (b'GIF8', 'a GIF image'),
  (b'%PDF', 'a PDF document'),
)


class WeightFile(NamedTuple):
  """The contents of a weight file.

  Attributes:
    arrays: {name: array}; half precision is converted to float32.
    metadata: what the file says about its model; empty for files that vit_jax
      did not write.
    kind: 'npz', 'torch', 'safetensors' or 'step'.
  """

  arrays: dict[str, np.ndarray]
  metadata: WeightsMetadata
  kind: str


def read(
  path: str | os.PathLike, *, average: bool = False, prefix: str | None = None
) -> WeightFile:
  """Reads all tensors of a weight file.

  Args:
    path: local or remote file (.npz, .pth, .bin, .pth.tar, .safetensors, or
      the .index.json of a file in shards), a vit_jax workdir or step, a folder
      with the files of a hub entry, or 'hf:ORG/NAME' of the Hugging Face hub,
      with '@REVISION' for a commit, tag or branch of it.
    average: whether to read the moving average of the parameters from a workdir
      or step that has one.
    prefix: what stands before the names of the model's tensors in a .pth or
      .safetensors file, such as 'model_ema' or 'teacher.backbone'. None
      searches it (`prefixes`); what was taken and left out is logged.

  Raises:
    WeightsError: the file does not exist, is truncated or of another kind, its
      loading would run code, or the hub cannot be reached. The message names
      the file.
  """
  path = hub.local_file(path)
  try:
    if path.is_dir():
      _refuse_prefix(prefix, 'a workdir or step')
      return _read_step(path, average)
    if not path.exists():
      raise WeightsError('there is no such file')
    file = _read_file(path)
    if file.kind not in ('torch', 'safetensors'):
      _refuse_prefix(prefix, f'an {file.kind} file')
      return file
    chosen = prefixes.select(file.arrays, prefix=prefix)
    if chosen.prefix or chosen.outside:
      logging.log(
        logging.WARNING if chosen.outside else logging.INFO,
        '%s: %s (to take another one, name its prefix: --prefix)',
        path,
        chosen.describe(),
      )
    arrays = {name: _as_array(x) for name, x in chosen.inside.items()}
    return file._replace(arrays=arrays)
  except WeightsError as e:
    raise WeightsError(f'cannot read weights from {path}: {e}') from e
  except Exception as e:  # damaged files make libraries raise anything
    raise WeightsError(
      f'cannot read weights from {path}: it is damaged or '
      f'not readable ({type(e).__name__}: {e})'
    ) from e


def _refuse_prefix(prefix: str | None, kind: str) -> None:
  """WeightsError if a prefix is given that would have no effect."""
  if prefix:
    raise WeightsError(
      f'prefix={prefix!r} goes with .pth and .safetensors files, and this is '
      f'{kind}: leave it out'
    )


def _read_file(path: epath.Path) -> WeightFile:
  """Reads a file, or the files that an index of shards names."""
  if path.name.endswith(hub.INDEX):
    shards = [_read_file(shard) for shard in hub.shards(path)]
    tensors = {k: x for shard in shards for k, x in shard.arrays.items()}
    return shards[0]._replace(arrays=tensors)
  files.check_regular(path)
  with path.open('rb') as file:
    head = file.read(512)
    file.seek(0)
    return _reader(head)(file)


def _as_array(x: Any) -> np.ndarray:
  """A tensor of a file as an array, not of half precision."""
  return _float32(x if isinstance(x, np.ndarray) else x.array())


def _reader(head: bytes) -> Callable[[IO[bytes]], WeightFile]:
  """The function that reads a file with these first bytes."""
  if not head:
    raise WeightsError('the file is empty')
  # A .safetensors file begins with the length of its header in eight bytes, of
  # which the last four are zero below 4 GiB, and the header is JSON.
  if head[4:9] == b'\0\0\0\0{':
    return _read_safetensors
  if head.startswith(b'PK'):
    return _read_zip
  if head.startswith(b'\x80'):
    return _read_torch
  for start, name in _FOREIGN:
    if head.startswith(start):
      raise WeightsError(f'it looks like {name}')
  if head[257:262] == b'ustar':
    raise WeightsError('it looks like a tar archive; unpack it first')
  if b'\0' not in head and head.decode('utf-8', 'ignore').isprintable():
    raise WeightsError('it looks like text')
  raise WeightsError(
    'its first bytes are not those of a weight file (.npz, .pth, .safetensors)'
  )


def _read_zip(file: IO[bytes]) -> WeightFile:
  """Reads a zip archive, which numpy (.npz) or PyTorch (.pth) wrote."""
  try:
    with zipfile.ZipFile(file) as archive:
      names = archive.namelist()
  except zipfile.BadZipFile as e:
    raise WeightsError(
      f'it is truncated: it begins as a zip archive (.npz, .pth) but has no '
      f'directory at its end ({e})'
    ) from e
  file.seek(0)
  if any(name.endswith('/data.pkl') for name in names):
    return _read_torch(file)
  if not names or not all(name.endswith('.npy') for name in names):
    raise WeightsError(
      'it is a zip archive, but neither .npz nor .pth: it '
      f'holds {", ".join(names[:3]) or "nothing"}'
    )
  with zipfile.ZipFile(file) as archive:
    archives.check(archive, file.seek(0, os.SEEK_END))
    arrays = {
      name: _float32(_read_npy(archive, name))
      for name in (member.removesuffix('.npy') for member in names)
    }
  metadata = json.loads(str(arrays.pop(METADATA, '{}')))
  return WeightFile(arrays, WeightsMetadata.from_json(metadata), 'npz')


def _read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """One array of a .npz file.

  numpy would make room for the shape in the header before it reads the values,
  whatever is in the file.
  """
  try:
    raw = archives.read_member(archive, f'{name}.npy')
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
      header = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
      header = np.lib.format.read_array_header_2_0(file)
    else:
      raise ValueError(f'its version {version} is unknown')
    shape, column_major, dtype = header
    if dtype.hasobject:
      raise WeightsError(
        f'{name} holds Python objects, whose loading would run code'
      )
    count = math.prod(shape)
    stored = len(raw) - file.tell()
    fits = min(shape, default=0) >= 0 and count * dtype.itemsize == stored
    if not fits or (count and not dtype.itemsize):
      raise ValueError(
        f'its header claims shape {shape} of {dtype}, which does not fit its '
        f'{stored:,} bytes'
      )
    if not stored:
      return np.zeros(shape, dtype)
    array = np.frombuffer(raw, dtype, count, file.tell())
    return array.reshape(shape, order='F' if column_major else 'C')
  except WeightsError:
    raise
  except Exception as e:  # a damaged archive can raise anything
    raise WeightsError(f'{name} is damaged ({text.shortened(e)})') from e


def _read_torch(file: IO[bytes]) -> WeightFile:
  return WeightFile(read_torch(file), WeightsMetadata(), 'torch')


def _read_safetensors(file: IO[bytes]) -> WeightFile:
  import safetensors

  data = file.read()
  length = int.from_bytes(data[:8], 'little')
  try:
    tensors = safetensors.deserialize(data)
    header = json.loads(data[8 : 8 + length]).get('__metadata__') or {}
  except (safetensors.SafetensorError, ValueError) as e:
    raise WeightsError(
      'its .safetensors header does not fit its contents: it '
      f'is truncated or damaged ({e})'
    ) from e
  arrays = {}
  for name, tensor in tensors:
    if tensor['dtype'] not in _SAFETENSORS_DTYPES:
      raise WeightsError(
        f'{name} has dtype {tensor["dtype"]}; allowed: '
        f'{", ".join(_SAFETENSORS_DTYPES)}'
      )
    dtype = np.dtype(_SAFETENSORS_DTYPES[tensor['dtype']])
    x = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
    arrays[name] = x  # `read` converts those that it takes to float32
  expected = checksums(arrays, header.get(METADATA, ''))
  if header.get(CHECKSUMS) not in (None, expected):
    raise WeightsError(
      'it is damaged: the checksums of its arrays are not those that were '
      'written'
    )
  metadata = json.loads(header.get(METADATA, '{}'))
  return WeightFile(arrays, WeightsMetadata.from_json(metadata), 'safetensors')


def checksums(arrays: Mapping[str, np.ndarray], metadata: str = '') -> str:
  """The CRC-32 of each array, by name, and of the metadata, as JSON."""
  values = {
    name: zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    for name, x in sorted(arrays.items())
  }
  return json.dumps({**values, METADATA: zlib.crc32(metadata.encode())})


def _read_step(path: epath.Path, average: bool) -> WeightFile:
  from vit_jax.weights.steps import CheckpointError, load_params

  try:
    arrays, metadata = load_params(path, average=average)
  except CheckpointError as e:
    raise WeightsError(str(e)) from e
  arrays = {name: _float32(x) for name, x in arrays.items()}
  return WeightFile(arrays, metadata, 'step')


def _float32(x: np.ndarray) -> np.ndarray:
  """Converts half precision to float32; returns other dtypes as they are."""
  if x.dtype == np.dtype('V2'):  # bfloat16, saved by numpy without ml_dtypes
    x = x.view(ml_dtypes.bfloat16)
  if x.dtype in (np.float16, ml_dtypes.bfloat16):
    return x.astype(np.float32)
  return x
