"""Checkers for MLP-Mixer of vision_transformer, big_vision and timm."""

from tests.parity.check_vit import run
from tests.parity.harness import kind
from vit_jax.models.mixer import Mixer


def compare(case, model):
  """Compares logits and every intermediate under any of its names."""
  _, logits, out = run(case, model)
  case.compare('logits', logits)
  for name in case.outputs:
    if name.startswith(('MixerBlock_', 'block_')):
      case.compare(name, out[f'block_{int(name.rsplit("_", 1)[1]):02d}'])
    elif name in ('stem', 'pre_logits'):
      case.compare(name, out[name])
    elif name in ('pre_head_layer_norm', 'norm'):
      case.compare(name, out['encoded'])


@kind('vit_jax.Mixer', 'big_vision.Mixer')
def check_google(case):
  c = case.config
  compare(
    case,
    Mixer(
      num_classes=c['num_classes'],
      patch_size=tuple(c['patch_size']),
      width=c['hidden_dim'],
      depth=c['num_blocks'],
      tokens_mlp_dim=c['tokens_mlp_dim'],
      mlp_dim=c['channels_mlp_dim'],
    ),
  )


@kind('timm.Mixer')
def check_timm(case):
  c = case.config
  tokens, channels = (int(r * c['embed_dim']) for r in c['mlp_ratio'])
  compare(
    case,
    Mixer(
      num_classes=c['num_classes'],
      patch_size=c['patch_size'],
      width=c['embed_dim'],
      depth=c['num_blocks'],
      tokens_mlp_dim=tokens,
      mlp_dim=channels,
      activation='gelu_erf',
    ),
  )
