"""Parity with sail-sg/volo."""

import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from tests.parity.slices import compare_slices
from vit_jax.models.volo import VOLO
from vit_jax.weights import from_state_dict


@kind('volo.VOLO')
def check(case):
  c, images = case.config, case.inputs['images']
  groups = {
    field: tuple(c[field])
    for field in (
      'layers',
      'embed_dims',
      'num_heads',
      'mlp_ratios',
      'outlook_attention',
      'downsamples',
    )
  }
  model = VOLO(
    num_classes=c['num_classes'],
    patch_size=c.get('patch_size', 8),
    post_layers=tuple(c.get('post_layers') or ()),
    stem_hidden_dim=c.get('stem_hidden_dim', 64),
    qkv_bias=c.get('qkv_bias', False),
    return_dense=c.get('return_dense', True),
    return_mean=c.get('return_mean', False),
    mix_token=c.get('mix_token', True),
    return_attention=True,
    **groups,
  )
  variables, _ = from_state_dict(model, case.params, images.shape[1:3])
  logits, out = model.apply(variables, jnp.asarray(images), train=False)

  values = {
    'logits': logits,
    'pre_logits': out['pre_logits'],
    'norm': out['encoded'],
    'patch_embed': out['stem'],
  }
  if model.return_dense:
    values['logits_cls'] = out['logits_class']
    values['logits_aux'] = out['logits_aux']
  for i in range(len(model.post_layers)):
    values[f'post_{i}'] = out[f'cls_block_{i:02d}']
  if out['attention_outlook']:
    values['attn_block0'] = out['attention_outlook'][0]

  # network_i: what its element i, a group or a downsampling, gives, as a map.
  counts, element = {'outlooker': 0, 'block': 0}, 0
  side = out['stem'].shape[1:3]
  for g, count in enumerate(model.layers):
    name = 'outlooker' if model.outlook_attention[g] else 'block'
    counts[name] += count
    x = out[f'{name}_{counts[name] - 1:02d}']
    values[f'network_{element}'] = np.reshape(x, (len(x), *side, -1))
    element += 1
    if model.downsamples[g]:
      n = sum(model.downsamples[:g])
      x = out[f'downsample_{n}' if n else 'downsample']
      values[f'network_{element}'], side = x, x.shape[1:3]
      element += 1
  compare_slices(case, values)
