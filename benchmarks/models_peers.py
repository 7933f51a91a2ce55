"""Inference and training steps of other packages of ViTs in JAX.

Each function prepares a candidate of `benchmarks.turns`, with the settings of
`benchmarks.models_jax`:

  jimm    the package `jax-image-models`, in Flax NNX. It is told the 'width'
          and the 'heads' of the model
  equimo  the package `equimo`, in Equinox

A training step takes a batch of normalized images, and ends with the new
parameters by optax's AdamW, and the loss. With 'bfloat16' both packages compute
in this type. jimm keeps float32 parameters, and equimo those that it is given,
so that they are cast at the start of a training step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

CLASSES = 1000


def _batch(settings: dict[str, Any], channels_first: bool) -> tuple:
  """Images (B, H, W, 3) or (B, 3, H, W), and labels (B,)."""
  rng = np.random.default_rng(0)
  size, batch = settings['size'], settings['batch']
  shape = (batch, 3, size, size) if channels_first else (batch, size, size, 3)
  images = rng.standard_normal(shape, np.float32)
  labels = rng.integers(0, CLASSES, batch, np.int32)
  return jax.device_put(images), jax.device_put(labels)


def _optimizer() -> optax.GradientTransformation:
  return optax.adamw(1e-3, weight_decay=0.05)


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )
  return losses.mean()


def _check(logits: jax.Array, settings: dict[str, Any]) -> None:
  """Raises ValueError unless a package computes what the others compute."""
  expected = settings['batch'], CLASSES
  if logits.shape != expected:
    raise ValueError(f'logits {logits.shape}, and {expected} are compared')


def _jimm(settings: dict[str, Any]) -> Any:
  import flax.nnx as nnx
  import jimm
  from jimm.common.sharding import NoSharding

  width = settings['width']
  return jimm.VisionTransformer(
    num_classes=CLASSES,
    img_size=settings['size'],
    num_heads=settings['heads'],
    hidden_size=width,
    mlp_dim=4 * width,
    dropout_rate=0.0,
    dtype=settings['dtype'],
    sharding=NoSharding(),
    rngs=nnx.Rngs(0),
  )


def _jimm_mesh() -> Any:
  """jimm reads the sharding of all arrays from a mesh with explicit axes."""
  return jax.set_mesh(
    jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Explicit,))
  )


def jimm_inference(settings: dict[str, Any]) -> Callable[[], object]:
  """The logits of a batch by jimm."""
  import flax.nnx as nnx

  with _jimm_mesh():
    model = _jimm(settings)
    model.eval()
    images, _ = _batch(settings, channels_first=False)
    forward = nnx.jit(lambda model, x: model(x))
    _check(forward(model, images), settings)

  def once():
    with _jimm_mesh():
      return jax.block_until_ready(forward(model, images))

  return once


def jimm_training(settings: dict[str, Any]) -> Callable[[], object]:
  """A training step of jimm."""
  import flax.nnx as nnx

  with _jimm_mesh():
    model = _jimm(settings)
    model.train()
    optimizer = nnx.Optimizer(model, _optimizer(), wrt=nnx.Param)
    images, labels = _batch(settings, channels_first=False)

  @nnx.jit
  def step(model, optimizer, images, labels):
    value, gradients = nnx.value_and_grad(
      lambda model: _loss(model(images), labels)
    )(model)
    optimizer.update(model, gradients)
    return value

  def once():
    with _jimm_mesh():
      return float(step(model, optimizer, images, labels))

  return once


def _cast(model: Any, dtype: str) -> Any:
  """The model with its floating-point parameters in another type."""
  import equinox as eqx

  return jax.tree.map(
    lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model
  )


def _equimo(settings: dict[str, Any]) -> Any:
  import equimo.models

  return getattr(equimo.models, settings['model'])(
    num_classes=CLASSES, global_pool='token'
  )


def equimo_inference(settings: dict[str, Any]) -> Callable[[], object]:
  """The logits of a batch by equimo."""
  import equinox as eqx

  model = _cast(_equimo(settings), settings['dtype'])
  images, _ = _batch(settings, channels_first=True)
  images = images.astype(settings['dtype'])
  forward = eqx.filter_jit(
    lambda model, x: jax.vmap(lambda one: model(one, inference=True))(x)
  )
  _check(forward(model, images), settings)
  return lambda: jax.block_until_ready(forward(model, images))


def equimo_training(settings: dict[str, Any]) -> Callable[[], object]:
  """A training step of equimo."""
  import equinox as eqx

  optimizer = _optimizer()
  model = _equimo(settings)
  state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
  images, labels = _batch(settings, channels_first=True)
  key = jax.random.key(0)

  def loss(model, images, labels):
    model = _cast(model, settings['dtype'])
    images = images.astype(settings['dtype'])
    keys = jax.random.split(key, len(images))
    logits = jax.vmap(lambda one, key: model(one, key=key, inference=False))(
      images, keys
    )
    return _loss(logits, labels)

  @eqx.filter_jit(donate='all-except-first')
  def step(batch, model, state):
    value, gradients = eqx.filter_value_and_grad(loss)(model, *batch)
    parameters = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(gradients, state, parameters)
    return eqx.apply_updates(model, updates), state, value

  def once():
    nonlocal model, state
    model, state, value = step((images, labels), model, state)
    return float(value)

  return once
