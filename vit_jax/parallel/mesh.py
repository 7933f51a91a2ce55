"""The device mesh, and how batches are laid out on it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = ('data', 'fsdp', 'tensor')
# How the leading axis of every array of a batch is split.
BATCH = P(('data', 'fsdp'))
PRESETS = ('data', 'zero', 'fsdp', 'fsdp_tensor')


def make_mesh(
  preset: str = 'data',
  fsdp: int = -1,
  tensor: int = -1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """The mesh of devices with the axes data, fsdp and tensor.

  Args:
    preset: one of PRESETS.
    fsdp: number of devices on the fsdp axis. -1 lets the preset choose: 1 for
      'data'; for 'zero' the largest divisor of the number of devices up to 16,
      because large models have 16 heads, by which their kernels are split; else
      the largest divisor up to 32, because a wider axis does not divide the
      width of most models.
    tensor: number of devices on the tensor axis. -1 lets the preset choose: 2
      for 'fsdp_tensor' if the number of devices is even, else 1.
    devices: the devices to use; None for all devices of all processes.

  Raises:
    ValueError: an unknown preset, or sizes that do not divide the devices.
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
    if preset != 'data':
      most = 16 if preset == 'zero' else 32
      fsdp = max(d for d in range(1, most + 1) if n // tensor % d == 0)
  if fsdp < 1 or n % (tensor * fsdp):
    raise ValueError(
      f'mesh.fsdp={fsdp} x mesh.tensor={tensor} does not divide {n} devices'
    )
  shape = (n // (fsdp * tensor), fsdp, tensor)
  return Mesh(
    np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3
  )


def batch_shards(mesh: Mesh) -> int:
  """How many shards a global batch is split into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, P())


def batch_slice(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """Which slice of each global batch a process has to read.

  Processes whose devices share examples, because a `tensor` axis spans them,
  read the same slice.

  Args:
    mesh: the mesh of the run.
    process: number of the process; None for the calling one.

  Returns:
    (i, n): slice i of n equal slices.

  Raises:
    ValueError: the devices of the processes do not hold equal, contiguous
      slices.
  """
  devices = mesh.devices.reshape(batch_shards(mesh), -1)
  shards: dict[int, set[int]] = {}  # {process: shards of the batch it holds}
  for shard, row in enumerate(devices):
    for device in row:
      shards.setdefault(device.process_index, set()).add(shard)
  slices = sorted({tuple(sorted(held)) for held in shards.values()})
  size = len(slices[0])
  if [i for s in slices for i in s] != list(range(size * len(slices))) or any(
    len(s) != size for s in slices
  ):
    raise ValueError(
      f'mesh {dict(mesh.shape)} over {len(shards)} processes: their devices '
      f'hold the shards {slices} of a batch, which are no equal slices; '
      'choose a mesh.tensor that divides the number of devices of a process, '
      'or is a multiple of it'
    )
  process = jax.process_index() if process is None else process
  return slices.index(tuple(sorted(shards[process]))), len(slices)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Makes global arrays, sharded by BATCH, of this process's numpy slices."""
  sharding = NamedSharding(mesh, BATCH)
  with jax.transfer_guard_host_to_device('allow'):  # a guard is for hidden ones
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Copies numpy arrays, which are equal in every process, to all devices."""
  sharding = replicated(mesh)
  with jax.transfer_guard_host_to_device('allow'):  # as in `put_batch`
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        np.shape(x), sharding, lambda index: np.asarray(x)[index]
      ),
      tree,
    )
