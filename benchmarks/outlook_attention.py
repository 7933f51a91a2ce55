"""Outlook attention: our shifted products against unfold, matmul and fold.

  python benchmarks/outlook_attention.py --batch 8 --image 224 --dtype float32

For VOLO-D1's first stage (28x28 map at 224, width 192, 6 heads): seconds and
temporary memory (the compiler's own figure) of the mixing step alone, forward
and forward + backward, in both forms, and the largest difference between them.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from vit_jax.models.volo import outlook


def unfold_fold(weights, v):
  """The published form: 3x3 patches at stride 2, matmul, summed back."""
  batch, height, width, heads, head_width = v.shape
  _, h, w = weights.shape[:3]

  def unfold(x):
    patches = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (2, 2), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return patches.reshape(batch, h, w, heads, head_width, 9)

  values, fold = jax.vjp(
      unfold, v.reshape(batch, height, width, heads * head_width))
  mixed = jnp.einsum('bhwnqk,bhwnck->bhwncq', weights, values)
  return fold(mixed)[0].reshape(v.shape)


def measure(fn, args, repeats: int):
  """Best seconds of a jitted call, and its temporary MiB."""
  compiled = jax.jit(fn).lower(*args).compile()
  temp = compiled.memory_analysis().temp_size_in_bytes / 2 ** 20
  jax.block_until_ready(compiled(*args))
  best = float('inf')
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    best = min(best, time.perf_counter() - start)
  return best, temp


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--image', type=int, default=224)
  parser.add_argument('--width', type=int, default=192)
  parser.add_argument('--heads', type=int, default=6)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--repeats', type=int, default=10)
  args = parser.parse_args()

  side, windows = args.image // 8, -(-args.image // 16)
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (args.batch, side, side, args.heads, args.width // args.heads)
  v, target = (jax.random.normal(k, shape, args.dtype) for k in keys[:2])
  weights = jax.nn.softmax(jax.random.normal(
      keys[2], (args.batch, windows, windows, args.heads, 9, 9))
                           ).astype(args.dtype)

  forms = {'shifted (ours)': outlook, 'unfold + fold': unfold_fold}
  print(f'{jax.devices()[0].device_kind}, {args.dtype}, weights '
        f'{weights.shape}, values {v.shape} '
        f'({v.nbytes / 2 ** 20:.1f} MiB)')
  print(f'{"form":16s} {"forward ms":>11s} {"temp MiB":>9s} '
        f'{"fwd+bwd ms":>11s} {"temp MiB":>9s}')
  for name, fn in forms.items():
    loss = lambda w, v, fn=fn: jnp.vdot(fn(w, v), target)
    forward = measure(fn, (weights, v), args.repeats)
    both = measure(jax.value_and_grad(loss, (0, 1)), (weights, v),
                   args.repeats)
    print(f'{name:16s} {1e3 * forward[0]:11.2f} {forward[1]:9.1f} '
          f'{1e3 * both[0]:11.2f} {both[1]:9.1f}')
  a, b = (jax.jit(fn)(weights, v).astype(jnp.float32) for fn in forms.values())
  print(f'max |difference| {jnp.max(jnp.abs(a - b)):.1e} of '
        f'{jnp.max(jnp.abs(b)):.1f}')


if __name__ == '__main__':
  main()
