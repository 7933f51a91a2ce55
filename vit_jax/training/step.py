"""The jitted training step: all of training that runs on devices.

A step is a pure function of (state, batch, extras). Its random numbers depend
only on the recipe's seed and on `state.step`, so that a resumed run, or a run
on another number of devices, draws the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import optax

from vit_jax.data import token_targets
from vit_jax.parallel.mesh import replicated
from vit_jax.training import augment, metrics
from vit_jax.training.state import TrainState
from vit_jax.training.whole_params import whole_params

Values = dict[str, jax.Array]
_CONVOLUTION = 4  # axes of its kernel: (height, width, C, D)
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Values]]


class _Gradient(NamedTuple):
  """Sums or means over the micro-batches of a step."""

  grads: Any
  loss: jax.Array
  terms: Values  # the terms of the loss, without their weights
  correct: jax.Array  # fraction of examples whose best class is a label


def make_targets(batch: dict[str, jax.Array], num_classes: int) -> Values:
  """The targets of a batch: 'label' (B, C), and token labels if it has any.

  Args:
    batch: 'label' int (B,) or float (B, C); 'token_labels' and 'token_cls' as
      in `losses.total_loss`.
    num_classes: C.
  """
  label = batch['label']
  if label.ndim == 1:
    label = augment.one_hot(label, num_classes)
  tokens = {k: batch[k] for k in ('token_labels', 'token_cls') if k in batch}
  return {'label': label.astype(jnp.float32), **tokens}


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  seed: int,
  schedule: Callable,
  prepare: Callable,
  loss: Callable,
  average: Callable | None = None,
  accumulate: int = 1,
  skip_nonfinite: bool = False,
  shardings: Any = None,
  whole: bool = False,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
  train_mode: bool = True,
) -> TrainStep:
  """Builds train_step(state, batch, extras) -> (state, values for the log).

  Args:
    model: Linen module, with its compute dtype.
    tx: the optimizer of `optimizers.make_optimizer`.
    num_classes: number of classes of the head.
    seed: determines all random numbers.
    schedule: step -> learning rate, for the log.
    prepare: (uint8 images, targets, key) -> images and targets to train with.
    loss: (logits, intermediates, targets, teacher's logits) -> loss, terms.
    average: (average, new values, step) -> moving average; None for no average.
    accumulate: number of micro-batches whose gradients are averaged.
    skip_nonfinite: skip the update if the loss or a gradient is not finite. If
      False, that step and all later ones change nothing until the host stops.
    shardings: NamedSharding of every parameter, in whose shards the optimizer
      computes; None for one device.
    whole: put parameters that are split over the devices together at the start
      of the step, and not each where it is used.
    teacher: (extras['teacher'], images, batch) -> logits, for distillation.
    load_batch: (batch, extras, key) -> images and labels, if the host sends
      something else, such as indices into a data set on the device.
    train_mode: False keeps the model in evaluation mode: no dropout, no drop
      path, and fixed BatchNorm statistics.

  Returns:
    A pure function to jit with the state donated. Its batch has 'image' uint8
    (B, H, W, 3) and 'label' int (B,) or float (B, C).
  """
  loss_fn = _make_loss_fn(model, loss, train_mode)
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  make_examples = make_example_function(
    num_classes, seed, prepare, teacher, load_batch
  )

  def train_step(state, batch, extras):
    examples, dropout_key = make_examples(state.step, batch, extras)
    params = state.params
    if whole:
      params = whole_params(
        lambda x: loss_fn(x, state.batch_stats, examples, dropout_key)[0],
        params,
        shardings,
      )
    gradient, batch_stats = _accumulated_gradient(
      grad_fn, params, state.batch_stats, examples, dropout_key, accumulate
    )
    grads = _for_optimizer(gradient.grads, shardings, whole)
    grad_norm = optax.tree.norm(grads)
    new_state = _apply(
      state,
      grads,
      batch_stats,
      finite=jnp.isfinite(gradient.loss) & jnp.isfinite(grad_norm),
      tx=tx,
      average=average,
      skip_nonfinite=skip_nonfinite,
    )
    values = _log_values(gradient, grad_norm, optax.tree.norm(state.params))
    values['lr'] = schedule(state.step)
    return new_state, values

  return train_step


def make_example_function(
  num_classes: int,
  seed: int,
  prepare: Callable,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
) -> Callable[[Any, Any, Any], tuple[dict[str, Any], jax.Array]]:
  """Builds (step, batch, extras) -> what the loss is computed from, a key.

  The examples are 'image' (B, H, W, 3), as the model gets them, 'targets', and
  with a teacher 'teacher_logits' (B, C). The key is for dropout.

  Args:
    num_classes, seed, prepare, teacher, load_batch: see `make_train_step`.
  """

  def make_examples(step, batch, extras):
    key = jax.random.fold_in(jax.random.key(seed), step)
    data_key, augment_key, dropout_key = jax.random.split(key, 3)
    if load_batch is not None:
      batch = load_batch(batch, extras, data_key)
    examples = _examples(
      batch, extras, augment_key, num_classes, prepare, teacher
    )
    return examples, dropout_key

  return make_examples


def _examples(batch, extras, key, num_classes, prepare, teacher):
  """Images, targets and teacher's logits, from which the loss is computed."""
  if 'token_logits' in batch:
    batch = token_targets.expand(batch, num_classes)
  images, targets = prepare(
    batch['image'], make_targets(batch, num_classes), key
  )
  examples = {'image': images, 'targets': targets}
  if teacher is not None:
    examples['teacher_logits'] = jax.lax.stop_gradient(
      teacher(extras['teacher'], images, batch)
    )
  return examples


def _log_values(gradient, grad_norm, param_norm) -> dict[str, jax.Array]:
  """The values for the log."""
  values = {
    'loss': gradient.loss,
    'train_top1': gradient.correct,
    'grad_norm': grad_norm,
    'param_norm': param_norm,
  }
  if len(gradient.terms) > 1:
    values.update({f'loss_{k}': v for k, v in gradient.terms.items()})
  return values


def _make_loss_fn(model, loss, train_mode: bool):
  """Makes (params, stats, examples, key) -> loss, (terms, stats, logits)."""

  def loss_fn(params, batch_stats, examples, key):
    (logits, out), updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      examples['image'],
      train=train_mode,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    value, terms = loss(
      logits, out, examples['targets'], examples.get('teacher_logits')
    )
    return value, (terms, updated.get('batch_stats', batch_stats), logits)

  return loss_fn


def _gradient(grad_fn, params, batch_stats, examples, key):
  """The gradient of a batch or micro-batch, and new BatchNorm statistics."""
  (loss, (terms, batch_stats, logits)), grads = grad_fn(
    params, batch_stats, examples, key
  )
  # By a parameter that was converted to bfloat16, the gradient is bfloat16.
  # Micro-batches and the optimizer add in float32.
  grads = jax.tree.map(
    lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads
  )
  label = examples['targets']['label']
  correct = metrics.top_k_correct(logits, label, 1).mean()
  return _Gradient(grads, loss, terms, correct), batch_stats


def _accumulated_gradient(
  grad_fn, params, batch_stats, examples, key, count: int
):
  """The gradient of a batch, computed in `count` micro-batches.

  They have equal sizes, so the mean of their gradients is the gradient of the
  whole batch.
  """
  if count == 1:
    return _gradient(grad_fn, params, batch_stats, examples, key)
  slices = jax.tree.map(lambda x: _split(x, count), examples)
  keys = jax.random.split(key, count)

  def add(carry, x):
    total, batch_stats = carry
    gradient, batch_stats = _gradient(grad_fn, params, batch_stats, *x)
    return (jax.tree.map(jnp.add, total, gradient), batch_stats), None

  first = jax.tree.map(lambda x: x[0], (slices, keys))
  shapes, _ = jax.eval_shape(
    lambda x: _gradient(grad_fn, params, batch_stats, *x), first
  )
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (total, batch_stats), _ = jax.lax.scan(
    add, (zeros, batch_stats), (slices, keys)
  )
  return jax.tree.map(lambda x: x / count, total), batch_stats


def _split(x: jax.Array, count: int) -> jax.Array:
  """Splits (B, ...) into (count, B / count, ...) on the devices they are on."""
  x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
  mesh = jax.sharding.get_abstract_mesh()
  if 'data' in mesh.axis_names:
    x = jax.lax.with_sharding_constraint(x, P(None, ('data', 'fsdp')))
  return x


def _for_optimizer(grads, shardings, whole: bool):
  """The gradients, split over the devices for the optimizer.

  Where the step has whole parameters, the gradients of convolutions are made
  whole first. Otherwise, on some slices such as v5p:2x2x4, the partitioner
  computes one convolution for each shard, and sends the results around (1 ms of
  a step of B/16, for its patch embedding).
  """
  if shardings is None:
    return grads

  def one(g, sharding):
    if whole and g.ndim == _CONVOLUTION:
      g = jax.lax.with_sharding_constraint(g, replicated(sharding.mesh))
    return jax.lax.with_sharding_constraint(g, sharding)

  return jax.tree.map(one, grads, shardings)


def _apply(state, grads, batch_stats, *, finite, tx, average, skip_nonfinite):
  """The next state. A skipped update changes only its counters of steps."""
  bad_step = jnp.where(
    (state.bad_step < 0) & ~finite, state.step, state.bad_step
  )
  proceed = finite if skip_nonfinite else bad_step < 0
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema, ema_stats = state.ema, state.ema_stats
  if average is not None:
    ema = average(ema, params, state.step)
    if ema_stats:
      ema_stats = average(ema_stats, batch_stats, state.step)
  keep = lambda new, old: jax.tree.map(
    lambda a, b: jnp.where(proceed, a, b), new, old
  )
  return state.replace(
    step=state.step + 1,
    params=keep(params, state.params),
    batch_stats=keep(batch_stats, state.batch_stats),
    opt_state=keep(opt_state, state.opt_state),
    ema=keep(ema, state.ema),
    ema_stats=keep(ema_stats, state.ema_stats),
    bad_step=bad_step,
    skipped=state.skipped + ~finite,
  )


def compile_train_step(
  step: TrainStep, state_shardings: TrainState, mesh: Mesh
) -> Any:
  """Jits a training step with named shardings, and donates the state."""
  options = None
  if mesh.devices.flat[0].platform == 'cpu':
    # Without this option, the compiler copies the whole donated state at the
    # beginning of every step.
    options = {'xla_cpu_copy_insertion_use_region_analysis': True}
  return jax.jit(
    step,
    donate_argnums=(0,),
    in_shardings=(state_shardings, None, None),
    out_shardings=(state_shardings, replicated(mesh)),
    compiler_options=options,
  )
