"""Whether a model computes with oneDNN on a CPU, and the calls of it.

jaxlib contains oneDNN, the library with which PyTorch computes on a CPU. The
compiler calls it wherever a program has a custom call of a certain name.
Batched products and convolutions on large maps are up to three times as fast as
those that the compiler writes itself, and products in bfloat16 on a CPU with
AMX up to eight times; docs/performance.md has the measurements.

Two things limit where it can be used. The names and settings of the calls are
no public interface, so they are used only with the versions of jaxlib that they
were tested with. And a program with such a call cannot be stored, so JAX's
cache of compiled programs never has it. Therefore `is_used` prefers the
compiler's own products where the cache is on, unless a caller asks for oneDNN,
as a long training does: it gains more in its steps than it loses at its start.

The products are in `onednn_products`, the convolutions in
`onednn_convolutions`.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import json
import platform
import sys
from typing import Any
import warnings

import jax
from jax.interpreters import mlir
import jaxlib.version

from vit_jax.models.platform import target_platform

# The versions of jaxlib whose calls were tested. Another version may read other
# settings, and would end the process with them.
TESTED_VERSIONS = ('0.10.2',)

_ASKED: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
  'onednn', default=None
)


@contextlib.contextmanager
def asked(use: bool | None) -> Iterator[None]:
  """A context in which models are traced with oneDNN, or without it.

  Args:
    use: True, with oneDNN where it is available; False, without it; None, as
      outside of the context.
  """
  if use:
    # JAX tries to keep the program all the same, and says that it could not.
    warnings.filterwarnings(
      'ignore',
      'Error writing persistent compilation cache entry .* std::bad_alloc',
    )
  token = _ASKED.set(_ASKED.get() if use is None else use)
  try:
    yield
  finally:
    _ASKED.reset(token)


def is_available() -> bool:
  """Whether this jaxlib has the calls, on this machine."""
  return (
    sys.platform == 'linux'
    and platform.machine() == 'x86_64'
    and jaxlib.version.__version__ in TESTED_VERSIONS
  )


def is_used(*operands: jax.Array) -> bool:
  """Whether a model that is traced now uses oneDNN.

  It does so for a single CPU: over several, the compiler could not split the
  calls.

  Args:
    *operands: of the product or the convolution. Only float32 and bfloat16 are
      computed, of one type, and no empty arrays.
  """
  types = {x.dtype.name for x in operands}
  if types - {'float32', 'bfloat16'} or len(types) > 1:
    return False
  if any(n == 0 for x in operands for n in x.shape):
    return False
  asked_for = _ASKED.get()
  if asked_for is False or not is_available() or target_platform() != 'cpu':
    return False
  mesh = jax.sharding.get_abstract_mesh()
  devices = len(jax.devices('cpu')) if mesh.empty else mesh.size
  return devices == 1 and bool(asked_for or not _programs_are_kept())


def _programs_are_kept() -> bool:
  """Whether JAX keeps compiled programs on the disk."""
  config: Any = jax.config
  return bool(
    config.jax_compilation_cache_dir and config.jax_enable_compilation_cache
  )


def lower_call(
  ctx: Any, name: str, settings: dict[str, Any], plain: Any, *operands: Any
) -> Any:
  """Lowers a primitive to a call of oneDNN.

  A program that is exported may run elsewhere, so it gets `plain` instead.

  Args:
    ctx: the context of the lowering rule.
    name: name of the custom call.
    settings: what the compiler reads as the call's configuration.
    plain: a function of the operands that computes the same.
    *operands: the values of the program.
  """
  if ctx.module_context.lowering_parameters.for_export:
    return mlir.lower_fun(plain, multiple_results=False)(ctx, *operands)
  # 2 is the version of custom calls whose configuration is a text.
  rule = jax.ffi.ffi_lowering(
    name, backend_config=json.dumps(settings), api_version=2
  )
  return rule(ctx, *operands)
