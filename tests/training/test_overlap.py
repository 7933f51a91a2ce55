"""Nothing in a run waits for a device by accident, and nothing compiles twice.

JAX's transfer guard raises for an implicit transfer to a device. On a CPU it
does not look at transfers to the host, so `explicit_only` adds that.
"""

import collections
import threading

import jax
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax.inference.loading import load_classifier
from vit_jax.train import train_and_evaluate
from vit_jax.training.checkpoint import Checkpoints

COMPILED = '/jax/core/compile/backend_compile_duration'


@pytest.fixture
def explicit_only(monkeypatch):
  """Raises for a transfer that is neither `device_put` nor `device_get`.

  Saving is left out, because Orbax copies the arrays to the host in its own
  way; `benchmarks/checkpoints.py` measures how long a run waits for it.
  """
  allowed = threading.local()

  def check(x):
    if (
      isinstance(x, jax.Array)
      and threading.current_thread() is threading.main_thread()
      and not guard_lib.thread_local_state().explicit_device_get
      and not getattr(allowed, 'saving', False)
    ):
      raise AssertionError(f'implicit transfer of {x.aval} to the host')

  as_numpy, value, save = np.asarray, ArrayImpl._value, Checkpoints.save

  def asarray(x, *args, **kwargs):
    check(x)
    return as_numpy(x, *args, **kwargs)

  def checked_value(x):
    check(x)
    return value.__get__(x)

  def checked_save(*args, **kwargs):
    allowed.saving = True
    try:
      return save(*args, **kwargs)
    finally:
      allowed.saving = False

  monkeypatch.setattr(np, 'asarray', asarray)
  monkeypatch.setattr(ArrayImpl, '_value', property(checked_value))
  monkeypatch.setattr(Checkpoints, 'save', checked_save)
  before = jax.config.jax_transfer_guard
  jax.config.update('jax_transfer_guard', 'disallow')
  yield
  jax.config.update('jax_transfer_guard', before)


@pytest.fixture
def compiled():
  """Counts how often a function of each name is compiled."""
  counts = collections.Counter()

  def listen(event, seconds, fun_name='', **unused):
    if event == COMPILED:
      counts[fun_name] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield counts
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
  'transfer',
  [
    lambda x: float(x[0]),
    lambda x: np.asarray(x),
    lambda x: x.tolist(),
    lambda x: bool((jax.jit(jnp.sum)(x)) > 2),
    lambda x: x + np.ones(3, np.float32),
  ],
)
def test_hidden_transfers_are_seen(explicit_only, transfer):
  x = jax.device_put(np.ones(3, np.float32))
  assert jax.device_get(x).sum() == 3
  with pytest.raises((AssertionError, jax.errors.JaxRuntimeError)) as error:
    transfer(x)
  assert 'transfer' in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('device_cache', ['on', 'off'])
def test_a_run_has_no_hidden_transfer_and_compiles_once(
  explicit_only, compiled, tmp_path, device_cache
):
  """The last batches of an epoch, of an evaluation and of a prediction are
  not full."""
  config = tiny_config(
    data=dict(num_examples=50, device_cache=device_cache),
    eval=dict(every_steps=3, batch_size=16),
    log=dict(checkpoint_steps=4, every_steps=2),
  )
  train_and_evaluate(config, tmp_path, jax.devices()[:1])
  classifier = load_classifier(tmp_path)
  images = [np.full((20, 20, 3), i, np.uint8) for i in range(14)]
  assert len([*classifier.classify(images, batch_size=8)]) == 14
  programs = 'train_step', 'eval_step', 'top_classes'
  assert {p: compiled[f'jit({p})'] for p in programs} == dict.fromkeys(
    programs, 1
  )
