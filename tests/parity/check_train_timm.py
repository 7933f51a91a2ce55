"""Parity of training steps: DeiT, CaiT, CeiT, DeepViT, VOLO, area attention."""

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
from vit_jax.training.mixing import Mixing


def _transformer(m: dict) -> dict:
  """Fields that the ViT-like models of timm share."""
  width = m['embed_dim']
  return {
    'patch_size': m['patch_size'],
    'width': width,
    'num_heads': m['num_heads'],
    'mlp_dim': int(width * m.get('mlp_ratio', 4.0)),
  }


def _deit(case, m, c):
  distilled = 'dist_token' in case.params
  recipe = 'deit_i1k:s16'
  if c['opt'] != 'adamw':
    recipe = 'deit_finetune:s16,cifar10'
  elif '--bce-loss' in case.meta.get('changed_from_official', ''):
    recipe = 'deit_i1k:s16,bce'
  if distilled:
    recipe += ',distill'
  return recipe, {**_transformer(m), 'depth': m['depth']}


def _cait(case, m, c):
  width = m['embed_dim']
  return 'cait_i1k:xxs24', {
    **_transformer(m),
    'depth': m['depth'],
    'cls_depth': m.get('depth_token_only', 2),
    'cls_mlp_dim': int(width * m.get('mlp_ratio_clstk', 4.0)),
  }


def _ceit(case, m, c):
  return 'ceit_i1k:t', {
    **_transformer(m),
    'depth': m['depth'],
    'patch_size': 4 * m['patch_size'],
    'stem_width': m['stem_channels'],
    'qkv_bias': m['qkv_bias'],
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
  return 'deepvit_i1k:s', {**_transformer(m), **fields}


def _volo(case, m, c):
  groups = (
    'layers',
    'embed_dims',
    'num_heads',
    'mlp_ratios',
    'outlook_attention',
    'downsamples',
    'post_layers',
  )
  ground_truth = '--ground-truth' in case.meta.get('changed_from_official', '')
  return 'volo_i1k:d1' + ',ft384' * ground_truth, {
    **{field: tuple(m[field]) for field in groups},
    'patch_size': m['patch_size'],
    'stem_hidden_dim': m['stem_hidden_dim'],
    'qkv_bias': m['qkv_bias'],
    'return_dense': m['return_dense'],
    'mix_token': m['mix_token'],
    'bn_groups': 1,
  }


def _area(case, m, c):
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


def optimizer_settings(c: dict) -> dict:
  """timm's arguments of the optimizer as keys of a recipe."""
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
    'schedule.warmup_epochs': float(c['warmup_epochs']),
    'schedule.warmup_init': c['warmup_lr'],
    'schedule.end': c['min_lr'],
    'loss.label_smoothing': c['smoothing'],
    'loss.distill': distill,
    'data.mixup': c['mixup'],
    'data.cutmix': c['cutmix'],
    'data.normalize': (
      'half' if 'mean [0.5,' in case.meta['input'] else 'imagenet'
    ),
  }
  if cools:
    settings['schedule.cooldown_epochs'] = float(c['cooldown_epochs'])
  if distill != 'none':
    settings['loss.distill_alpha'] = c['distillation_alpha']
    settings['loss.distill_tau'] = c['distillation_tau']
  if c.get('dense_weight') is not None:
    settings['loss.token_weight'] = c['dense_weight']
  return settings


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
      cut = inputs['mix_kind'][i] == 1
      box = inputs['mix_box'][i] if cut else np.zeros(4, np.int32)
      draws['mixing'] = Mixing(
        np.full(size, inputs['mix_lam'][i], np.float32),
        np.tile(box, (size, 1)),
        np.full(size, cut),
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
