"""Parity of training steps: DeiT, CaiT, CeiT, DeepViT, VOLO, area attention."""

import re

import numpy as np

from tests.parity.harness import kind
from tests.parity.training_run import (
  RecipeRun,
  compare_moments,
  compare_steps,
  compare_trees,
  compare_update,
  record,
)
from vit_jax.preprocessing import NORMALIZATION, normalization
from vit_jax.training.mixing import Mixing


def _transformer(m: dict, mlp_ratio: float = 4.0) -> dict:
  """Fields that the ViT-like models of timm share."""
  width = m['embed_dim']
  return {
    'patch_size': m['patch_size'],
    'width': width,
    'num_heads': m['num_heads'],
    'mlp_dim': int(width * m.get('mlp_ratio', mlp_ratio)),
  }


def _teacher(c: dict) -> str:
  """The kind of distillation, '' for none."""
  kind = c.get('distillation_type') or 'none'
  return '' if kind == 'none' else kind


def _deit(case, m, c):
  words = ['deit_i1k:s16']
  if 'sgd' in c['opt'] or 'momentum' in c['opt']:
    words = ['deit_finetune:s16', 'cifar10']
  elif '--bce-loss' in case.meta.get('changed_from_official', ''):
    words.append('bce')
  words.append('distill' if 'dist_token' in case.params else _teacher(c))
  return ','.join(filter(None, words)), {
    **_transformer(m),
    'depth': m['depth'],
  }


def _cait(case, m, c):
  width = m['embed_dim']
  return 'cait_i1k:xxs24' + ',distill' * bool(_teacher(c)), {
    **_transformer(m),
    'depth': m['depth'],
    'cls_depth': m.get('depth_token_only', 2),
    'cls_mlp_dim': int(width * m.get('mlp_ratio_clstk', 4.0)),
  }


def _ceit(case, m, c):
  return 'ceit_i1k:t', {
    **_transformer(m),
    'depth': m['depth'],
    'patch_size': 4 * m.get('patch_size', 4),
    'stem_width': case.params['i2t.backbone.conv.weight'].shape[0],
    'qkv_bias': m.get('qkv_bias', True),
    'bn_groups': 1,
  }


def _deepvit(case, m, c):
  plan = m['apply_transform']
  fields = {
    'depth': len(plan),
    'reattn': tuple(plan),
    'reattn_scaled': m.get('transform_scale', False),
    'adjustment': m.get('scale_adjustment', 1.0),
    'cnn_embed': m.get('use_cnn_embed', False),
    'qkv_bias': m.get('qkv_bias', True),
    'bn_groups': 1,
  }
  return 'deepvit_i1k:s', {**_transformer(m, mlp_ratio=3.0), **fields}


def _volo(case, m, c):
  groups = (
    'layers',
    'embed_dims',
    'num_heads',
    'mlp_ratios',
    'outlook_attention',
    'downsamples',
  )
  ground_truth = '--ground-truth' in case.meta.get('changed_from_official', '')
  return 'volo_i1k:d1' + ',ft384' * ground_truth, {
    **{field: tuple(m[field]) for field in groups},
    'post_layers': tuple(m.get('post_layers') or ()),
    'patch_size': m.get('patch_size', 8),
    'stem_hidden_dim': m.get('stem_hidden_dim', 64),
    'qkv_bias': m.get('qkv_bias', False),
    'return_dense': m.get('return_dense', True),
    'return_mean': m.get('return_mean', False),
    'mix_token': m.get('mix_token', True),
    'bn_groups': 1,
  }


def _area(case, m, c):
  if not m.get('aa_sizes'):  # the plain rows are timm's DeiT
    return 'aa_vit_cifar10:s16', {**_transformer(m), 'depth': m['depth']}
  return 'aa_vit_cifar10:s16,2', {
    'patch_size': m['patch_size'],
    'width': m['dim'],
    'depth': m['depth'],
    'num_heads': m['heads'],
    'mlp_dim': m['mlp_dim'],
    'area_sizes': tuple(map(tuple, m['aa_sizes'])),
  }


# Part of meta.official: the family.
FAMILIES = {
  'ViT-AA': _area,
  'cait_models.py': _cait,
  'ceit': _ceit,
  'dvit_repo': _deepvit,
  'volo': _volo,
  'deit': _deit,
}
OPTIMIZERS = {
  'adamw': {'optim.name': 'adamw', 'optim.decay_style': 'lr'},
  'adam': {'optim.name': 'adam', 'optim.decay_style': 'coupled'},
  'sgd': {
    'optim.name': 'sgd',
    'optim.decay_style': 'coupled',
    'optim.nesterov': True,
  },
  'momentum': {
    'optim.name': 'sgd',
    'optim.decay_style': 'coupled',
    'optim.nesterov': False,
  },
}


OPTIMIZERS['nesterov'] = OPTIMIZERS['sgd']


def schedule_settings(c: dict, steps_per_epoch: int) -> dict:
  """timm's arguments of the schedule as keys of a recipe."""
  settings = {
    'schedule.by_epoch': True,
    'schedule.warmup_epochs': float(c['warmup_epochs']),
    'schedule.warmup_init': c['warmup_lr'],
  }
  if c['sched'] == 'cosine':
    return {
      **settings,
      'schedule.name': 'timm_cosine',
      'schedule.end': c['min_lr'],
    }
  if c['sched'] == 'step':
    drops = np.arange(c['decay_epochs'], c['epochs'], c['decay_epochs'])
    return {
      **settings,
      'schedule.name': 'step',
      'schedule.boundaries': tuple(int(n * steps_per_epoch) for n in drops),
      'schedule.factor': c['decay_rate'],
    }
  raise ValueError(f'sched={c["sched"]!r} is not known')


def optimizer_settings(c: dict) -> dict:
  """timm's arguments of the optimizer as keys of a recipe."""
  if c['opt'] not in OPTIMIZERS:
    raise ValueError(f'opt={c["opt"]!r} is not known')
  b1, b2 = c.get('opt_betas') or (0.9, 0.999)
  return {
    **OPTIMIZERS[c['opt']],
    'optim.lr': c['lr'],
    'optim.lr_batch': None,
    'optim.weight_decay': c['weight_decay'],
    'optim.eps': c.get('opt_eps') or 1e-8,
    'optim.b1': b1,
    'optim.b2': b2,
    'optim.momentum': c['momentum'],
    'optim.clip': c.get('clip_grad') or 0.0,
  }


def _settings(case, c: dict, config) -> dict:
  """What the record says, as keys of the recipe."""
  cools = bool(config.schedule.cooldown_epochs)
  distill = c.get('distillation_type') or 'none'
  settings = {
    **optimizer_settings(c),
    'optim.ema': case.meta.get('ema_decay') or 0.0,
    'run.epochs': float(c['epochs'] + cools * c['cooldown_epochs']),
    **schedule_settings(c, case.meta['steps_per_epoch']),
    'loss.label_smoothing': c['smoothing'],
    'loss.distill': distill,
    'data.mixup': c['mixup'],
    'data.cutmix': c['cutmix'],
    'data.normalize': _normalization(case.meta['input']),
  }
  if cools:
    settings['schedule.cooldown_epochs'] = float(c['cooldown_epochs'])
  if distill != 'none':
    settings['loss.distill_alpha'] = c['distillation_alpha']
    settings['loss.distill_tau'] = c['distillation_tau']
  if c.get('dense_weight') is not None:
    settings['loss.token_weight'] = c['dense_weight']
  return settings


def _normalization(text: str) -> str:
  """The value of data.normalize for 'mean [...] std [...]' in a text."""
  mean, std = (
    [float(x) for x in re.search(rf'{word} \[([^\]]*)\]', text)[1].split(',')]
    for word in ('mean', 'std')
  )
  own = f'mean_std({",".join(map(str, (*mean, *std)))})'
  for name in NORMALIZATION:  # what recipes call it
    if np.allclose(normalization(name), normalization(own)):
      return name
  return own


def _batches(case, c: dict):
  """(batch, draws) of every step."""
  inputs = case.inputs
  for i, images in enumerate(inputs['images']):
    batch, draws = {'image': images}, {}
    if 'labels' in inputs:
      batch['label'] = inputs['labels'][i]
    if 'dense_targets' in inputs:
      # The recorded targets are smoothed, and the loss smooths them itself.
      dense, e = inputs['dense_targets'][i].astype(np.float32), c['smoothing']
      dense = (dense - e / dense.shape[1]) / (1 - e)
      batch['label'] = dense[:, :, 0]
      batch['token_cls'] = dense[:, :, 1]
      batch['token_labels'] = dense[:, :, 2:].swapaxes(1, 2)
    if 'teacher_logits' in inputs:
      batch['teacher'] = inputs['teacher_logits'][i]
    if 'mix_lam' in inputs:
      size = len(images)
      # One number for the batch, or one for each of its images.
      cut = np.broadcast_to(inputs['mix_kind'][i] == 1, size)
      box = np.broadcast_to(inputs['mix_box'][i], (size, 4))
      draws['mixing'] = Mixing(
        np.broadcast_to(inputs['mix_lam'][i], size).astype(np.float32),
        np.where(cut[:, None], box, 0),
        cut,
      )
    if 'mixtoken_box' in inputs:
      draws['box'] = inputs['mixtoken_box'][i]
    yield batch, draws


@kind('train_')
def check_timm_training(case):
  c, m = case.config, case.meta['model']
  official = case.meta['official']
  family = next(f for name, f in FAMILIES.items() if name in official)
  recipe, fields = family(case, m, c)
  from tests.parity.training_run import load

  side = m.get('img_size', m.get('image_size'))
  num_classes = m['num_classes']
  run = RecipeRun(
    case,
    recipe,
    {
      **_settings(case, c, load(recipe)),
      **{f'model.{name}': value for name, value in fields.items()},
      'model.drop_path': 0.0,
      'data.batch_size': case.inputs['images'].shape[1],
    },
    num_classes=num_classes,
    image_size=(side, side),
    steps_per_epoch=case.meta['steps_per_epoch'],
    teacher='teacher_logits' in case.inputs,
  )
  case.changed = run.changed
  history = []
  for i, (batch, draws) in enumerate(_batches(case, c)):
    if 'targets' in case.outputs:
      difference = run.targets(batch, draws) - case.outputs['targets'][i]
      record(
        case,
        ['targets'],
        np.max(np.abs(difference)),
        case.meta['tolerance']['targets_atol'],
        'targets',
      )
    history.append(run.step(batch, draws))
  compare_steps(case, history)
  compare_update(case, run.released(run.state.params))
  for official, name in (
    ('exp_avg', 'mu'),
    ('exp_avg_sq', 'nu'),
    ('momentum_buffer', 'trace'),
  ):
    if any(key.startswith(f'opt/{official}/') for key in case.outputs):
      compare_moments(case, f'opt/{official}/', run.released(run.moment(name)))
  if run.config.optim.ema:
    compare_trees(
      case,
      'ema/',
      run.released(run.state.ema, run.state.ema_stats),
      case.meta['tolerance']['ema_atol'],
    )
