"""A function that is compiled ahead, in a thread, is not compiled again."""

import threading

import jax
import jax.numpy as jnp
import pytest

from vit_jax.parallel.compilation import compile_ahead
from vit_jax.parallel.mesh import make_mesh, replicated


def test_the_first_call_takes_the_program_that_was_compiled_ahead():
  mesh = make_mesh('data', 1, 1, jax.devices()[:1])
  everywhere, threads = replicated(mesh), []

  def step(state, batch):
    threads.append(threading.current_thread())
    assert jax.sharding.get_abstract_mesh() == mesh.abstract_mesh
    return state + batch.sum()

  jitted = jax.jit(step, donate_argnums=0, in_shardings=(everywhere, None))
  batch = jax.device_put(jnp.ones(3), everywhere)
  abstract = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
  with jax.set_mesh(mesh):
    wait = compile_ahead(jitted, abstract, batch)
    state = jax.device_put(jnp.float32(1), everywhere)
    wait()
    assert jitted(state, batch) == 4
  assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_an_error_is_raised_where_the_compilation_is_waited_for():
  def step(x):
    raise ValueError('wrong shape')

  with jax.set_mesh(make_mesh('data', 1, 1, jax.devices()[:1])):
    wait = compile_ahead(jax.jit(step), 1.0)
  with pytest.raises(ValueError, match='wrong shape'):
    wait()
