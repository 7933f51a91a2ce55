"""Measures outlook attention: shifted products, and unfold, matmul and fold.

  python benchmarks/outlook_attention.py --batch 8 --image 224 --dtype float32
  python benchmarks/outlook_attention.py --batch 32 --dtype bfloat16 \
      --topology v5e:1x1        the TPU compiler's estimate; needs libtpu

It runs the mixing step of VOLO-D1's first stage (28x28 map at 224 px, width
192, 6 heads) in both forms, forward and forward + backward. It prints the time,
the memory of temporaries as the compiler reports it, and the largest difference
of the results.

Measured on 2 CPU cores, batch 8, float32: the shifted form takes 1.9 ms and 11
MiB forward, 69 ms and 38 MiB with backward; unfold and fold take 253 ms and 21
MiB, 467 ms and 42 MiB. Estimates for TPUs, batch 32, bfloat16, forward and with
backward: on a v5e 3.2 and 8.5 ms, unfold and fold 5.6 and 12.8; on a v3 5.8 and
14.8 ms, unfold and fold 9.9 and 21.5. Temporaries forward: 0 MiB (v5e) and 101
MiB (v3), unfold and fold 294 and 404.
"""

import argparse
import functools
import os
import sys
import time

if '--topology' in sys.argv:  # before JAX starts
  os.environ.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_STDERR_LOG_LEVEL='3',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE='v3-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_MIN_LOG_LEVEL='3',
  )

import jax
import jax.numpy as jnp

from vit_jax.models.outlook import outlook

CLOCK = {'v3': 0.94e9, 'v5e': 1.5e9}  # cycles per second


def unfold_fold(weights, v):
  """The published form: 3x3 patches at stride 2, a matmul, and a sum (fold)."""
  batch, height, width, heads, head_width = v.shape
  _, h, w = weights.shape[:3]

  def unfold(x):
    patches = jax.lax.conv_general_dilated_patches(
      x,
      (3, 3),
      (2, 2),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return patches.reshape(batch, h, w, heads, head_width, 9)

  values, fold = jax.vjp(
    unfold, v.reshape(batch, height, width, heads * head_width)
  )
  mixed = jnp.einsum('bhwnqk,bhwnck->bhwncq', weights, values)
  return fold(mixed)[0].reshape(v.shape)


def measure(compiled, args, repeats: int) -> float:
  """Best milliseconds of a compiled call."""
  jax.block_until_ready(compiled(*args))
  best = float('inf')
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    best = min(best, time.perf_counter() - start)
  return 1e3 * best


def estimate(compiled, chip: str) -> float:
  """Milliseconds by the TPU compiler's estimate."""
  from vit_jax.aot.hlo import Program

  cycles, _ = Program(compiled.as_text()).cycles()
  return 1e3 * cycles / CLOCK[chip]


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--image', type=int, default=224)
  parser.add_argument('--width', type=int, default=192)
  parser.add_argument('--heads', type=int, default=6)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--topology', help='estimate for a TPU, such as v5e:1x1')
  args = parser.parse_args()

  side, windows = args.image // 8, -(-args.image // 16)
  v_shape = (args.batch, side, side, args.heads, args.width // args.heads)
  w_shape = (args.batch, windows, windows, args.heads, 9, 9)
  if args.topology:
    from jax.experimental import topologies

    chip = args.topology.partition(':')[0]
    device = topologies.get_topology_desc(
      platform='tpu',
      topology_name=args.topology,
      chips_per_host_bounds=[1, 1, 1],
    ).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    make = lambda shape: jax.ShapeDtypeStruct(
      shape, args.dtype, sharding=sharding
    )
    weights, v, target = make(w_shape), make(v_shape), make(v_shape)
  else:
    keys = jax.random.split(jax.random.key(0), 3)
    device = jax.devices()[0]
    v, target = (jax.random.normal(k, v_shape, args.dtype) for k in keys[:2])
    weights = jax.nn.softmax(jax.random.normal(keys[2], w_shape)).astype(
      args.dtype
    )

  def with_gradients(fn, weights, v, target):
    y, backward = jax.vjp(fn, weights, v)
    return y, backward(target)

  print(
    f'{device.device_kind}, {args.dtype}, weights {w_shape}, values {v_shape}'
  )
  print(
    f'{"form":16s} {"forward ms":>11s} {"temp MiB":>9s} '
    f'{"fwd+bwd ms":>11s} {"temp MiB":>9s}'
  )
  forms = {'shifted (ours)': outlook, 'unfold + fold': unfold_fold}
  for name, fn in forms.items():
    line = f'{name:16s}'
    for call, inputs in (
      (fn, (weights, v)),
      (functools.partial(with_gradients, fn), (weights, v, target)),
    ):
      compiled = jax.jit(call).lower(*inputs).compile()
      temp = compiled.memory_analysis().temp_size_in_bytes / 2**20
      ms = (
        estimate(compiled, chip)
        if args.topology
        else measure(compiled, inputs, args.repeats)
      )
      line += f' {ms:11.2f} {temp:9.1f}'
    print(line, flush=True)
  if not args.topology:
    a, b = (
      jax.jit(fn)(weights, v).astype(jnp.float32) for fn in forms.values()
    )
    print(
      f'max |difference| {jnp.max(jnp.abs(a - b)):.1e} of '
      f'{jnp.max(jnp.abs(b)):.1f}'
    )


if __name__ == '__main__':
  main()
