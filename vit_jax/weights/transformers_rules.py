"""Names of ViT, DeiT and MAE in Hugging Face's transformers.

The name of the base model, `vit.` or `deit.`, is no part of the rules, because
files of the base model lack it (`prefixes`). Files have the names of version 4;
version 5 has others in memory, which some programs save.
"""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import layer, norm

_BLOCK = r'Transformer/encoderblock_(\d+)'


def rules(*, version: int, head: str = 'classifier') -> list[Rule]:
  """The rules of one version.

  Args:
    version: 4 or 5.
    head: name of the class token's head.
  """
  if version == 4:
    block, self_attention = r'encoder.layer.\1', 'attention.attention'
    projections = ('query', 'key', 'value')
    out = f'{block}.attention.output.dense'
    dense = (f'{block}.intermediate.dense', f'{block}.output.dense')
  else:
    block, self_attention = r'layers.\1', 'attention'
    projections = ('q_proj', 'k_proj', 'v_proj')
    out = f'{block}.attention.o_proj'
    dense = (f'{block}.mlp.fc1', f'{block}.mlp.fc2')
  attention = f'{_BLOCK}/MultiHeadDotProductAttention_0'
  result = [
    Rule('params/cls', 'embeddings.cls_token'),
    Rule('params/dist_token', 'embeddings.distillation_token'),
    Rule(
      'params/Transformer/posembed_input/pos_embedding',
      'embeddings.position_embeddings',
    ),
    *layer('embedding', 'embeddings.patch_embeddings.projection', 'conv'),
    *norm('Transformer/encoder_norm', 'layernorm'),
    *layer('head', head),
    *layer('head_dist', 'distillation_classifier'),
    *layer(f'{attention}/out', out),
    *norm(f'{_BLOCK}/LayerNorm_0', f'{block}.layernorm_before'),
    *norm(f'{_BLOCK}/LayerNorm_1', f'{block}.layernorm_after'),
    *layer(f'{_BLOCK}/MlpBlock_0/Dense_0', dense[0]),
    *layer(f'{_BLOCK}/MlpBlock_0/Dense_1', dense[1]),
  ]
  for flax, torch in zip(('query', 'key', 'value'), projections, strict=True):
    result += layer(f'{attention}/{flax}', f'{block}.{self_attention}.{torch}')
  return result


# Tensors that only pre-training uses, and the pooler of the base model, whose
# values are random in the published files.
IGNORED = [
  'embeddings.mask_token',
  r'pooler\.dense\.(weight|bias)',
  r'decoder\..*',
]
