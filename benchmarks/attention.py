"""Measures attention alone, beside PyTorch's, forward and with its gradients.

  python -m benchmarks.attention --quick
  python -m benchmarks.attention

Queries, keys and values are (B, T, H, K) here and (B, H, T, K) in PyTorch, as
each side's models have them. Areas are measured by `area_attention.py`.
"""

import argparse
from collections.abc import Callable
import importlib.util
import sys
from typing import Any

import numpy as np

from benchmarks import turns

# (batch, heads, tokens, head width): S/16 at 224 px, L/16, S/16 at 384 px.
_SHAPES = ((16, 6, 197, 64), (4, 16, 197, 64), (4, 6, 577, 64))


def _numbers(settings: dict[str, Any]) -> list[np.ndarray]:
  """Queries, keys, values and the gradient of the result, (B, H, T, K)."""
  rng = np.random.default_rng(0)
  return [rng.standard_normal(settings['shape'], np.float32) for _ in range(4)]


def ours(settings: dict[str, Any]) -> Callable[[], object]:
  """`vit_jax.models.attention.attend`."""
  import jax

  from vit_jax.models.attention import attend

  q, k, v, g = (
    jax.device_put(x.swapaxes(1, 2).astype(settings['dtype']))
    for x in _numbers(settings)
  )
  forward = lambda q, k, v: attend(q, k, v)[0]
  if settings['backward']:
    f = jax.jit(lambda q, k, v, g: jax.vjp(forward, q, k, v)[1](g))
    return lambda: jax.block_until_ready(f(q, k, v, g))
  f = jax.jit(forward)
  return lambda: jax.block_until_ready(f(q, k, v))


def torchs(settings: dict[str, Any]) -> Callable[[], object]:
  """`torch.nn.functional.scaled_dot_product_attention`."""
  import torch

  dtype = getattr(torch, settings['dtype'])
  q, k, v, g = (torch.from_numpy(x).to(dtype) for x in _numbers(settings))
  attend = torch.nn.functional.scaled_dot_product_attention
  if not settings['backward']:

    def once():
      with torch.inference_mode():
        return attend(q, k, v)

    return once
  for x in (q, k, v):
    x.requires_grad_()
  return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), g)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  parser.add_argument(
    '--quick', action='store_true', help='one shape in float32'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  shapes = _SHAPES[:1] if args.quick else _SHAPES
  has_torch = importlib.util.find_spec('torch') is not None
  if not has_torch:
    print('torch is not installed: left out', file=sys.stderr)
  print(turns.describe())
  groups = {}
  for shape in shapes:
    for dtype in ('float32',) if args.quick else args.dtypes:
      for backward in (False, True):
        settings = {'shape': shape, 'dtype': dtype, 'backward': backward}
        one = lambda name, function: turns.Candidate(
          name, f'benchmarks.attention:{function}', settings, shape[0]
        )
        rows = [one('vit_jax', 'ours')]
        if has_torch:
          rows.append(one('torch', 'torchs'))
        title = (
          f'{"x".join(map(str, shape))} (B, H, T, K), {dtype}, '
          f'{"with gradients" if backward else "forward"}'
        )
        groups[title] = turns.measure(rows, args.rounds)
        print(f'\n{title}\n\n{turns.table(groups[title], "torch", "img")}')
  if args.json:
    turns.write_json(args.json, groups)


if __name__ == '__main__':
  main()
