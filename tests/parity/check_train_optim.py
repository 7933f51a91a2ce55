"""Parity of the optimizers alone: recorded gradients, the whole chain."""

import re

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity import check_train_google, check_train_timm
from tests.parity.harness import kind
from tests.parity.training_run import record, set_keys
from vit_jax.recipe.keys import default_config
from vit_jax.training.optimizers import make_optimizer
from vit_jax.training.schedules import make_schedule


def _run(case, settings: dict, total_steps: int, separator: str):
  """Parameters after each update, the last state, and the rates.

  Args:
    case: has the initial parameters and the gradients of every update.
    settings: keys of a recipe.
    total_steps: length of the run; an epoch is one step.
    separator: of the paths in the names of the file.
  """
  config = default_config()
  set_keys(config, settings)
  tree = lambda flat: unflatten_dict(
    {k: jnp.asarray(v) for k, v in flat.items()}, sep=separator
  )
  params = tree(case.params)
  schedule = make_schedule(
    config.schedule,
    config.optim,
    total_steps=total_steps,
    steps_per_epoch=1,
    batch_size=1,
  )
  tx = make_optimizer(config.optim, schedule, params)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  grads = {
    key.removeprefix('grads/'): value for key, value in case.inputs.items()
  }
  count = len(next(iter(grads.values())))
  state, history = tx.init(params), []
  for i in range(count):
    params, state = step(
      params, state, tree({k: g[i] for k, g in grads.items()})
    )
    history.append(flatten_dict(params, sep=separator))
  return history, state, schedule(jnp.arange(count))


def _compare(case, name: str, results, atol: float, separator: str) -> None:
  """Compares one optimizer's rates, parameters and state."""
  history, state, rates = results
  tolerance = case.meta['tolerance']
  want = case.outputs[f'{name}/lr'].astype(np.float64)
  difference = np.abs(rates - want) / np.maximum(np.abs(want), 1e-12)
  rtol = tolerance.get('lr_rtol', 1e-5)
  record(case, [f'{name}/lr'], np.max(difference), rtol, f'{name}/lr')
  numbers = [float(x) for x in re.findall(r'1e-\d+', tolerance['state'])]
  far = total = 0
  for key, want in case.outputs.items():
    if not key.startswith(f'{name}/') or key == f'{name}/lr':
      continue
    group, path = key.removeprefix(f'{name}/').split('/', 1)
    if group == 'opt':
      moment, path = path.split('/', 1)
      tree = optax.tree.get(state, moment_name(moment))
      value = flatten_dict(tree, sep=separator)[path]
      # The second number is of states that are kept in bfloat16.
      rtol = numbers[-1 if value.dtype == jnp.bfloat16 else 0]
      scale = np.max(np.abs(want)) or 1.0
      difference = np.abs(np.asarray(value, np.float64) - want) / scale
      record(case, [key], np.max(difference), rtol, key)
      continue
    value = history[int(group.removeprefix('step')) - 1][path]
    difference = np.abs(np.asarray(value, np.float64) - want)
    far, total = far + np.sum(difference > 2e-6), total + want.size
    record(case, [key], np.max(difference), atol, key)
  if 'params_share' in tolerance:
    record(case, [], far / total, 0.01, f'{name}: share further than 2e-6')


def moment_name(official: str) -> str:
  """Name of a moment in optax's states."""
  return {
    'exp_avg': 'mu',
    'exp_avg_sq': 'nu',
    'momentum_buffer': 'trace',
  }.get(official, official)


def _check_norms(case) -> None:
  """The norm that clips is the one that training reports: optax's."""
  grads = list(case.inputs.values())
  norms = [optax.tree.norm([g[i] for g in grads]) for i in range(len(grads[0]))]
  want = case.outputs['grad_norm'].astype(np.float64)
  difference = np.max(np.abs(np.array(norms, np.float64) - want) / want)
  record(case, ['grad_norm'], difference, 1e-5, 'grad_norm')


@kind('train_optim_google')
def check_google_optimizers(case):
  schedule = dict(case.meta['schedule'])
  total = schedule.pop('total_steps')
  _check_norms(case)
  for name, c in case.config.items():
    settings = {
      **check_train_google.optimizer_settings(c, case.params),
      **check_train_google.schedule_settings(
        c.get('schedule', schedule), c['lr']
      ),
    }
    atol = case.meta['tolerance']['params_atol'][name]
    _compare(case, name, _run(case, settings, total, '/'), atol, '/')


@kind('train_optim_timm')
def check_timm_optimizers(case):
  """The recorded loop steps the schedule after each update, as DeiT's does."""
  _check_norms(case)
  for name, c in case.config.items():
    decayed = case.meta['weight_decay_used'][name]
    settings = {
      **check_train_timm.optimizer_settings(c),
      'optim.decay_mask': '|'.join(
        re.escape(path) for path, decay in decayed.items() if decay
      ),
      **check_train_timm.schedule_settings(c, steps_per_epoch=1),
      'schedule.epoch_lag': 1,
    }
    atol = case.meta['tolerance']['params_atol']
    # Names of PyTorch have dots; '|' is in none, so the tree stays flat.
    _compare(case, name, _run(case, settings, c['epochs'], '|'), atol, '|')
