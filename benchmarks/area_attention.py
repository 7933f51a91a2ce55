"""Measures area attention: its forms, ordinary attention, and a peer.

  python -m benchmarks.area_attention --quick      T = 197, areas of 2 and 4
  python -m benchmarks.area_attention              all T and areas (an hour)
  python -m benchmarks.area_attention --tpu        estimates of the TPU compiler

The forms are `ordinary` attention (attention.attend), `factored` and `explicit`
area attention, on a GPU `auto`, which is what models take there, and `peer`,
the PyTorch package `area-attention`, if it and torch are installed. Each is
measured as the attention alone and as a whole S/16 block, forward and forward +
backward, in float32 on a CPU and bfloat16 on accelerators.

The forms take turns, because the speed of a shared machine changes from one
second to the next. `ratio` is the time of a form divided by that of ordinary
attention in the same round: the median over the rounds, with its quartiles. On
a CPU the time is the CPU time of all threads, else wall time. Memory is that of
temporaries, without results, as the compiler reports it.

--tpu needs libtpu but no TPU. It compiles a whole block, forward + backward in
bfloat16, for a v3 core and a v5e chip. XLA's fusions have estimated cycles. A
Pallas kernel has none, so its cycles are the bundles of its final schedule,
times the steps of its grid. That leaves out the start and the fetch of a grid
step, about 0.35 us of DMA latency if it is not hidden.
"""

import argparse
import glob
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
import time

CLOCK = {'v3': 0.94e9, 'v5e': 1.5e9}  # cycles per second
ONE_TOPOLOGY = '--topology' in sys.argv
if ONE_TOPOLOGY:  # before JAX starts
  DUMP = tempfile.mkdtemp()
  os.environ.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_STDERR_LOG_LEVEL='3',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE='v3-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_MIN_LOG_LEVEL='3',
    LIBTPU_INIT_ARGS=f'--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true',
  )

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from vit_jax.models import attention, encoder, vit  # noqa: E402
from vit_jax.models.area.areas import num_areas  # noqa: E402
from vit_jax.models.area.attention import area_attend  # noqa: E402
from vit_jax.parallel.mesh import make_mesh, replicated  # noqa: E402

GRIDS = {65: 8, 197: 14, 577: 24}  # {tokens: patches on a side}
MAXIMA = {'2': (1, 2), '3': (1, 3), '4': (1, 4), '2x2': (2, 2), '3x3': (3, 3)}


def attend_fn(form: str, maximum: str, tokens: int):
  """The function that is called instead of `attention.attend`."""
  if form == 'ordinary':
    return attention.attend
  height, width = MAXIMA[maximum]
  grid = (GRIDS[tokens],) * 2 if height > 1 else None
  impl = {'kernel': 'auto'}.get(form, form)
  return area_attend((height, width), grid, impl=impl, weights=False)


def areas_of(maximum: str, tokens: int) -> int:
  height, width = MAXIMA[maximum]
  if height == 1:
    return num_areas((1, tokens), (height, width))
  return num_areas((GRIDS[tokens],) * 2, (height, width), True)


def program(
  attend, scope: str, backward: bool, batch: int, tokens: int, size: str, dtype
):
  """A function and its arguments' shapes; scope 'attention' or 'block'."""
  width, _, mlp_dim, heads = vit.SIZES[size]
  shape = jax.ShapeDtypeStruct
  if scope == 'attention':
    qkv = (shape((batch, tokens, heads, width // heads), dtype),) * 3
    forward = lambda p, x: attend(*x)[0]
    args = ({}, qkv, qkv[0])
  else:

    class Block(encoder.EncoderBlock):
      def _attend_fn(self, width):
        return attend

    block = Block(
      num_heads=heads,
      mlp_dim=mlp_dim,
      grid=(GRIDS[tokens],) * 2,
      prefix=1,
      dtype=dtype,
    )
    x = shape((batch, tokens, width), dtype)
    params = jax.eval_shape(
      lambda x: block.init(jax.random.key(0), x, 0.0, False), x
    )
    forward = lambda p, x: block.apply(p, x, 0.0, True)[0]
    args = (params, x, x)

  def both(params, x, g):
    out, pullback = jax.vjp(forward, params, x)
    return out, pullback(g)

  return (both if backward else lambda p, x, g: forward(p, x)), args


def peer(maximum: str, tokens: int, batch: int, heads: int, backward: bool):
  """The PyTorch package's attention alone, or None if it is not installed."""
  if not all(importlib.util.find_spec(m) for m in ('torch', 'area_attention')):
    return None
  import area_attention
  import torch

  height, width = MAXIMA[maximum]
  # The package has no class token beside a grid, so it gets the grid alone,
  # which is a little less work.
  side = GRIDS[tokens]
  memory = (side, side) if height > 1 else (1, tokens)
  module = area_attention.AreaAttention(
    key_query_size=64,
    max_area_height=height,
    max_area_width=width,
    memory_height=memory[0],
    memory_width=memory[1],
  )
  q, k, v, g = [
    torch.randn(batch * heads, math.prod(memory), 64, requires_grad=backward)
    for _ in range(4)
  ]

  def run():
    with torch.set_grad_enabled(backward):
      out = module(q, k, v)
      if backward:
        out.backward(g.detach())

  return run


def measure(runs: dict, repeats: int, clock) -> dict[str, list[float]]:
  """Seconds of each repetition of each run; the runs take turns."""
  times = {name: [] for name in runs}
  for run in runs.values():
    run()
  for _ in range(repeats):
    for name, run in runs.items():
      start = clock()
      run()
      times[name].append(clock() - start)
  return times


def compare(tokens: int, maximum: str, scope: str, backward: bool, args):
  """Prints one line for each form."""
  device = jax.devices()[0]
  on_cpu = device.platform == 'cpu'
  dtype = jnp.float32 if on_cpu else jnp.bfloat16
  runs, memory = {}, {}
  forms = ['ordinary', 'factored', 'explicit']
  if device.platform == 'gpu':
    forms.append('auto')
  for form in forms:
    fn, shapes = program(
      attend_fn(form, maximum, tokens),
      scope,
      backward,
      args.batch,
      tokens,
      args.size,
      dtype,
    )
    compiled = jax.jit(fn).lower(*shapes).compile()
    rng = np.random.default_rng(0)
    values = jax.tree.map(
      lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes
    )
    runs[form] = lambda c=compiled, v=values: jax.block_until_ready(c(*v))
    memory[form] = compiled.memory_analysis().temp_size_in_bytes / 2**20
  if scope == 'attention' and on_cpu and not args.no_peer:
    run = peer(maximum, tokens, args.batch, vit.SIZES[args.size][3], backward)
    if run is not None:
      runs['peer'] = run
  times = measure(
    runs, args.repeats, time.process_time if on_cpu else time.perf_counter
  )
  base = np.asarray(times['ordinary'])
  for form, seconds in times.items():
    low, ratio, high = np.quantile(
      np.asarray(seconds) / base, (0.25, 0.5, 0.75)
    )
    mib = f'{memory[form]:8.1f}' if form in memory else '       -'
    print(
      f'{tokens:5d} {maximum:>4s} {areas_of(maximum, tokens):6d} '
      f'{scope:9s} {"fwd+bwd" if backward else "fwd":7s} {form:9s}'
      f'{1e3 * np.median(seconds):9.1f} {ratio:7.2f} ({low:.2f}-{high:.2f})'
      f' {mib}',
      flush=True,
    )


def schedule_cycles(compiled, dump: str, before: set[str]) -> tuple[int, int]:
  """Estimated cycles of XLA's fusions, and of the Pallas kernels."""
  text = compiled.as_text()
  entry = text[text.index('\nENTRY') :]
  fusions = sum(
    map(
      int,
      re.findall(r'"estimated_cycles":"(\d+)"', entry[: entry.index('\n}')]),
    )
  )
  kernels = 0
  for path in set(glob.glob(f'{dump}/*analysis_final_bundles.txt')) - before:
    with open(path) as f:
      report = f.read()
    if 'TLP' not in path and 'tpu_custom_call' in report:
      kernels += int(re.search(r'total scheduled bundles:\s*(\d+)', report)[1])
  return fusions, kernels


def estimate(topology: str, args):
  """Prints the estimates of a block for one TPU topology."""
  from jax.experimental import topologies

  from vit_jax.models.area.kernel import heads_per_step

  device = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices[0]
  # Under a mesh, as in training, activations have fixed layouts.
  mesh = make_mesh(devices=[device])
  hertz = CLOCK[topology.split(':')[0]]
  heads = vit.SIZES[args.size][3]
  steps = args.batch * heads // heads_per_step(heads)
  base = None
  for maximum in args.areas or ('2', '4', '2x2'):
    for form in ('ordinary', 'kernel', 'factored', 'explicit'):
      if form == 'ordinary' and base is not None:
        continue
      before = set(glob.glob(f'{DUMP}/*analysis_final_bundles.txt'))
      fn, shapes = program(
        attend_fn(form, maximum, 197),
        'block',
        True,
        args.batch,
        197,
        args.size,
        jnp.bfloat16,
      )
      shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(
          s.shape, s.dtype, sharding=replicated(mesh)
        ),
        shapes,
      )
      with jax.set_mesh(mesh):
        compiled = jax.jit(fn).lower(*shapes).compile()
      fusions, bundles = schedule_cycles(compiled, DUMP, before)
      ms = 1e3 * (fusions + bundles * steps) / hertz
      base = base or ms
      shown = '' if form == 'ordinary' else maximum
      print(
        f'{topology:7s} {args.size}/16 {shown:>4s} {form:9s}'
        f'{ms:8.2f} ms {ms / base:6.2f}  (kernel '
        f'{1e3 * bundles * steps / hertz:.2f} ms) '
        f'{compiled.memory_analysis().temp_size_in_bytes / 2**20:6.0f} MiB',
        flush=True,
      )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--tpu', action='store_true')
  parser.add_argument('--topology', help='one of --tpu, such as v5e:2x2')
  parser.add_argument('--tokens', type=int, nargs='+', choices=list(GRIDS))
  parser.add_argument('--areas', nargs='+', choices=list(MAXIMA))
  parser.add_argument(
    '--scopes',
    nargs='+',
    default=['attention', 'block'],
    choices=('attention', 'block'),
  )
  parser.add_argument('--batch', type=int)
  parser.add_argument('--size', default='s', choices=list(vit.SIZES))
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--no-peer', action='store_true')
  args = parser.parse_args()
  if args.topology:
    args.batch = args.batch or 32
    estimate(args.topology, args)
    return
  if args.tpu:
    for topology in ('v3:2x2', 'v5e:2x2'):
      subprocess.run(
        [
          sys.executable,
          __file__,
          '--topology',
          topology,
          *(a for a in sys.argv[1:] if a != '--tpu'),
        ],
        check=True,
      )
    return
  args.batch = args.batch or 8
  device = jax.devices()[0]
  print(
    f'{device.device_kind} ({device.platform}), {args.size}/16, batch '
    f'{args.batch}, {args.repeats} repetitions'
  )
  print(
    '    T  max  areas scope     pass    form            ms   ratio '
    '(quartiles)  temp MiB'
  )
  quick = ([197], ['2', '4'])
  tokens = args.tokens or (quick[0] if args.quick else list(GRIDS))
  for t in tokens:
    for maximum in args.areas or (quick[1] if args.quick else list(MAXIMA)):
      for scope in args.scopes:
        for backward in (True,) if args.quick else (False, True):
          compare(t, maximum, scope, backward, args)


if __name__ == '__main__':
  main()
