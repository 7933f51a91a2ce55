"""timm's names of vision towers, which depend on the kind of their blocks."""

from vit_jax.models.towers.tower import Tower
from vit_jax.weights.maps.vit import encoder_rules, pool_rules
from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import attention, layer, mlp, norm

_BLOCK, _TORCH = r'Transformer/encoderblock_(\d+)', r'blocks.\1'
_ATTENTION = 'MultiHeadDotProductAttention'


def _layers(flax: str, torch: str) -> list[Rule]:
  """The layers of a block that ViT lacks.

  Args:
    flax: regex for the Flax path of the block.
    torch: template for its name in the file.
  """
  hidden = f'{torch}.mlp'
  return [
    *norm(f'{flax}/attention_norms/query_norm', f'{torch}.attn.q_norm'),
    *norm(f'{flax}/attention_norms/key_norm', f'{torch}.attn.k_norm'),
    *norm(f'{flax}/attention_norms/inner_norm', f'{torch}.attn.norm'),
    *norm(f'{flax}/MlpBlock_0/inner_norm', f'{hidden}.norm'),
    *norm(f'{flax}/differential/sub_norm', f'{torch}.attn.sub_norm'),
    Rule(rf'params/{flax}/differential/(lambda_\w\d)', rf'{torch}.attn.\2'),
  ]


def _swiglu(packed: bool) -> list[Rule]:
  flax, torch = f'{_BLOCK}/MlpBlock_0', f'{_TORCH}.mlp'
  if packed:
    # The two layers of the hidden width are one matrix in the file.
    first = [
      Rule(f'params/{flax}/{name}/{leaf}', f'{torch}.fc1.{word}', layout, part)
      for name, part in (('gate', (0, 2)), ('Dense_0', (1, 2)))
      for leaf, word, layout in (
        ('kernel', 'weight', 'dense'),
        ('bias', 'bias', 'same'),
      )
    ]
  else:
    first = [
      *layer(f'{flax}/gate', f'{torch}.fc1_g'),
      *layer(f'{flax}/Dense_0', f'{torch}.fc1_x'),
    ]
  return [*first, *layer(f'{flax}/Dense_1', f'{torch}.fc2')]


def _two_branches() -> list[Rule]:
  rules = []
  for i in range(2):
    attn, ffn = f'{_TORCH}.attns.{i}', f'{_TORCH}.ffns.{i}'
    rules += [
      Rule(f'params/{_BLOCK}/gamma_{i}', f'{attn}.ls.gamma'),
      Rule(f'params/{_BLOCK}/gamma_{i + 2}', f'{ffn}.ls.gamma'),
      *norm(f'{_BLOCK}/LayerNorm_{i}', f'{attn}.norm'),
      *norm(f'{_BLOCK}/LayerNorm_{i + 2}', f'{ffn}.norm'),
      *attention(
        f'{_BLOCK}/{_ATTENTION}_{i}', f'{attn}.attn.qkv', f'{attn}.attn.proj'
      ),
      *mlp(f'{_BLOCK}/MlpBlock_{i}', f'{ffn}.mlp'),
    ]
  return rules


def _parallel(model: Tower) -> list[Rule]:
  """The hidden layer, query, key and value are one matrix in the file."""
  ends = [model.mlp_dim + i * model.width for i in range(4)]
  slices = {'MlpBlock_0/Dense_0': (0, ends[0])} | {
    f'{_ATTENTION}_0/{name}': (ends[i], ends[i + 1])
    for i, name in enumerate(('query', 'key', 'value'))
  }
  rules = []
  for flax, rows in slices.items():
    bias = f'{_TORCH}.in_proj.bias'
    if not model.qkv_bias:
      bias, rows_of_bias = f'{_TORCH}.mlp_bias', None
    else:
      rows_of_bias = rows
    rules += [
      Rule(
        f'params/{_BLOCK}/{flax}/kernel',
        f'{_TORCH}.in_proj.weight',
        'dense',
        rows=rows,
      ),
      Rule(f'params/{_BLOCK}/{flax}/bias', bias, rows=rows_of_bias),
    ]
  names = f'{_BLOCK}/attention_norms'
  return [
    *rules,
    Rule(f'params/{_BLOCK}/gamma_1', f'{_TORCH}.ls.gamma'),
    *norm(f'{_BLOCK}/LayerNorm_0', f'{_TORCH}.in_norm'),
    *norm(f'{names}/query_norm', f'{_TORCH}.q_norm'),
    *norm(f'{names}/key_norm', f'{_TORCH}.k_norm'),
    *layer(f'{_BLOCK}/{_ATTENTION}_0/out', f'{_TORCH}.attn_out_proj'),
    *layer(f'{_BLOCK}/MlpBlock_0/Dense_1', f'{_TORCH}.mlp_out_proj'),
  ]


def _rules(model: Tower) -> list[Rule]:
  special = {
    'two_branches': _two_branches,
    'parallel': lambda: _parallel(model),
  }
  blocks = special.get(model.block, list)()
  if model.mlp != 'mlp':
    blocks += _swiglu(model.mlp == 'swiglu_packed')
  return [
    *blocks,
    Rule('params/registers', 'reg_token'),
    *norm('pre_norm', 'norm_pre'),
    *norm('embedding_norm', 'patch_embed.norm'),
    *encoder_rules(),
    *_layers(_BLOCK, _TORCH),
    *pool_rules(),
  ]


MAPS = {'Tower': {'timm': _rules}}
IGNORED = ['mask_token']
