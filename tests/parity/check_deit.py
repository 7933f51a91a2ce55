"""Checker for the distilled DeiT."""

from tests.parity.check_vit import compare_attention, run
from tests.parity.harness import kind
from vit_jax.models.deit import DistilledViT


@kind('deit.Distilled', 'timm.Distilled')
def check_distilled(case):
  c = case.config
  model = DistilledViT(
    num_classes=c['num_classes'],
    patch_size=c['patch_size'],
    width=c['embed_dim'],
    depth=c['depth'],
    num_heads=c['num_heads'],
    mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
    return_attention=True,
  )
  _, logits, out = run(case, model)
  stem = out['stem']
  named = {
    'logits': logits,
    'logits_cls': out['logits_class'],
    'logits_dist': out['logits_distill'],
    'pre_logits': out['pre_logits'],
    'norm': out['encoded'],
    'patch_embed': stem.reshape(stem.shape[0], -1, stem.shape[-1]),
  }
  for name in case.outputs:
    if name.startswith('block_'):
      case.compare(name, out[f'block_{int(name[6:]):02d}'])
    elif name in named:
      case.compare(name, named[name])
  compare_attention(case, out)
