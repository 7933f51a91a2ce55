"""Measures attention alone, beside PyTorch's, forward and with its gradients.

  python -m benchmarks.attention --quick
  python -m benchmarks.attention
  python -m benchmarks.attention --device gpu

Queries, keys and values are (B, T, H, K) here and (B, H, T, K) in PyTorch, as
each side's models have them. `vit_jax` is the form that models take on the
device, `plain` is `vit_jax.models.attention.attend`. On a GPU there is also
`cuDNN`, for any number of tokens: from how many on it is faster is what
`SHORTEST` in `vit_jax/models/fused/gpu.py` has to say. Areas are measured by
`area_attention.py`.
"""

import argparse
from collections.abc import Callable
import importlib.util
import sys
from typing import Any

import numpy as np

from benchmarks import machine, turns
from vit_jax import allocation

# (batch, heads, tokens, head width): S/16 at 224 px, L/16, S/16 at 384 px.
_SHAPES = ((16, 6, 197, 64), (4, 16, 197, 64), (4, 6, 577, 64))
# About as many tokens in each, around the thresholds for cuDNN.
_GPU_SHAPES = tuple(
  (2**16 // tokens, 12 * 64 // width, tokens, width)
  for width in (64, 128)
  for tokens in (65, 128, 197, 257, 577)
)


def _numbers(settings: dict[str, Any]) -> list[np.ndarray]:
  """Queries, keys, values and the gradient of the result, (B, H, T, K)."""
  rng = np.random.default_rng(0)
  return [rng.standard_normal(settings['shape'], np.float32) for _ in range(4)]


def in_jax(settings: dict[str, Any]) -> Callable[[], object]:
  """One of the forms 'models', 'plain' and 'cuDNN'; see above."""
  import jax

  from vit_jax.models import attention
  from vit_jax.models.fused import attend, gpu

  allocation.compute_in_first_thread()  # as commands do
  q, k, v, g = (
    jax.device_put(x.swapaxes(1, 2).astype(settings['dtype']))
    for x in _numbers(settings)
  )
  forward = {
    'models': lambda q, k, v: attend.attend(q, k, v)[0],
    'plain': lambda q, k, v: attention.attend(q, k, v)[0],
    'cuDNN': gpu.library_attention,
  }[settings['form']]
  if settings['backward']:
    f = jax.jit(lambda q, k, v, g: jax.vjp(forward, q, k, v)[1](g))
    return lambda: jax.block_until_ready(f(q, k, v, g))
  f = jax.jit(forward)
  return lambda: jax.block_until_ready(f(q, k, v))


def in_torch(settings: dict[str, Any]) -> Callable[[], object]:
  """`torch.nn.functional.scaled_dot_product_attention`."""
  import torch

  on_gpu = settings['device'] == 'gpu'
  dtype = getattr(torch, settings['dtype'])
  q, k, v, g = (
    torch.from_numpy(x).to('cuda' if on_gpu else 'cpu', dtype)
    for x in _numbers(settings)
  )
  attend = torch.nn.functional.scaled_dot_product_attention
  for x in (q, k, v):
    x.requires_grad_(settings['backward'])

  def once():
    with torch.set_grad_enabled(settings['backward']):
      y = attend(q, k, v)
    if settings['backward']:
      torch.autograd.grad(y, (q, k, v), g)
    if on_gpu:
      torch.cuda.synchronize()

  return once


def candidates(
  shape: tuple[int, ...], dtype: str, backward: bool, device: str
) -> list[turns.Candidate]:
  """The forms in JAX, and PyTorch where it is installed.

  Args:
    shape: (B, H, T, K).
    dtype: 'float32' or 'bfloat16'.
    backward: whether the gradients are computed too.
    device: one of turns.DEVICES.
  """
  settings = {
    'shape': shape,
    'dtype': dtype,
    'backward': backward,
    'device': device,
  }

  def one(name: str, function: str, **more) -> turns.Candidate:
    prepare = f'benchmarks.attention:{function}'
    env = turns.on_device(device)
    if function == 'in_jax':  # as the commands of vit-jax start themselves
      env.update(allocation.settings())
    return turns.Candidate(name, prepare, settings | more, shape[0], env)

  rows = [
    one('vit_jax', 'in_jax', form='models'),
    one('plain', 'in_jax', form='plain'),
  ]
  if device == 'gpu' and dtype != 'float32':
    rows.append(one('cuDNN', 'in_jax', form='cuDNN'))
  if importlib.util.find_spec('torch') is not None:
    rows.append(one('torch', 'in_torch'))
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--device', choices=turns.DEVICES, default='cpu')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument(
    '--dtypes',
    nargs='+',
    help='default: float32 and bfloat16, on a GPU bfloat16',
  )
  parser.add_argument(
    '--quick', action='store_true', help='the first shape in the first dtype'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  shapes, dtypes = _SHAPES, args.dtypes or ['float32', 'bfloat16']
  if args.device == 'gpu':
    shapes, dtypes = _GPU_SHAPES, args.dtypes or ['bfloat16']
  if args.quick:
    shapes, dtypes = shapes[:1], dtypes[:1]
  if importlib.util.find_spec('torch') is None:
    print('torch is not installed: left out', file=sys.stderr)
  print(machine.describe())
  groups = {}
  for shape in shapes:
    for dtype in dtypes:
      for backward in (False, True):
        rows = candidates(shape, dtype, backward, args.device)
        title = (
          f'{"x".join(map(str, shape))} (B, H, T, K), {dtype}, '
          f'{"with gradients" if backward else "forward"}'
        )
        groups[title] = turns.measure(rows, args.rounds)
        baseline = rows[-1].name  # torch where it is installed
        table = turns.table(groups[title], baseline, 'img')
        print(f'\n{title}\n\n{table}', flush=True)
  if args.json:
    turns.write_json(args.json, groups)


if __name__ == '__main__':
  main()
