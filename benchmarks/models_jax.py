"""Inference and training steps of this package.

Each function prepares a candidate of `benchmarks.turns`, and says the
multiply-accumulates of its model and the memory of its program on each device
("step MB"), as the compiler reports it. Settings:

  model   a name of timm, which this package understands too
  batch   number of images
  size    height and width of the images, in pixels
  dtype   'float32' or 'bfloat16'

The device is chosen by the environment (`turns.on_device`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax.allocation import compute_in_first_thread
from vit_jax.models import flops
from vit_jax.models.compute_weights import converted_weights
from vit_jax.parallel.mesh import make_mesh, put_batch
from vit_jax.recipe.build import build, compile_step
from vit_jax.recipe.keys import default_config
from vit_jax.training.memory import peak_bytes

CLASSES = 1000
_EXAMPLES = 100_000


def _images(settings: dict[str, Any], dtype: Any = np.float32) -> np.ndarray:
  shape = (settings['batch'], settings['size'], settings['size'], 3)
  rng = np.random.default_rng(0)
  if dtype == np.uint8:
    return rng.integers(0, 256, shape, np.uint8)
  return rng.standard_normal(shape, np.float32)


_Measured = tuple[Callable[[], object], dict[str, Callable[[], float]]]


def _with_facts(
  run: Callable[[], object], model: Any, size: int, compiled: Any
) -> _Measured:
  return run, {
    '_macs': lambda: flops.forward_macs(model, size, size),
    'step MB': lambda: peak_bytes(compiled.memory_analysis()) / 1e6,
  }


def matrix_product(settings: dict[str, Any]) -> Callable[[], object]:
  """`count` products of square matrices of `size`, one after the other."""
  size, count = settings['size'], settings['count']
  x = jnp.full((size, size), 1 / size, settings['dtype'])
  products = jax.jit(
    lambda x: jax.lax.fori_loop(0, count, lambda _, y: y @ x, x)
  )
  return lambda: jax.block_until_ready(products(x))


def inference(settings: dict[str, Any]) -> _Measured:
  """The logits of a batch, with random weights in the types of a classifier."""
  compute_in_first_thread()  # as commands do
  model = vit_jax.create_model(settings['model'], dtype=settings['dtype'])
  images = jax.device_put(_images(settings))
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), images[:1], train=False)
  )()
  logits = lambda v, x: model.apply(v, x, train=False)[0]
  variables = converted_weights(logits, variables, images)
  forward = jax.jit(logits)
  compiled = forward.lower(variables, images).compile()
  run = lambda: jax.block_until_ready(compiled(variables, images))
  return _with_facts(run, model, settings['size'], compiled)


def training(settings: dict[str, Any]) -> _Measured:
  """A training step with AdamW, as `vit-jax train` makes it.

  It begins with uint8 images, which it normalizes, and ends with the new state
  and the metrics.
  """
  compute_in_first_thread()  # as commands do
  config = default_config()
  config.model.name = settings['model']
  config.data.image_size = settings['size']
  config.data.batch_size = settings['batch']
  config.optim.name, config.optim.weight_decay = 'adamw', 0.05
  config.run.steps, config.run.epochs = 1000, None
  config.run.dtype = settings['dtype']
  mesh = make_mesh(config.mesh.preset)
  run = build(config, mesh, num_classes=CLASSES, num_examples=_EXAMPLES)
  rng = np.random.default_rng(0)
  batch = put_batch(
    {
      'image': _images(settings, np.uint8),
      'label': rng.integers(0, CLASSES, settings['batch'], np.int32),
      'index': rng.integers(0, _EXAMPLES, settings['batch'], np.int32),
    },
    mesh,
  )
  with jax.set_mesh(mesh):
    state = run.init()
    step = compile_step(run).lower(state, batch, {}).compile()

  def once():
    nonlocal state
    with jax.set_mesh(mesh):
      state, values = step(state, batch, {})
    jax.block_until_ready((state, values))

  return _with_facts(once, run.model, settings['size'], step)
