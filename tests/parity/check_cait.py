"""Parity with facebookresearch/deit's CaiT."""

import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from tests.parity.slices import compare_slices
from vit_jax.models.cait import CaiT
from vit_jax.weights import from_state_dict


@kind('deit.CaiT')
def check(case):
  c, images = case.config, case.inputs['images']
  width = c['embed_dim']
  model = CaiT(
    num_classes=c['num_classes'],
    patch_size=c['patch_size'],
    width=width,
    depth=c['depth'],
    cls_depth=c.get('depth_token_only', 2),
    num_heads=c['num_heads'],
    mlp_dim=int(width * c.get('mlp_ratio', 4)),
    cls_mlp_dim=int(width * c.get('mlp_ratio_clstk', 4)),
    return_attention=True,
  )
  variables, _ = from_state_dict(model, case.params, images.shape[1:3])
  logits, out = model.apply(variables, jnp.asarray(images), train=False)

  values = {
    'logits': logits,
    'pre_logits': out['pre_logits'],
    'norm': out['encoded'],
    'patch_embed': np.reshape(out['stem'], (len(images), -1, width)),
  }
  for i in range(c['depth']):
    values[f'block_{i}'] = out[f'block_{i:02d}']
    values[f'attn_block{i}'] = out['attention_softmax'][i]
    values[f'attn_block{i}_after_proj_w'] = out['attention'][i]
  for i, probs in enumerate(out['attention_cls']):
    values[f'cls_block_{i}'] = out[f'cls_block_{i:02d}']
    values[f'attn_cls_block{i}'] = probs
  compare_slices(case, values)
