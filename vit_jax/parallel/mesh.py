"""The device mesh, and how batches are laid out on it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = ('data', 'fsdp', 'tensor')
BATCH = P(('data', 'fsdp'))  # of the leading axis of every batch array
PRESETS = ('data', 'zero', 'fsdp', 'fsdp_tensor')


def make_mesh(
  preset: str = 'data',
  fsdp: int = -1,
  tensor: int = -1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """The (data, fsdp, tensor) mesh over all devices.

  -1 lets the preset choose: fsdp is the largest divisor of the device count up
  to 32 (wider axes stop dividing the widths), tensor is 2. ValueError if the
  sizes do not divide the device count.
  """
  if preset not in PRESETS:
    raise ValueError(f'mesh.preset={preset!r}; allowed: {", ".join(PRESETS)}')
  devices = jax.devices() if devices is None else list(devices)
  n = len(devices)
  if tensor == -1:
    tensor = 2 if preset == 'fsdp_tensor' and n % 2 == 0 else 1
  if tensor < 1 or n % tensor:
    raise ValueError(f'mesh.tensor={tensor} does not divide {n} devices')
  if fsdp == -1:
    fsdp = 1
    if preset in ('fsdp', 'fsdp_tensor'):
      fsdp = max(d for d in range(1, 33) if n // tensor % d == 0)
  if fsdp < 1 or n % (tensor * fsdp):
    raise ValueError(
      f'mesh.fsdp={fsdp} x mesh.tensor={tensor} does not divide {n} devices'
    )
  shape = (n // (fsdp * tensor), fsdp, tensor)
  return Mesh(
    np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3
  )


def batch_shards(mesh: Mesh) -> int:
  """How many parts a global batch is split into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_slice(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """(i, n): a process, by default this one, feeds slice i of n of each batch.

  Processes whose devices share examples (a `tensor` axis across processes) feed
  the same slice. ValueError if the mesh cuts the batch in no such slices.
  """
  devices = mesh.devices.reshape(batch_shards(mesh), -1)
  parts = {}  # the parts of the batch on the devices of each process
  for part, row in enumerate(devices):
    for device in row:
      parts.setdefault(device.process_index, set()).add(part)
  slices = sorted({tuple(sorted(p)) for p in parts.values()})
  size = len(slices[0])
  if [i for s in slices for i in s] != list(range(size * len(slices))) or any(
    len(s) != size for s in slices
  ):
    raise ValueError(
      f'mesh {dict(mesh.shape)} over {len(parts)} processes: their devices '
      f'hold the parts {slices} of a batch, which are no equal slices; '
      'choose mesh.tensor to divide the devices of a process, or the other '
      'way round'
    )
  process = jax.process_index() if process is None else process
  return slices.index(tuple(sorted(parts[process]))), len(slices)


def put_batch(batch, mesh: Mesh):
  """The numpy batch of `batch_slice` -> global arrays split along axis 0."""
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def put_replicated(tree, mesh: Mesh):
  """The same numpy tree of every process -> replicated global arrays."""
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index]
    ),
    tree,
  )
