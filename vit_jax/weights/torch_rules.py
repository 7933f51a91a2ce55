"""Rules for the layers that the files of many PyTorch models have.

In every function, `flax` is a regex for the Flax path of a module without its
collection, and `torch` is a template for the name of the PyTorch module, as in
`rules.Rule`.
"""

from collections.abc import Sequence

from vit_jax.weights.rules import Rule

_QKV = ('query', 'key', 'value')


def layer(flax: str, torch: str, layout: str = 'dense') -> list[Rule]:
  """Kernel and bias of a dense layer, or with layout 'conv' a convolution."""
  return [
    Rule(f'params/{flax}/kernel', f'{torch}.weight', layout),
    Rule(f'params/{flax}/bias', f'{torch}.bias'),
  ]


def norm(flax: str, torch: str) -> list[Rule]:
  """Scale and bias of a LayerNorm or GroupNorm."""
  return [
    Rule(f'params/{flax}/scale', f'{torch}.weight'),
    Rule(f'params/{flax}/bias', f'{torch}.bias'),
  ]


def batch_norm(flax: str, torch: str) -> list[Rule]:
  """Scale, bias and running statistics of a BatchNorm."""
  return [
    *norm(flax, torch),
    Rule(f'batch_stats/{flax}/mean', f'{torch}.running_mean'),
    Rule(f'batch_stats/{flax}/var', f'{torch}.running_var'),
  ]


def fused(
  flax: str, torch: str, projections: Sequence[str] = _QKV
) -> list[Rule]:
  """Projections of attention that a file stores as one matrix."""
  rules = []
  for j, projection in enumerate(projections):
    chunk = (j, len(projections))
    rules += [
      Rule(
        f'params/{flax}/{projection}/kernel', f'{torch}.weight', 'dense', chunk
      ),
      Rule(f'params/{flax}/{projection}/bias', f'{torch}.bias', 'same', chunk),
    ]
  return rules


def attention(flax: str, qkv: str, out: str) -> list[Rule]:
  """Attention whose query, key and value a file stores as one matrix.

  Args:
    flax: regex for the Flax path of the attention.
    qkv, out: templates for the names of the two PyTorch layers.
  """
  return [*layer(f'{flax}/out', out), *fused(flax, qkv)]


def mlp(flax: str, torch: str) -> list[Rule]:
  """The two layers of an MLP block, 'fc1' and 'fc2' in PyTorch."""
  return [
    *layer(f'{flax}/Dense_0', f'{torch}.fc1'),
    *layer(f'{flax}/Dense_1', f'{torch}.fc2'),
  ]
