"""Parity with zhoudaquan/dvit_repo's DeepViT."""

import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from tests.parity.slices import compare_slices
from vit_jax.models.deepvit import DeepViT
from vit_jax.weights import from_state_dict


@kind('dvit.DeepViT')
def check(case):
  c, images = case.config, case.inputs['images']
  width, plan = c['embed_dim'], c['apply_transform']
  model = DeepViT(
    num_classes=c['num_classes'],
    patch_size=c['patch_size'],
    width=width,
    depth=len(plan),
    num_heads=c['num_heads'],
    mlp_dim=int(width * c.get('mlp_ratio', 3)),
    reattn=tuple(plan),
    reattn_scaled=c.get('transform_scale', False),
    adjustment=c.get('scale_adjustment', 1.0),
    cnn_embed=c.get('use_cnn_embed', False),
    qkv_bias=c.get('qkv_bias', True),
    return_attention=True,
  )
  variables, _ = from_state_dict(model, case.params, images.shape[1:3])
  logits, out = model.apply(variables, jnp.asarray(images), train=False)

  # Recorded between the norm and the scale.
  scale = (width // c['num_heads']) ** -0.5 if model.reattn_scaled else 1.0
  values = {
    'logits': logits,
    'pre_logits': out['pre_logits'],
    'norm': out['encoded'],
    'patch_embed': np.reshape(out['stem'], (len(images), -1, width)),
  }
  for i in range(len(plan)):
    values[f'block_{i}'] = out[f'block_{i:02d}']
    values[f'attn_block{i}'] = out['attention_softmax'][i]
    values[f'attn_block{i}_after_re_attention_norm'] = (
      out['attention'][i] / scale
    )
  compare_slices(case, values)
