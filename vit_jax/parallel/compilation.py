"""Compiles a function before it runs: in all processes of a job, or ahead.

On CPUs, processes exchange arrays with Gloo, in which a process that begins to
run waits only 30 seconds for the others. On busy machines they can take longer
than that to compile the same function.
"""

from collections.abc import Callable
import concurrent.futures
import threading
from typing import Any, NamedTuple

import jax

from vit_jax.parallel import processes

# Seconds to wait for the other processes. If one of them is lost meanwhile,
# the watchdog ends the job.
_DAY = 24 * 3600
# The event of JAX when it has read a program from its cache.
_HIT = '/jax/compilation_cache/cache_hits'


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


class Ahead(NamedTuple):
  """A function that was compiled ahead.

  Attributes:
    compiled: the program.
    is_new: whether it was compiled in this process. Otherwise JAX has read it
      from its cache of compiled programs.
  """

  compiled: jax.stages.Compiled
  is_new: bool


def compile_ahead(function: Any, *args: Any) -> Callable[[], Ahead]:
  """Begins to compile a jitted function, in a thread, for its first call.

  Args:
    function: what `jax.jit` returned.
    *args: arrays, or their shapes with shardings, as in the first call.

  Returns:
    A function that waits for the end of the compilation and returns its
    result, or raises what it raised.
  """
  mesh = jax.sharding.get_mesh()  # a new thread has none

  def compile_it() -> Ahead:
    thread, read = threading.current_thread(), []

    def note(event: str, **_) -> None:
      if event == _HIT and threading.current_thread() is thread:
        read.append(event)

    jax.monitoring.register_event_listener(note)
    try:
      with jax.set_mesh(mesh):
        return Ahead(function.lower(*args).compile(), not read)
    finally:
      jax.monitoring.unregister_event_listener(note)

  return in_thread(compile_it).result


def in_thread(function: Callable, *args: Any) -> concurrent.futures.Future:
  """Begins to call a function in a thread; returns its coming result."""
  pool = concurrent.futures.ThreadPoolExecutor(1, 'compilation')
  done = pool.submit(function, *args)
  pool.shutdown(wait=False)
  return done
