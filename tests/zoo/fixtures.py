"""Records tiny towers of timm for the default tests.

  python -m tests.zoo.fixtures

Writes tests/fixtures/towers/NAME.safetensors, random weights in timm's names,
and towers.json with the fields of the model here and timm's logits for `image`.
"""

import functools
import json
import pathlib

import numpy as np
from safetensors.torch import save_file
import timm
from timm import layers
from timm.models import vision_transformer as vit
from timm.models.resnetv2 import ResNetV2
import torch

from tests.zoo.table import transformer

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'towers'
SIZE = dict(img_size=16, patch_size=8, embed_dim=8, num_heads=2, mlp_ratio=2)
GAP = dict(class_token=False, global_pool='avg')
RMS = functools.partial(layers.RmsNorm, eps=1e-5)
VARIANTS = {
  'registers': dict(GAP, reg_tokens=2, no_embed_class=True, init_values=0.1),
  'clip': dict(
    pre_norm=True,
    act_layer='quick_gelu',
    norm_layer=functools.partial(layers.LayerNorm, eps=1e-5),
  ),
  'map_with_registers': dict(
    class_token=False, reg_tokens=1, global_pool='map', pool_include_prefix=True
  ),
  'two_branches': dict(block_fn=vit.ParallelThingsBlock, init_values=0.1),
  'parallel': dict(block_fn=vit.ParallelScalingBlock, init_values=0.1),
  'parallel_without_bias': dict(
    block_fn=vit.ParallelScalingBlock,
    norm_layer=layers.RmsNorm,
    pre_norm=True,
    no_embed_class=True,
    qkv_bias=False,
    qk_norm=True,
  ),
  'differential': dict(GAP, attn_layer='diff', reg_tokens=1),
  'swiglu_packed': dict(
    mlp_layer=layers.SwiGLUPacked, act_layer=torch.nn.SiLU, init_values=0.1
  ),
  'swiglu': dict(
    GAP,
    fc_norm=False,
    mlp_layer=layers.SwiGLU,
    act_layer='silu',
    qkv_bias=False,
    proj_bias=False,
    norm_layer=RMS,
    embed_norm_layer=RMS,
  ),
  'inner_norm': dict(
    scale_attn_norm=True, scale_mlp_norm=True, global_pool='avg'
  ),
  'post_norm': dict(GAP, block_fn=vit.ResPostBlock, qkv_bias=False),
  'without_final_norm': dict(final_norm=False, init_values=0.1),
}


def image() -> np.ndarray:
  """The input of the recorded logits, (1, 16, 16, 3), normalized."""
  return np.sin(np.arange(768, dtype=np.float32) / 7).reshape(1, 16, 16, 3)


RESNETS = {
  'resnetv2_basic': (
    dict(basic=True, bottle_ratio=1.0, channels=(8, 16)),
    dict(unit='basic'),
  ),
  'resnetv2_tiered': (
    dict(channels=(32, 64), stem_type='tiered', avg_down=True),
    dict(unit='bottleneck', stem='tiered', average=True),
  ),
}


def residual_image() -> np.ndarray:
  """The input of RESNETS, (1, 18, 18, 3): its maps have odd sizes."""
  return np.sin(np.arange(972, dtype=np.float32) / 7).reshape(1, 18, 18, 3)


def record(model: torch.nn.Module, name: str, image: np.ndarray) -> list[float]:
  """Writes the weights of a model, and returns its logits for an image."""
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.2 * torch.randn_like(p))
    for path, b in model.named_buffers():
      if b.is_floating_point():
        b.uniform_(0.5, 1.5) if path.endswith('var') else b.normal_(0, 0.2)
    logits = model(torch.from_numpy(image).permute(0, 3, 1, 2))[0].tolist()
  save_file(model.state_dict(), FOLDER / f'{name}.safetensors')
  return logits


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  rows = {}
  for name, (arguments, fields) in RESNETS.items():
    torch.manual_seed(0)
    model = ResNetV2(
      layers=[2, 1],
      stem_chs=8,
      num_classes=3,
      conv_layer=layers.create_conv2d,
      norm_layer=layers.BatchNormAct2d,
      **arguments,
    ).eval()
    fields = {'num_layers': [2, 1], 'width': 8, **fields}
    logits = record(model, name, residual_image())
    rows[name] = {'base': 'ResNetV2', 'fields': fields, 'logits': logits}
  for name, arguments in VARIANTS.items():
    torch.manual_seed(0)
    model = vit.VisionTransformer(
      **SIZE, **arguments, depth=2, num_classes=3
    ).eval()
    logits = record(model, name, image())
    base, fields = transformer(model, 2)
    rows[name] = {'base': base, 'fields': fields, 'logits': logits}
  text = ',\n'.join(
    f'{json.dumps(k)}: {json.dumps(v)}' for k, v in rows.items()
  )
  (FOLDER / 'towers.json').write_text(
    f'{{"timm": "{timm.__version__}", "towers": {{\n{text}\n}}}}\n'
  )


if __name__ == '__main__':
  main()
