"""TrainState and the jitted train and eval steps: all that runs on devices.

A step is a pure function of (state, batch, extras). Randomness comes from the
recipe's one seed and `state.step`, so that a resumed run, or one on another
number of devices, draws the same numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import optax

from vit_jax.data import token_targets
from vit_jax.parallel.mesh import replicated
from vit_jax.training import augment, losses, metrics
from vit_jax.training.ema import ema_update
from vit_jax.training.state import TrainState


def make_targets(batch, num_classes: int):
  label = batch['label']
  if label.ndim == 1:
    label = augment.one_hot(label, num_classes)
  targets = {'label': label.astype(jnp.float32)}
  targets.update(
    {k: batch[k] for k in ('token_labels', 'token_cls') if k in batch}
  )
  return targets


def _split_micro(x, parts: int):
  """(B, ...) -> (parts, B / parts, ...); every device keeps its examples."""
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  mesh = jax.sharding.get_abstract_mesh()
  if 'data' in mesh.axis_names:
    x = jax.lax.with_sharding_constraint(x, P(None, ('data', 'fsdp')))
  return x


def make_train_step(
  config,
  model,
  tx,
  schedule: Callable,
  num_classes: int,
  *,
  specs=None,
  teacher=None,
  load_batch: Callable | None = None,
):
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
  dtype = jnp.dtype(getattr(model, 'dtype', jnp.float32))
  parts = config.optim.accumulate
  split = lambda tree: (
    tree
    if specs is None
    else jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)
  )

  def loss_fn(params, batch_stats, micro, key):
    (logits, out), updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      micro['image'],
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    loss, terms = losses.total_loss(
      config.loss, logits, out, micro['targets'], micro.get('teacher_logits')
    )
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
      batch['image'],
      make_targets(batch, num_classes),
      augment_key,
      config.data,
      dtype,
      slices=parts,
    )
    micro = {'image': images, 'targets': targets}
    if teacher is not None:
      micro['teacher_logits'] = jax.lax.stop_gradient(
        teacher(extras['teacher'], images, batch)
      )

    if parts == 1:
      (loss, (terms, batch_stats, logits)), grads = grad_fn(
        state.params, state.batch_stats, micro, dropout_key
      )
      correct = metrics.top_k_correct(logits, targets['label'], 1).mean()
    else:
      # The mean over equal parts is the gradient of the whole batch.
      def accumulate(carry, x):
        total, batch_stats = carry
        part, key = x
        (loss, (terms, batch_stats, logits)), grads = grad_fn(
          state.params, batch_stats, part, key
        )
        correct = metrics.top_k_correct(
          logits, part['targets']['label'], 1
        ).mean()
        sums = jax.tree.map(jnp.add, total, (grads, loss, terms, correct))
        return (sums, batch_stats), None

      micro = jax.tree.map(lambda x: _split_micro(x, parts), micro)
      keys = jax.random.split(dropout_key, parts)
      first = jax.tree.map(lambda x: x[0], micro)
      shapes = jax.eval_shape(
        grad_fn, state.params, state.batch_stats, first, dropout_key
      )
      (loss, (terms, _, _)), grads = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), shapes
      )
      zeros = (grads, loss, terms, jnp.float32(0))
      (sums, batch_stats), _ = jax.lax.scan(
        accumulate, (zeros, state.batch_stats), (micro, keys)
      )
      grads, loss, terms, correct = jax.tree.map(lambda x: x / parts, sums)

    grads = split(grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    bad_step = jnp.where(
      (state.bad_step < 0) & ~finite, state.step, state.bad_step
    )
    # 'stop' freezes the state at the last good one until the host notices.
    proceed = finite if config.run.nan == 'skip' else bad_step < 0
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema, ema_stats = state.ema, state.ema_stats
    if config.optim.ema:
      at = state.step if config.optim.ema_ramp else None
      ema = ema_update(ema, params, config.optim.ema, at)
    if ema_stats:
      ema_stats = ema_update(ema_stats, batch_stats, config.optim.ema, at)
    keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(proceed, a, b), new, old
    )
    new_state = TrainState(
      step=state.step + 1,
      params=keep(params, state.params),
      batch_stats=keep(batch_stats, state.batch_stats),
      opt_state=keep(opt_state, state.opt_state),
      ema=keep(ema, state.ema),
      ema_stats=keep(ema_stats, state.ema_stats),
      bad_step=bad_step,
      skipped=state.skipped + ~finite,
    )
    values = {
      'loss': loss,
      'train_top1': correct,
      'lr': schedule(state.step),
      'grad_norm': grad_norm,
      'param_norm': optax.tree.norm(split(state.params)),
      **{f'loss_{k}': v for k, v in terms.items() if len(terms) > 1},
    }
    return new_state, values

  return train_step


def compile_train_step(step_fn, state_shardings, mesh: Mesh):
  """jit with named shardings and the state donated."""
  return jax.jit(
    step_fn,
    donate_argnums=(0,),
    in_shardings=(state_shardings, None, None),
    out_shardings=(state_shardings, replicated(mesh)),
  )
