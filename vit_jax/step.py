"""TrainState and the jitted train and eval steps: all that runs on devices.

A step is a pure function of (state, batch, extras). Randomness comes from the
recipe's one seed and `state.step`, so that a resumed run, or one on another
number of devices, draws the same numbers.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
import optax

from vit_jax import augment, losses, metrics, optim, sharding
from vit_jax.data import token_targets


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes, and a checkpoint holds."""

  step: jax.Array  # int32: finished steps
  params: Any
  batch_stats: Any  # BatchNorm statistics; {} for most models
  opt_state: Any
  ema: Any  # averaged parameters; {} without optim.ema
  bad_step: jax.Array  # int32: first step with a non-finite loss, -1 for none
  skipped: jax.Array  # int32: how many such steps were skipped


def init_variables(model, image_shape, seed: int):
  """Fresh variables of a model from the recipe's seed; call it inside jit."""
  images = jnp.zeros((1, *image_shape, 3))
  return model.init(jax.random.key(seed), images, train=False)


def init_state(variables, tx: optax.GradientTransformation,
               ema: bool) -> TrainState:
  """A state at step 0 with these variables."""
  params = variables['params']
  return TrainState(
      step=jnp.int32(0), params=params,
      batch_stats=variables.get('batch_stats', {}), opt_state=tx.init(params),
      # A copy: donated states must not hold one buffer twice.
      ema=jax.tree.map(jnp.copy, params) if ema else {},
      bad_step=jnp.int32(-1), skipped=jnp.int32(0))


def to_tree(state: TrainState) -> dict[str, Any]:
  """The state as plain nested dicts, for a checkpoint."""
  return flax.serialization.to_state_dict(state)


def from_tree(state: TrainState, tree) -> TrainState:
  """`to_tree` backwards; `state` gives the structure."""
  return flax.serialization.from_state_dict(state, tree)


def _targets(batch, num_classes: int):
  label = batch['label']
  if label.ndim == 1:
    label = augment.one_hot(label, num_classes)
  targets = {'label': label.astype(jnp.float32)}
  targets.update({k: batch[k] for k in ('token_labels', 'token_cls')
                  if k in batch})
  return targets


def _split_micro(x, parts: int):
  """(B, ...) -> (parts, B / parts, ...); every device keeps its examples."""
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  mesh = jax.sharding.get_abstract_mesh()
  if 'data' in mesh.axis_names:
    x = jax.lax.with_sharding_constraint(x, P(None, ('data', 'fsdp')))
  return x


def make_train_step(config, model, tx, schedule: Callable, num_classes: int,
                    *, specs=None, teacher=None,
                    load_batch: Callable | None = None):
  """Builds train_step(state, batch, extras) -> (state, metrics).

  Args:
    config: the recipe.
    model: the Linen module, with its compute dtype.
    tx: the optimizer of `optim.make_optimizer`.
    schedule: step -> learning rate, for the log.
    num_classes: of the head.
    specs: `sharding.update_specs` of the parameters, for a mesh; None: one
      device. Norms and updates are then computed on the parts alone.
    teacher: a function (variables, uint8-range images, batch) -> logits, for
      distillation; its variables are `extras['teacher']`.
    load_batch: turns what the host sends into a batch of images and labels,
      (batch, extras, key) -> batch, for a data set held on the device.

  Returns:
    A pure function to jit with the state donated. The batch has 'image'
    uint8 (B, H, W, 3), 'label' int (B,) or float (B, C).
  """
  dtype = jnp.dtype(model.dtype)
  parts = config.optim.accumulate
  split = lambda tree: tree if specs is None else jax.tree.map(
      jax.lax.with_sharding_constraint, tree, specs)

  def loss_fn(params, batch_stats, micro, key):
    (logits, out), updated = model.apply(
        {'params': params, 'batch_stats': batch_stats}, micro['image'],
        train=True, rngs={'dropout': key}, mutable=['batch_stats'])
    loss, terms = losses.total_loss(config.loss, logits, out, micro['targets'],
                                    micro.get('teacher_logits'))
    return loss, (terms, updated.get('batch_stats', batch_stats), logits)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def train_step(state: TrainState, batch, extras):
    key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
    data_key, augment_key, dropout_key = jax.random.split(key, 3)
    if load_batch is not None:
      batch = load_batch(batch, extras, data_key)
    if 'token_logits' in batch:
      batch = token_targets.expand(batch, num_classes)
    images, targets = augment.prepare_train(
        batch['image'], _targets(batch, num_classes), augment_key, config.data,
        dtype)
    micro = {'image': images, 'targets': targets}
    if teacher is not None:
      micro['teacher_logits'] = jax.lax.stop_gradient(
          teacher(extras['teacher'], images, batch))

    if parts == 1:
      (loss, (terms, batch_stats, logits)), grads = grad_fn(
          state.params, state.batch_stats, micro, dropout_key)
      correct = metrics.top_k_correct(logits, targets['label'], 1).mean()
    else:
      # The mean over equal parts is the gradient of the whole batch.
      def accumulate(carry, x):
        total, batch_stats = carry
        part, key = x
        (loss, (terms, batch_stats, logits)), grads = grad_fn(
            state.params, batch_stats, part, key)
        correct = metrics.top_k_correct(
            logits, part['targets']['label'], 1).mean()
        sums = jax.tree.map(jnp.add, total, (grads, loss, terms, correct))
        return (sums, batch_stats), None

      micro = jax.tree.map(lambda x: _split_micro(x, parts), micro)
      keys = jax.random.split(dropout_key, parts)
      first = jax.tree.map(lambda x: x[0], micro)
      shapes = jax.eval_shape(grad_fn, state.params, state.batch_stats, first,
                              dropout_key)
      (loss, (terms, _, _)), grads = jax.tree.map(
          lambda s: jnp.zeros(s.shape, s.dtype), shapes)
      zeros = (grads, loss, terms, jnp.float32(0))
      (sums, batch_stats), _ = jax.lax.scan(
          accumulate, (zeros, state.batch_stats), (micro, keys))
      grads, loss, terms, correct = jax.tree.map(lambda x: x / parts, sums)

    grads = split(grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    bad_step = jnp.where((state.bad_step < 0) & ~finite, state.step,
                         state.bad_step)
    # 'stop' freezes the state at the last good one until the host notices.
    proceed = finite if config.run.nan == 'skip' else bad_step < 0
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.optim.ema:
      ema = optim.ema_update(ema, params, config.optim.ema, state.step)
    keep = lambda new, old: jax.tree.map(
        lambda a, b: jnp.where(proceed, a, b), new, old)
    new_state = TrainState(
        step=state.step + 1, params=keep(params, state.params),
        batch_stats=keep(batch_stats, state.batch_stats),
        opt_state=keep(opt_state, state.opt_state),
        ema=keep(ema, state.ema), bad_step=bad_step,
        skipped=state.skipped + ~finite)
    values = {
        'loss': loss, 'train_top1': correct, 'lr': schedule(state.step),
        'grad_norm': grad_norm,
        'param_norm': optax.tree.norm(split(state.params)),
        **{f'loss_{k}': v for k, v in terms.items() if len(terms) > 1}}
    return new_state, values

  return train_step


def make_eval_step(config, model, num_classes: int):
  """Builds eval_step(variables, batch) -> sums over the real examples.

  The batch has 'image' uint8, 'label' and 'mask' (B,), 0 for padding.
  """
  dtype = jnp.dtype(model.dtype)

  def eval_step(variables, batch):
    images = augment.prepare_eval(batch['image'], config.data, dtype)
    logits, _ = model.apply(variables, images, train=False)
    labels = batch['label']
    targets = labels if labels.ndim > 1 else augment.one_hot(
        labels, num_classes)
    xent = {'softmax': losses.softmax_xent, 'sigmoid': losses.sigmoid_xent}
    per_example = xent[config.loss.name](logits, targets)
    return metrics.batch_metrics(logits, labels, per_example, batch['mask'])

  return eval_step


def compile_train_step(step_fn, state_shardings, mesh: Mesh):
  """jit with named shardings and the state donated."""
  return jax.jit(
      step_fn, donate_argnums=(0,),
      in_shardings=(state_shardings, None, None),
      out_shardings=(state_shardings, sharding.replicated(mesh)))
