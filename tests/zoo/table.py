"""Writes `vit_jax/models/timm_models.json` from the installed timm.

  python -m tests.zoo.table

The table has the fields of every architecture of MODULES that this package
builds, and how timm feeds every tag. It is written again for a new version of
timm; `python -m tests.zoo` then measures it.
"""

import json
import pathlib

import timm
from timm.models import vision_transformer as vit
import torch

from vit_jax.models.resnet import SIZES as RESNETS
from vit_jax.models.vit import SIZES

MODULES = (
  'vision_transformer',
  'vision_transformer_hybrid',
  'deit',
  'cait',
  'volo',
  'mlp_mixer',
  'resnetv2',
)
TARGET = (
  pathlib.Path(__file__).parents[2] / 'vit_jax' / 'models' / 'timm_models.json'
)
BLOCKS = {
  'Block': 'pre_norm',
  'ResPostBlock': 'post_norm',
  'ParallelScalingBlock': 'parallel',
  'ParallelThingsBlock': 'two_branches',
}
ACTIVATIONS = {'GELU': 'gelu_erf', 'GELUTanh': 'gelu_tanh', 'GELU_': 'gelu_erf'}
ACTIVATIONS |= {'QuickGELU': 'quick_gelu', 'SiLU': 'gelu_erf'}
MLPS = {'Mlp': 'mlp', 'GluMlp': 'swiglu_packed', 'SwiGLU': 'swiglu'}
HYBRIDS = {
  'vit_tiny_r_s16_p8': 'r_vit_ti16',
  'vit_small_r26_s32': 'r26_vit_s32',
  'vit_base_r26_s32': 'r26_vit_b32',
  'vit_base_r50_s16': 'r50_vit_b16',
  'vit_large_r50_s32': 'r50_vit_l32',
}
STEMS = {'d': 'deep', 't': 'tiered'}
DEIT_WORDS = {'tiny': 'ti', 'small': 's', 'base': 'b'}


def architecture(name: str) -> tuple[str, dict] | None:
  """The registered base and the fields that differ, or None."""
  stem, _, _size = name.rpartition('_')
  if name.startswith('mixer_'):
    return stem, {'activation': 'gelu_erf'}
  if name.startswith(('cait_', 'volo_')):
    return stem, {}
  if name.startswith('resnetv2_') and name.endswith('_bit'):
    return f'bit_r{name.split("_")[1]}', {'std_eps': 1e-8}
  if stem in HYBRIDS:
    return HYBRIDS[stem], {'activation': 'gelu_erf', 'stem_style': 'timm'}
  if name.startswith('resnetv2_'):
    return residual(name.removeprefix('resnetv2_'))
  if 'distilled' in name:
    return f'deit_{DEIT_WORDS[name.split("_")[1]]}16_distilled', {}
  depths = []
  initialize = vit.VisionTransformer.__init__

  def shallow(self, *args, depth=12, **kwargs):
    depths.append(depth)
    initialize(self, *args, depth=1, weight_init='skip', **kwargs)

  vit.VisionTransformer.__init__ = shallow  # one block of each model is enough
  try:
    with torch.device('meta'):
      model = timm.create_model(name)
  finally:
    vit.VisionTransformer.__init__ = initialize
  if type(model) is not vit.VisionTransformer:
    return None
  if type(model.patch_embed).__name__ != 'PatchEmbed':
    return None
  return transformer(model, depths[0])


def residual(variant: str) -> tuple[str, dict] | None:
  """The fields of a ResNetV2 such as '50d' or '50d_gn', or None."""
  size, _, norm = variant.partition('_')
  if norm not in ('', 'gn'):
    return None
  layers, unit = RESNETS[size.rstrip('dt')]
  fields: dict = {'num_layers': layers, 'unit': unit}
  if size[-1] in STEMS:
    fields |= {'stem': STEMS[size[-1]], 'average': True}
  if norm:
    fields['norm'] = 'group'
  return 'ResNetV2', fields


def transformer(model, depth: int) -> tuple[str, dict] | None:
  """The base and fields of a VisionTransformer of timm."""
  block = model.blocks[0]
  kind = BLOCKS.get(type(block).__name__)
  if kind is None:
    return None
  fields = dict(
    patch_size=model.patch_embed.patch_size[0],
    width=model.embed_dim,
    depth=depth,
  )
  more: dict = {}
  mlp = mlp_name = None
  attention = getattr(block, 'attn', None)
  if kind == 'two_branches':
    attention, mlp = block.attns[0].attn, block.ffns[0].mlp
  elif kind == 'parallel':
    attention = block
    mlp_dim, activation = block.in_split[0], block.mlp_act
    more['qkv_bias'] = block.in_proj.bias is not None
    norm = block.in_norm
    scale = block.ls
  else:
    mlp = block.mlp
  if mlp is not None:
    mlp_name = MLPS[type(mlp).__name__]
    mlp_dim = mlp.fc2.in_features
    activation = mlp.act
    more['qkv_bias'] = attention.qkv.bias is not None
    more['out_bias'] = attention.proj.bias is not None
    norm = block.attns[0].norm if kind == 'two_branches' else block.norm1
    scale = (
      block.attns[0].ls
      if kind == 'two_branches'
      else getattr(block, 'ls1', None)
    )
    if type(attention).__name__ == 'DiffAttention':
      kind = 'diff'
  elif mlp_name is None:
    more['out_bias'] = True
  fields |= dict(num_heads=attention.num_heads, mlp_dim=mlp_dim)
  pool = {'token': 'token', 'avg': 'gap', 'map': 'map'}[model.global_pool]
  is_norm = lambda m: not isinstance(m, torch.nn.Identity)
  gamma = type(scale).__name__ == 'LayerScale'
  more |= dict(
    pool=pool,
    class_token=model.has_class_token,
    class_posemb=not model.no_embed_class,
    layer_scale=scale.init_values if gamma else None,
    activation=ACTIVATIONS[type(activation).__name__],
    norm_eps=norm.eps,
    registers=model.num_reg_tokens,
    pre_norm=is_norm(model.norm_pre),
    embed_norm=is_norm(model.patch_embed.norm),
    final_norm='tokens'
    if is_norm(model.norm)
    else 'pooled'
    if is_norm(model.fc_norm)
    else 'none',
    pool_prefix=model.pool_include_prefix,
    norm='rms' if 'Rms' in type(norm).__name__ else 'layer',
    block=kind,
    mlp=mlp_name or 'mlp',
    qk_norm=is_norm(getattr(attention, 'q_norm', torch.nn.Identity())),
    inner_norm=kind == 'pre_norm'
    and is_norm(getattr(attention, 'norm', torch.nn.Identity())),
  )
  default = dict(
    pool='token', class_token=True, class_posemb=True, layer_scale=None
  )
  default |= dict(activation='gelu_erf', norm_eps=1e-6)
  plain = dict(
    qkv_bias=True,
    out_bias=True,
    registers=0,
    pre_norm=False,
    embed_norm=False,
    pool_prefix=False,
    norm='layer',
    block='pre_norm',
    mlp='mlp',
    qk_norm=False,
    inner_norm=False,
  )
  is_plain = all(more[k] == v for k, v in plain.items())
  is_plain &= more['final_norm'] != 'none'
  is_plain &= more['activation'] != 'quick_gelu'
  size = (
    fields['width'],
    fields['depth'],
    fields['mlp_dim'],
    fields['num_heads'],
  )
  words = {v: k for k, v in SIZES.items()}
  if not is_plain:
    default |= plain | dict(final_norm='tokens')
    default.pop('activation')
    changed = {k: v for k, v in more.items() if default.get(k) != v}
    return 'Tower', fields | changed
  changed = {k: v for k, v in more.items() if k in default and default[k] != v}
  if more['class_token'] != (pool == 'token'):
    changed['class_token'] = more['class_token']
  else:  # the field's own default
    changed.pop('class_token', None)
  if more['final_norm'] == 'pooled':
    changed['norm_after_pool'] = True
  changed['activation'] = more['activation']
  if size in words and fields['patch_size'] in (8, 14, 16, 32):
    return f'vit_{words[size]}{fields["patch_size"]}', changed
  return 'vit_b16', fields | changed


def feeding(cfg) -> list:
  """[size, crop, interpolation, normalize, crop_resize] of a tag."""
  mean, std = tuple(cfg.mean), tuple(cfg.std)
  named = {
    ((0.5,) * 3, (0.5,) * 3): 'half',
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): 'imagenet',
    ((0.0,) * 3, (1.0,) * 3): 'unit',
  }
  normalize = named.get((mean, std)) or (
    f'mean_std({",".join(f"{v:.8g}" for v in (*mean, *std))})'
  )
  interpolation = {'bilinear': 'bilinear_antialias'}.get(
    cfg.interpolation, cfg.interpolation
  )
  resize = {'squash': 'squash', 'border': 'resize_long'}.get(
    cfg.crop_mode, 'timm'
  )
  return [cfg.input_size[1], cfg.crop_pct, interpolation, normalize, resize]


def main() -> None:
  architectures, feedings, others = {}, {}, []
  for module in MODULES:
    for name in timm.list_models(module=module):
      fields = architecture(name)
      if fields is None:
        others.append(name)
        continue
      architectures[name] = list(fields)
      cfgs = timm.models.get_arch_pretrained_cfgs(name)
      first = timm.get_pretrained_cfg(name)
      feedings[name] = feeding(first)
      for full, cfg in cfgs.items():
        if feeding(cfg) != feedings[name] or full != name:
          feedings[full] = feeding(cfg)
  lines = lambda d: ',\n'.join(
    f'  {json.dumps(k)}: {json.dumps(v)}' for k, v in sorted(d.items())
  )
  TARGET.write_text(
    f'{{"timm": "{timm.__version__}",\n'
    f'"architectures": {{\n{lines(architectures)}\n}},\n'
    f'"preprocessing": {{\n{lines(feedings)}\n}},\n'
    f'"others": {json.dumps(others)}}}\n'
  )
  print(len(architectures), 'architectures;', len(others), 'others', others)


if __name__ == '__main__':
  main()
