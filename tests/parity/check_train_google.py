"""Parity of training steps: big_vision, vision_transformer, big_transfer."""

from collections.abc import Iterable
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from tests.parity.training_run import (
  RecipeRun,
  compare_moments,
  compare_steps,
  compare_update,
)
from vit_jax.training.mixing import Mixing

# File of big_vision's configs: the recipe.
BIG_VISION = {
  'vit_i1k': 'augreg_i1k:b16',
  'vit_i21k': 'augreg_i21k:b16,big_vision',
  'vit_s16_i1k': 'vit_s16_i1k:s16',
  'mlp_mixer_i1k': 'mixer_i1k:b16',
  'bit_i1k': 'bit_i1k:r50x1,big_vision',
  'bit_i21k': 'bit_i21k:r50x1,big_vision',
  'train_vit_g': 'vit_jft:G14',
  'transfer': 'finetune:b16,cifar10',
}
LOSSES = {'softmax_xent': 'softmax', 'sigmoid_xent': 'sigmoid'}


def parameter_groups(c: dict, names: Iterable[str]) -> dict:
  """Factors of rates and decay, and frozen parameters, as keys of a recipe.

  In each of big_vision's lists the first pattern that matches counts.

  Args:
    c: its config: wd_mults, lr_mults, and patterns in its schedule.
    names: of the parameters.
  """
  decays = c.get('wd_mults') or [['.*/kernel$', 1.0]]
  rates = list(c.get('lr_mults') or [])
  if isinstance(c.get('schedule'), list):
    frozen = [[pattern, 0.0] for pattern, s in c['schedule'] if s is None]
    rates = frozen + rates
  first = lambda pairs, name: next(
    (i for i, (pattern, _) in enumerate(pairs) if re.fullmatch(pattern, name)),
    None,
  )
  groups = {}
  for name in names:
    decay, rate = first(decays, name), first(rates, name)
    factors = {}
    if decay is not None and decays[decay][1] != 1:
      factors['decay'] = decays[decay][1]
    if rate is not None and rates[rate][1] != 1:
      factors['lr'] = rates[rate][1]
    if factors:
      groups.setdefault(tuple(factors.items()), []).append(re.escape(name))
  return {
    'optim.decay_mask': '|'.join(f'(?:{pattern})' for pattern, _ in decays),
    'optim.groups': tuple(
      ('|'.join(paths), dict(factors)) for factors, paths in groups.items()
    ),
  }


def _take(options: dict, renames: dict[str, tuple[str, Any]]) -> dict:
  """Keys of a recipe from options, which have defaults: {option: (key, d)}."""
  return {
    key: options.pop(option, default)
    for option, (key, default) in renames.items()
  }


def optimizer_settings(c: dict, names: Iterable[str]) -> dict:
  """big_vision's optimizer arguments as keys of a recipe.

  Args:
    c: its config.
    names: of the parameters.
  """
  more = dict(c.get('optax') or {})
  settings = {
    'optim.lr': c['lr'],
    'optim.lr_batch': None,
    'optim.clip': c['grad_clip_norm'] or 0.0,
    'optim.decay_style': 'schedule',
    'optim.weight_decay': c.get('wd') or 0.0,
    **parameter_groups(c, names),
  }
  name = c['optax_name'].removeprefix('big_vision.')
  if name == 'scale_by_adam':
    settings['optim.name'] = 'adam'
    settings |= _take(
      more,
      {
        'b1': ('optim.b1', 0.9),
        'b2': ('optim.b2', 0.999),
        'eps': ('optim.eps', 1e-8),
        'mu_dtype': ('optim.state_dtype', 'float32'),
        'nesterov': ('optim.nesterov', False),
      },
    )
  elif name in ('momentum_hp', 'trace', 'sgd'):
    settings['optim.name'] = 'sgd'
    settings |= _take(
      more,
      {
        'decay' if name == 'trace' else 'momentum': (
          'optim.momentum',
          0.0 if name == 'sgd' else 0.9,
        ),
        'nesterov': ('optim.nesterov', False),
        'accumulator_dtype' if name == 'trace' else 'dtype': (
          'optim.state_dtype',
          'bfloat16' if name == 'momentum_hp' else 'float32',
        ),
      },
    )
  elif name == 'scale_by_adafactor':
    settings['optim.name'] = 'adafactor'
    settings |= _take(
      more,
      {
        'momentum': ('optim.b1', 0.9),
        'beta2_cap': ('optim.b2', 0.999),
        'dtype_momentum': ('optim.state_dtype', 'bfloat16'),
        'min_dim_size_to_factor': ('optim.adafactor.min_factored', 32),
        'decay_rate': ('optim.adafactor.decay_exponent', 0.8),
        'decay_offset': ('optim.adafactor.decay_offset', 0),
        'clipping_threshold': ('optim.adafactor.update_clip', 0.0),
        'eps': ('optim.adafactor.eps', 1e-30),
      },
    )
    for key in ('optim.b1', 'optim.adafactor.update_clip'):
      settings[key] = settings[key] or 0.0  # None for neither
  else:
    raise ValueError(f'optax_name={name!r} is not known')
  if more:
    raise ValueError(f'unknown arguments of {name}: {more}')
  return settings


def schedule_settings(
  schedule: dict | list, lr: float, batch_size: int = 1
) -> dict:
  """big_vision's schedule as keys of a recipe; its end is a factor of lr.

  Args:
    schedule: its arguments, or [[pattern, arguments or None], ...] with the
      same arguments for all parameters that are not frozen.
    lr: the peak.
    batch_size: of lengths in examples.
  """
  if isinstance(schedule, list):
    given = [s for _, s in schedule if s is not None]
    if any(s != given[0] for s in given):
      raise ValueError('several schedules in one run are not supported')
    schedule = given[0]
  left = dict(schedule)
  for name in ('warmup', 'cooldown', 'timescale', 'shift'):
    if f'{name}_examples' in left:
      steps = left.pop(f'{name}_examples') / batch_size
      left[f'{name}_steps' if name in ('warmup', 'cooldown') else name] = round(
        steps
      )
  name = left.pop('decay_type')
  settings = {
    'schedule.name': 'step' if name == 'stair' else name,
    'schedule.warmup_steps': left.pop('warmup_steps', 0),
    'schedule.warmup_epochs': None,
    'schedule.warmup_examples': None,
    'schedule.cooldown_steps': left.pop('cooldown_steps', 0),
    'schedule.cooldown_epochs': None,
  }
  if name in ('linear', 'polynomial'):
    end = left.pop('end', left.pop('linear_end', 0.0))
    settings['schedule.end'] = float(end * lr)
    settings['schedule.power'] = float(left.pop('power', 1.0))
    if settings['schedule.power'] != 1:
      settings['schedule.name'] = 'polynomial'
  elif name == 'rsqrt':
    settings['schedule.timescale'] = left.pop('timescale', 10_000)
    settings['schedule.shift'] = left.pop('shift', 0)
  elif name == 'stair':
    settings['schedule.boundaries'] = tuple(left.pop('steps', ()))
    settings['schedule.factors'] = tuple(left.pop('mults', ()))
  if left:
    raise ValueError(f'unknown arguments of schedule {name}: {left}')
  return settings


def _model_fields(c: dict) -> dict:
  """big_vision's model arguments as fields of ours."""
  m = c['model']
  if c['model_name'].startswith('bit'):
    return {'num_layers': tuple(m['depth']), 'width_factor': m['width']}
  if c['model_name'] == 'mlp_mixer':
    return {
      'patch_size': tuple(m['patch_size']),
      'width': m['hidden_dim'],
      'depth': m['num_blocks'],
      'tokens_mlp_dim': m['tokens_mlp_dim'],
      'mlp_dim': m['channels_mlp_dim'],
      'drop_path': 0.0,
    }
  rep = m.get('rep_size', False)
  # big_vision adds its position table to the patches alone.
  own = {'class_posemb': False} if m['pool_type'] == 'tok' else {}
  return {
    **own,
    'patch_size': tuple(m['patch_size']),
    'width': m['width'],
    'depth': m['depth'],
    'num_heads': m['num_heads'],
    'mlp_dim': m.get('mlp_dim') or 4 * m['width'],
    'pool': {'tok': 'token'}.get(m['pool_type'], m['pool_type']),
    'posemb': {'learn': 'learn1d'}.get(
      m.get('posemb', 'learn'), m.get('posemb')
    ),
    'representation_size': m['width'] if rep is True else (rep or None),
    'scan': m.get('scan', False),
  }


def _history(case, run, batches) -> list[dict]:
  return [run.step(batch, draws) for batch, draws in batches]


def _google_mixing(lam, batch: int) -> Mixing:
  return Mixing(
    np.full(batch, lam, np.float32),
    np.zeros((batch, 4), np.int32),
    np.zeros(batch, bool),
  )


def _compare_google(case, run, history) -> None:
  compare_steps(case, history)
  compare_update(case, run.released(run.state.params))
  for name in ('mu', 'nu', 'trace', 'ema', 'v', 'v_row', 'v_col'):
    if any(key.startswith(f'opt/{name}/') for key in case.outputs):
      moment = jax.tree.map(lambda x: x.astype(jnp.float32), run.moment(name))
      compare_moments(case, f'opt/{name}/', run.released(moment))


@kind('train_bv_')
def check_big_vision_training(case):
  c = case.config
  name = re.search(r'(\w+)\.py$', case.meta['official'])[1]
  images = case.inputs['images']
  run = RecipeRun(
    case,
    BIG_VISION[name],
    {
      **optimizer_settings(c, [k.removeprefix('params/') for k in case.params]),
      **schedule_settings(c['schedule'], c['lr'], images.shape[1]),
      **{f'model.{k}': v for k, v in _model_fields(c).items()},
      'run.steps': c['total_steps'],
      'loss.name': LOSSES[c['loss']],
      'data.mixup': (c['mixup'] or {}).get('p', 0.0),
      'data.batch_size': images.shape[1],
      'optim.accumulate': 1,
    },
    num_classes=c['num_classes'],
    image_size=tuple(images.shape[2:4]),
    steps_per_epoch=1,
  )
  case.changed = run.changed
  batches = []
  for i, image in enumerate(images):
    draws = {}
    if 'mixup_a' in case.inputs:
      lam = case.inputs['mixup_a'][i]
      draws['mixing'] = _google_mixing(lam, len(image))
    batch = {'image': image, 'label': case.inputs['labels'][i]}
    batches.append((batch, draws))
  _compare_google(case, run, _history(case, run, batches))


def _interleave(x: np.ndarray) -> np.ndarray:
  """(slices, n, ...) -> (n * slices, ...): slice i at i, i + slices, ..."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _is_mixer(m: dict) -> bool:
  return 'tokens_mlp_dim' in m


def _vit_jax_fields(c: dict) -> dict:
  """vision_transformer's model arguments as fields of ours."""
  m = c['model']
  fields = {'patch_size': tuple(c['patch'])}
  if _is_mixer(m):
    return {
      **fields,
      'width': m['hidden_dim'],
      'depth': m['num_blocks'],
      'tokens_mlp_dim': m['tokens_mlp_dim'],
      'mlp_dim': m['channels_mlp_dim'],
    }
  transformer, resnet = m['transformer'], m.get('resnet')
  for rate in ('dropout_rate', 'attention_dropout_rate'):
    if transformer.get(rate):
      raise ValueError('dropout draws cannot be replaced by recorded ones')
  if resnet is not None:
    fields['stem'] = tuple(resnet['num_layers'])
    fields['stem_width'] = resnet['width_factor']
  return {
    **fields,
    'width': m['hidden_size'],
    'depth': transformer['num_layers'],
    'num_heads': transformer['num_heads'],
    'mlp_dim': transformer['mlp_dim'],
    'pool': m['classifier'],
    'representation_size': m['representation_size'],
  }


@kind('train_vit_jax')
def check_vit_jax_training(case):
  c = case.config
  slices = c['accum_steps']
  shape = case.inputs['images'].shape
  run = RecipeRun(
    case,
    f'finetune:{"mixer_b16" if _is_mixer(c["model"]) else "b16"},cifar10',
    {
      **{f'model.{k}': v for k, v in _vit_jax_fields(c).items()},
      'optim.lr': c['base_lr'],
      'optim.momentum': c['momentum'],
      'optim.state_dtype': c['accumulator_dtype'],
      'optim.clip': c['grad_norm_clip'] or 0.0,
      'optim.accumulate': slices,
      'schedule.name': c['decay_type'],
      'schedule.warmup_steps': c['warmup_steps'],
      # vision_transformer's linear_end is a rate, not a factor.
      'schedule.end': c.get('linear_end', 1e-5)
      if c['decay_type'] == 'linear'
      else 0.0,
      'run.steps': c['total_steps'],
      'data.batch_size': shape[1],
    },
    num_classes=c['num_classes'],
    image_size=tuple(shape[2:4]),
    steps_per_epoch=1,
  )
  case.changed = run.changed
  batches = []
  for image, label in zip(
    case.inputs['images'], case.inputs['labels'], strict=True
  ):
    split = lambda x: _interleave(x.reshape(slices, -1, *x.shape[1:]))
    batches.append(({'image': split(image), 'label': split(label)}, {}))
  _compare_google(case, run, _history(case, run, batches))


@kind('train_bit_')
def check_big_transfer_training(case):
  c, inputs = case.config, case.inputs
  slices, size = c['split'], c['b']
  height, width = inputs['images'].shape[2:4]
  alpha = (c.get('mixup_alpha_asked') or [0.0])[0]
  # The rule takes the length of a run from the number of images, and mixup from
  # that; a recorded run may be a part of it.
  run = RecipeRun(
    case,
    f'bit_hyperrule:r50x1,folder,{c["dataset_size"]}x{height}',
    {
      'model.num_layers': tuple(c['blocks']),
      'model.width_factor': c['wf'],
      'optim.lr': c['base_lr'],
      'optim.accumulate': slices,
      'data.mixup': alpha if 'mixup_lam' in inputs else 0.0,
      'data.batch_size': slices * size,
      'data.resize': None,
      'data.crop': 'none',
    },
    num_classes=c['nc'],
    image_size=(height, width),
    steps_per_epoch=1,
  )
  case.changed = [x for x in run.changed if not x.startswith('data.')]
  run.start_at(c['step0'])
  batches = []
  for i in range(c['steps']):
    rows = slice(i * slices, (i + 1) * slices)
    batch = {
      'image': _interleave(inputs['images'][rows]),
      'label': _interleave(inputs['labels'][rows]),
    }
    draws = {}
    if 'mixup_lam' in inputs:
      # Index within a slice -> index in the batch of interleaved slices.
      partner = inputs['mixup_perm'][rows] * slices
      partner = partner + np.arange(slices)[:, None]
      draws['mixing'] = _google_mixing(
        inputs['mixup_lam'][i], slices * size
      )._replace(partner=_interleave(partner))
    batches.append((batch, draws))
  history = _history(case, run, batches)
  compare_steps(case, history, loss_groups=slices)
  compare_update(case, run.released(run.state.params))
  if any(key.startswith('opt/momentum_buffer/') for key in case.outputs):
    compare_moments(
      case, 'opt/momentum_buffer/', run.released(run.moment('trace'))
    )
