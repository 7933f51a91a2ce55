"""The kind of device that a model is traced for."""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

_FORCED: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  'platform', default=None
)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
  """A context in which models are traced for a platform.

  A program that is lowered for a device that is not there, as in a test, names
  the device's platform with it.

  Args:
    platform: 'cpu', 'gpu', 'tpu', or 'any' for a program without code for
      particular devices. `jax.export` lowers such a program for several
      platforms at once.
  """
  token = _FORCED.set(platform)
  try:
    yield
  finally:
    _FORCED.reset(token)


def target_platform() -> str:
  """'cpu', 'gpu', 'tpu' or 'any': for which devices a model is traced.

  It is the platform of the context `traced_for`; otherwise that of the mesh
  (`jax.set_mesh`), and without a mesh that of JAX's default device.
  """
  forced = _FORCED.get()
  if forced is not None:
    return forced
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return _kind(device.platform)
  default = getattr(jax.config, 'jax_default_device', None)
  if default is not None:
    return _kind(getattr(default, 'platform', default))
  return _kind(jax.default_backend())


def on_one_cpu() -> bool:
  """Whether a model is traced for a single CPU.

  Over several devices, an array whose axes were joined to fewer ones cannot be
  split as before.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return target_platform() == 'cpu' and (mesh.empty or mesh.size == 1)


def _kind(platform: str) -> str:
  return 'gpu' if platform in ('cuda', 'rocm') else platform
