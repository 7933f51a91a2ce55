"""Parity with both CeiT codes: coeusguo/ceit, rishikksh20/CeiT-pytorch."""

import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from tests.parity.slices import compare_slices
from vit_jax.models.ceit import CeiT
from vit_jax.weights import from_state_dict


def _build(c, params) -> CeiT:
  """The model that the configuration of either code describes."""
  if 'i2t.proj.weight' in params:  # coeusguo/ceit
    width = c['embed_dim']
    return CeiT(
      num_classes=c['num_classes'],
      width=width,
      depth=c['depth'],
      patch_size=4 * c.get('patch_size', 4),
      num_heads=c['num_heads'],
      mlp_dim=int(width * c.get('mlp_ratio', 4)),
      stem_width=params['i2t.backbone.conv.weight'].shape[0],
      qkv_bias=c.get('qkv_bias', True),
      epsilon=c.get('norm_eps', 1e-6),
      return_attention=True,
    )
  width = c.get('dim', 192)
  return CeiT(
    num_classes=c['num_classes'],
    width=width,
    depth=c.get('depth', 12),
    patch_size=4 * c['patch_size'],
    num_heads=c.get('heads', 3),
    head_width=c.get('dim_head', 64),
    mlp_dim=width * c.get('scale_dim', 4),
    stem_width=c.get('out_channels', 32),
    stem_bias=True,
    stem_padding=4,
    pool_padding=0,
    leff_gelu3=True,
    leff_cls='identity',
    depthwise_bias=False,
    qkv_bias=False,
    epsilon=1e-5,
    pool='gap' if c.get('pool') == 'mean' else 'token',
    lca=c.get('with_lca', False),
    lca_posemb=False,
    lca_heads=c.get('lca_heads', 4),
    lca_head_width=c.get('lca_dim_head', 48),
    lca_mlp_dim=c.get('lca_mlp_dim', 384),
    return_attention=True,
  )


@kind('ceit.CeiT', 'ceit.CeIT')
def check(case):
  images = case.inputs['images']
  model = _build(case.config, case.params)
  variables, _ = from_state_dict(model, case.params, images.shape[1:3])
  logits, out = model.apply(variables, jnp.asarray(images), train=False)

  values = {
    'logits': logits,
    'pre_logits': out['pre_logits'],
    'pre_head': out['pooled'],
    'stem': out['pooled_map'],
    'patch_embed': np.reshape(out['stem'], (len(images), -1, model.width)),
    'transformer': out['encoded'],
  }
  if model.lca:
    values['lca'] = out['lca']
  for i in range(model.depth):
    values[f'attn_out_{i}'] = out[f'block_{i:02d}_attention']
    values[f'block_{i}'] = out[f'block_{i:02d}']
    values[f'leff_out_{i}'] = out[f'block_{i:02d}'][:, 1:]  # patches alone
    values[f'attn_block{i}'] = out['attention'][i]
  compare_slices(case, values)
