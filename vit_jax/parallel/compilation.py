"""Compiles a function before it runs: in all processes of a job, or ahead.

On CPUs, processes exchange arrays with Gloo, in which a process that begins to
run waits only 30 seconds for the others. On busy machines they can take longer
than that to compile the same function.
"""

from collections.abc import Callable
import concurrent.futures
from typing import Any

import jax

from vit_jax.parallel import processes

# Seconds to wait for the other processes. If one of them is lost meanwhile,
# the watchdog ends the job.
_DAY = 24 * 3600


def compile_together(function: Any, *args: Any) -> None:
  """Compiles a jitted function, and waits until all processes have done so.

  JAX keeps the compiled program, so that the call that follows finds it. With
  a single process nothing happens, because the call itself compiles.

  Args:
    function: what `jax.jit` returned.
    *args: the arguments of its first call, in every process.
  """
  if processes.current_job() is None:
    return
  function.lower(*args).compile()
  processes.barrier('the end of the compilation', timeout=_DAY)


def compile_ahead(function: Any, *args: Any) -> Callable[[], None]:
  """Begins to compile a jitted function, in a thread, for its first call.

  Args:
    function: what `jax.jit` returned.
    *args: arrays, or their shapes with shardings, as in the first call.

  Returns:
    A function that waits for the end of the compilation, and raises what it
    raised.
  """
  mesh = jax.sharding.get_mesh()  # a new thread has none

  def compile_it() -> None:
    with jax.set_mesh(mesh):
      function.lower(*args).compile()

  pool = concurrent.futures.ThreadPoolExecutor(1, 'compilation')
  done = pool.submit(compile_it)
  pool.shutdown(wait=False)
  return done.result
