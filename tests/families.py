"""Small variants of every family, and the recorded sizes of the real ones.

`tests/models/test_families.py` runs one contract over all of them.
"""

import csv
import dataclasses
import pathlib
import re
from typing import Any

from flax import linen as nn

from vit_jax.models.registry import create_model

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
COUNTS = FIXTURES / 'param_counts.tsv'
CONV_COUNTS = FIXTURES / 'param_counts_conv.tsv'
CLASSES = 5
IMAGE_SIZE = (32, 48)


@dataclasses.dataclass(frozen=True)
class Family:
  """A registered model, reduced to a few thousand parameters.

  Attributes:
    name: registered name.
    fields: fields that make the model small.
    wrong: (fields, message) that the model refuses for IMAGE_SIZE.
    incomplete: formats that have no name for one of its parameters.
  """

  name: str
  fields: dict[str, Any]
  wrong: tuple[tuple[dict[str, Any], str], ...] = ()
  incomplete: tuple[str, ...] = ()

  def create(self, **fields: Any) -> nn.Module:
    """The small model with CLASSES classes; `fields` are changed."""
    return create_model(
      self.name, **{'num_classes': CLASSES, **self.fields, **fields}
    )


_SMALL = dict(patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=24)
_HEADS = (dict(num_heads=3), 'width 16 is not divisible by num_heads 3')
_PATCH = (dict(patch_size=64), 'patch_size 64x64 is larger than the image')
_REMAT = (dict(remat='some'), "remat='some'; allowed: none, full, dots")
# Hugging Face's transformers: plain ViT and DeiT only.
_TRANSFORMERS = ('transformers', 'transformers5')
_GELU = (dict(activation='relu'), "activation='relu'; allowed: gelu_tanh")

FAMILIES = {
  'vit': Family(
    'vit_ti16',
    _SMALL,
    wrong=(
      _HEADS,
      _PATCH,
      _REMAT,
      _GELU,
      (dict(pool='max'), "pool='max'; allowed: token, gap, map, none"),
      (dict(posemb='sine'), "posemb='sine'; allowed: learn1d, learn2d"),
      (dict(init_style='jax'), "init_style='jax'; allowed: google"),
      (dict(area_sizes=((1, 2),) * 3), 'area_sizes has 3 entries for depth=2'),
      (
        dict(class_token=False),
        'class_token=False leaves no token',
      ),
    ),
  ),
  'big_vision': Family(
    'vit_s16',
    dict(
      _SMALL,
      pool='map',
      posemb='sincos2d',
      representation_size=12,
      init_style='big_vision',
    ),
    incomplete=('official', *_TRANSFORMERS),
  ),
  'dinov2': Family(
    'vit_s14_dinov2', _SMALL, incomplete=('official', *_TRANSFORMERS)
  ),
  'area': Family(
    'aa_vit_ti16',
    dict(_SMALL, depth=3, area_sizes=((1, 2),)),
    wrong=((dict(posemb='relative'), "area_sizes and posemb='relative'"),),
  ),
  'hybrid': Family(
    'r26_vit_s32',
    dict(_SMALL, patch_size=1, stem=(1, 1), stem_width=0.5),
    wrong=(
      _REMAT,
      (dict(stem_width=0.3), '19 channels cannot be split into the 32'),
    ),
    incomplete=('official', *_TRANSFORMERS),
  ),
  'bit': Family(
    'bit_r50x1',
    dict(num_layers=(1, 1), width_factor=0.5),
    wrong=(
      _REMAT,
      (dict(width_factor=0.3), '19 channels cannot be split into the 32'),
      (dict(num_layers=(1, 0)), 'a stage has at least one unit'),
      (dict(pool_padding='same'), "pool_padding='same'; allowed: zero"),
    ),
  ),
  'bit_v1': Family(
    'bit_v1_r50x1', dict(num_layers=(1, 1), width_factor=0.5), wrong=(_REMAT,)
  ),
  'mixer': Family(
    'mixer_s16',
    dict(patch_size=8, width=16, depth=2, tokens_mlp_dim=8, mlp_dim=24),
    wrong=(_PATCH, _REMAT, _GELU),
  ),
  'deit': Family(
    'deit_ti16_distilled',
    _SMALL,
    wrong=(
      _HEADS,
      _PATCH,
      _REMAT,
      _GELU,
      (dict(fusion='max'), "fusion='max'; allowed: mean_logits, mean_probs"),
    ),
  ),
  'deepvit': Family(
    'deepvit_s',
    dict(_SMALL, depth=3, reattn=(False, False, True)),
    wrong=(
      _HEADS,
      _REMAT,
      (dict(reattn=(True,)), 'reattn has 1 entries for depth=3 blocks'),
      (dict(patch_size=5), 'patch_size 5 .*even number'),
    ),
  ),
  'cait': Family(
    'cait_xxs24',
    dict(_SMALL, cls_depth=1, layer_scale=0.5),
    wrong=(_HEADS, _PATCH, _REMAT),
  ),
  'ceit': Family(
    'ceit_t',
    dict(_SMALL, stem_width=8),
    wrong=(
      _HEADS,
      _REMAT,
      (dict(patch_size=6), 'patch_size 6.*multiples of 4'),
      (dict(patch_size=64), 'patch_size 16x16 is larger than the image'),
      (dict(leff_cls='none'), "leff_cls='none'; allowed: norm"),
    ),
    incomplete=('rishikksh20',),
  ),
  'volo': Family(
    'volo_d1',
    dict(
      patch_size=4,
      layers=(1, 2),
      embed_dims=(8, 16),
      num_heads=(2, 2),
      mlp_ratios=(2, 2),
      outlook_attention=(True, False),
      downsamples=(True, False),
      post_layers=('ca',),
      stem_hidden_dim=4,
    ),
    wrong=(
      _REMAT,
      (dict(num_heads=(2, 3)), 'width 16 is not divisible by num_heads 3'),
      (dict(num_heads=(2,)), 'num_heads=.2,. needs one entry per'),
      (dict(patch_size=6), 'patch_size 6; allowed: 4, 8, 16'),
      (dict(downsamples=(True, True)), 'no group follows'),
      (dict(return_mean=True), 'exclude each other'),
      (dict(post_layers=()), 'no class token'),
    ),
  ),
  'resnet': Family(
    'resnet50',
    dict(num_layers=(2, 1), width=8),
    wrong=(_REMAT, (dict(unit='v2'), "unit='v2'; allowed: basic")),
  ),
  'regnet': Family(
    'regnety_080',
    dict(w0=8, wa=8.0, wm=2.0, depth=3, group_size=4, stem_width=8),
    wrong=(
      _REMAT,
      (dict(width_rounding='up'), "width_rounding='up'; allowed: pycls"),
    ),
  ),
  'efficientnet': Family(
    'efficientnet_b0',
    dict(
      stages=((1, 3, 1, 1, 16), (2, 5, 2, 6, 24), (1, 3, 1, 6, 24)),
      stem_channels=8,
      head_channels=32,
    ),
    wrong=(
      _REMAT,
      (dict(padding='same'), "padding='same'; allowed: symmetric"),
    ),
  ),
  'vgg': Family(
    'vgg16_bn',
    dict(stages=((4,), (8, 8)), hidden=16),
    wrong=((dict(head_style='keras'), "head_style='keras'; allowed: torch"),),
  ),
  'densenet': Family(
    'densenet121', dict(num_layers=(2, 2), growth=4), wrong=(_REMAT,)
  ),
}


@dataclasses.dataclass(frozen=True)
class Count:
  """One row of the recorded table.

  Attributes:
    name: registered name.
    fields: fields of the model, with num_classes.
    size: side of the image.
    parameters: number of parameters.
    statistics: number of running statistics of BatchNorm; None if not recorded.
    gmacs: multiply-accumulates / 1e9; None if not recorded, or counted with
      operations that are no matrix products here.
  """

  name: str
  fields: tuple[tuple[str, Any], ...]
  size: int
  parameters: int
  statistics: int | None
  gmacs: float | None

  def __str__(self) -> str:
    fields = ','.join(f'{k}={v}' for k, v in self.fields)
    return f'{self.name}-{self.size}-{fields}'.rstrip('-').replace(' ', '')


# (pattern of the whole name in the table, registered name, fields); {0} is the
# first group, in lower case unless the name needs an upper case G.
_ROWS = (
  (r'ViT-(\w+)/(\d+)', 'vit_{0}{1}', ''),
  (r'(R|R26|R50)\+(\w+)/(\d+)', '{0}_vit_{1}{2}', ''),
  (r'BiT-(R\d+x\d)', 'bit_{0}', ''),
  (r'BiT- (R\d+x\d) nc=(\d+)', 'bit_{0}', 'num_classes={1}'),
  (r'ResNet50 V1 .*', 'bit_v1_r50x1', ''),
  (r'Mixer-(\w)/(\d+)', 'mixer_{0}{1}', ''),
  (r'DeiT-(ti)ny(_distilled)?', 'deit_{0}16{1}', ''),
  (r'DeiT-(s)mall(_distilled)?', 'deit_{0}16{1}', ''),
  (r'DeiT-(b)ase(_distilled)?', 'deit_{0}16{1}', ''),
  (r'CaiT-(\w+)', 'cait_{0}', ''),
  (r'VOLO-(D\d)', 'volo_{0}', ''),
  (r'ceit_(.).*', 'ceit_{0}', ''),
  (r'deepvit_patch16_224_re_attn_(\d+)b', 'deepvit_{0}', ''),
  (r'deepvit_([SL])(_384)?', 'deepvit_{0}', ''),
  (r'DeepViT-L with embed_dim=408 .*', 'deepvit_l408', ''),
  (r'vit_jax ViT-(\w+)_(\d+)', 'vit_{0}{1}', ''),
  (r'vit_jax ViT-(\w+)_(\d+)-gap-norep', 'vit_{0}{1}', 'pool=gap'),
  (
    r'vit_jax (?:(R50)\+)?ViT-(\w+)_(\d+) \+pre_logits(\d+) nc=(\d+)',
    '{0}_vit_{1}{2}',
    'representation_size={3} num_classes={4}',
  ),
  (
    r'vit_jax (?:(R50)\+)?ViT-(\w+)_(\d+) nc=(\d+)',
    '{0}_vit_{1}{2}',
    'num_classes={3}',
  ),
  (
    r'ViT \(big_vision\) ([\w-]+)/(\d+) pool=(gap|map)',
    'vit_{0}{1}',
    'pool={2}',
  ),
  (
    r'ViT \(big_vision\) ([\w-]+)/(\d+) pool=tok',
    'vit_{0}{1}',
    'pool=token class_posemb=False',
  ),
  (
    r'ViT \(big_vision\) S/16 gap sincos2d rep_size',
    'vit_s16',
    'pool=gap posemb=sincos2d representation_size=384',
  ),
  (
    r'AA-ViT-(ti|s|b)\w* aa=(\S.*\]) nc=(\d+)',
    'aa_vit_{0}16',
    'area_sizes={1} num_classes={2}',
  ),
)
# Rows of architectures that are not registered: another form of CeiT, and the
# first version of the area-attention project.
UNREGISTERED = (
  r'CeiT unofficial .*',
  r'AA-ViT-\w+ FIRST COMMIT .*',
)


def _value(text: str) -> Any:
  if text.startswith('['):  # such as [(1, 2), (1, 2)]
    return tuple(
      (int(a), int(b)) for a, b in re.findall(r'\((\d+), (\d+)\)', text)
    )
  if text.isdigit():
    return int(text)
  return False if text == 'False' else text


def _fields(text: str) -> tuple[tuple[str, Any], ...]:
  pairs = re.findall(r'(\w+)=(\[.*\]|\S+)', text)
  return tuple((name, _value(value)) for name, value in pairs)


def _registered(name: str) -> tuple[str, str] | None:
  """Registered name and fields of a row; None if no pattern matches."""
  for pattern, model, fields in _ROWS:
    match = re.fullmatch(pattern, name)
    if match:
      groups = [g or '' for g in match.groups()]
      # vit_g14 and vit_G14 differ.
      lower = [g if g.startswith('G') else g.lower() for g in groups]
      lower = [g.replace('-opt', 'opt') for g in lower]
      return model.format(*lower).removeprefix('_'), fields.format(*groups)
  return None


def recorded_counts() -> list[Count]:
  """The rows of the table that belong to a registered model."""
  counts = []
  with COUNTS.open() as file:
    for row in csv.DictReader(file, delimiter='\t'):
      name = row['model']
      if any(re.fullmatch(pattern, name) for pattern in UNREGISTERED):
        continue
      registered = _registered(name)
      if registered is None:
        raise ValueError(f'no pattern for the row {name!r} of {COUNTS}')
      model, fields = registered
      # The table also counts sums over areas, windows and depth-wise kernels.
      comparable = not model.startswith(('aa_vit', 'ceit', 'volo'))
      statistics = row['bn_running_stats_not_in_params']
      gmacs = row['GMACs_measured']
      counts.append(
        Count(
          model,
          _fields(fields),
          int(row['resolution']),
          int(row['params_exact']),
          int(statistics) if statistics else None,
          float(gmacs) if gmacs and comparable else None,
        )
      )
  return counts


def recorded_conv_names() -> set[str]:
  """Registered names with a row in the table of convolutional networks."""
  lines = [
    line
    for line in CONV_COUNTS.read_text().splitlines()
    if not line.startswith('#')
  ]
  rows = csv.DictReader(lines, delimiter='\t')
  sources = [row['source_of_count'].partition('; ')[0] for row in rows]
  return {source.rsplit(' ', 1)[1] for source in sources}
