"""Checkers for ViTs of vision_transformer, big_vision and timm."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from vit_jax.models.position import sincos2d
from vit_jax.models.vit import ViT
from vit_jax.weights import from_state_dict


def run(case, model):
  """Loads the file's parameters and applies the model to the file's images."""
  images = jnp.asarray(case.inputs['images'])
  variables, _ = from_state_dict(model, case.params, images.shape[1:3])
  apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
  logits, out = apply(variables, images)
  return variables, logits, out


def compare_attention(case, out, key='attn_block0'):
  """attn_block0, or attn_block0.image0 where only one image was kept."""
  for name in case.outputs:
    if name == key:
      case.compare(name, out['attention'][0])
    elif name == f'{key}.image0':
      case.compare(name, out['attention'][0][0])


def compare_feature_maps(case, out):
  """Feature maps recorded as spatial means and top-left corners."""
  for name in case.outputs:
    stem, _, kept = name.partition('.')
    if stem not in out:
      continue
    if kept == 'spatial_mean':
      case.compare(name, out[stem].mean(axis=(1, 2)))
    elif kept == 'corner3x3':
      case.compare(name, out[stem][0, :3, :3])


def vit_jax_model(c) -> ViT:
  """The model of a vision_transformer configuration."""
  resnet, transformer = c.get('resnet'), c['transformer']
  pools = {'unpooled': ('none', False), 'token_unpooled': ('none', True)}
  pool, cls = pools.get(c['classifier'], (c['classifier'], None))
  return ViT(
    num_classes=c['num_classes'],
    patch_size=tuple(c['patch_size']),
    width=c['hidden_size'],
    depth=transformer['num_layers'],
    num_heads=transformer['num_heads'],
    mlp_dim=transformer['mlp_dim'],
    pool=pool,
    class_token=cls,
    representation_size=c['representation_size'],
    stem=None if resnet is None else tuple(resnet['num_layers']),
    stem_width=1.0 if resnet is None else resnet['width_factor'],
    return_attention=True,
  )


@kind('vit_jax.ViT')
def check_vit_jax(case):
  _, logits, out = run(case, vit_jax_model(case.config))
  case.compare('logits', logits)
  case.compare('pre_logits', out['pre_logits'])
  for name in case.outputs:
    if name.startswith('encoderblock_'):
      case.compare(name, out[f'block_{int(name.rsplit("_", 1)[1]):02d}'])
  for name, key in (
    ('embedding', 'stem'),
    ('posembed_input', 'with_posemb'),
    ('encoder_norm', 'encoded'),
  ):
    if name in case.outputs:
      case.compare(name, out[key])
  compare_feature_maps(case, out)
  compare_attention(case, out)


@kind('big_vision.ViT')
def check_big_vision(case):
  c = case.config
  pool = {'tok': 'token', '0': 'none'}.get(c['pool_type'], c['pool_type'])
  rep = c['rep_size']
  model = ViT(
    num_classes=c['num_classes'],
    patch_size=tuple(c['patch_size']),
    width=c['width'],
    depth=c['depth'],
    num_heads=c['num_heads'],
    mlp_dim=c['mlp_dim'] or 4 * c['width'],
    pool=pool,
    representation_size=c['width'] if rep is True else (rep or None),
    posemb={'learn': 'learn1d'}.get(c['posemb'], c['posemb']),
    init_style='big_vision',
    scan=c['scan'],
    return_attention=True,
  )
  variables, logits, out = run(case, model)
  first_patch = c['pool_type'] == '0'  # big_vision's "first token" pooling
  prefix = int(pool == 'token')
  height, width = out['stem'].shape[1:3]
  dense = lambda name, x: (
    x @ variables['params'][name]['kernel'] + variables['params'][name]['bias']
  )
  to_2d = lambda x: x.reshape(x.shape[0], height, width, x.shape[-1])
  case.compare('logits', logits[:, 0] if first_patch else logits)
  for name, want in case.outputs.items():
    if name in ('pre_logits', 'head_input'):
      case.compare(name, out[name][:, 0] if first_patch else out[name])
    elif name == 'with_posemb':
      # big_vision prepends the class token after adding its table.
      value = out['with_posemb']
      case.compare(name, value[:, value.shape[1] - want.shape[1] :])
    elif name.startswith('block'):
      case.compare(name, out[f'block_{int(name[5:]):02d}'])
    elif name == 'encoded':
      value = out['encoded']
      case.compare(name, value[:, value.shape[1] - want.shape[1] :])
    elif name == 'stem':
      case.compare(name, out['stem'])
    elif name in ('pre_logits_2d', 'logits_2d'):
      value = to_2d(out['encoded'][:, prefix:])
      if 'pre_logits' in variables['params']:
        value = jnp.tanh(dense('pre_logits', value))
      if name == 'logits_2d':  # of the head on every token: up to 100 times
        value = dense('head', value)  # the logits, so compared as a map
      case.compare(name, value, 1e-4 * float(np.max(np.abs(want))))
    elif name == 'posemb_sincos2d':
      case.compare(name, sincos2d(height, width, c['width']))
  compare_attention(case, out)


@kind('timm.ViT')
def check_timm(case):
  c = case.config
  avg = c.get('global_pool') == 'avg'
  model = ViT(
    num_classes=c['num_classes'],
    patch_size=c['patch_size'],
    width=c['embed_dim'],
    depth=c['depth'],
    num_heads=c['num_heads'],
    mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
    pool='gap' if avg else 'token',
    class_token=c.get('class_token', True),
    norm_after_pool=avg,
    activation='gelu_erf',
    init_style='timm',
    return_attention=True,
  )
  _, logits, out = run(case, model)
  case.compare('logits', logits)
  case.compare('pre_logits', out['pre_logits'])
  for name in case.outputs:
    if name.startswith('block_'):
      case.compare(name, out[f'block_{int(name[6:]):02d}'])
  if 'patch_embed' in case.outputs:
    stem = np.asarray(out['stem'])
    case.compare('patch_embed', stem.reshape(stem.shape[0], -1, stem.shape[-1]))
  if 'norm' in case.outputs:
    case.compare('norm', out['encoded'])
  compare_attention(case, out)
