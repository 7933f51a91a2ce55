"""Measures how long a run waits for a checkpoint, and what checksums cost.

  python -m benchmarks.checkpoints --quick
  python -m benchmarks.checkpoints --model vit_s16 --rounds 8

It saves and restores a training state (parameters and the two moments of Adam)
with and without checksums, in turns, so that a busy machine treats both alike.
A save counts until the step is complete. "the run waits" is how long of that
the training loop stands still: until the arrays are copied, after which the
files are written while training goes on. The checksums themselves are also
measured alone, because their share is smaller than what a save varies by.

Measured on two cores that did nothing else, with isal: vit_b16 (1,039 MB, 600
arrays, 4 rounds): a save takes 3.69 s and its checksums 0.076 s (2.0 % of the
wall time, 3.2 % of the CPU time). vit_l16 (3,652 MB, 2 rounds): 11.3 s and
0.253 s (2.2 %, 3.4 %). Reading the arrays from memory takes most of it. Before
the threads shared the arrays by their size, vit_b16 took 0.141 s (3.9 %): every
second array is a kernel, so one thread had nearly all bytes.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import machine
import vit_jax
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.weights import checksums
from vit_jax.weights.metadata import WeightsMetadata

_REAL = checksums.of_tree, checksums.compare


def state(name: str) -> dict:
  """Parameters and moments of a model, with random numbers."""
  model = vit_jax.create_model(name)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), images
  )
  rng = np.random.default_rng(0)
  fill = lambda s: jax.device_put(rng.standard_normal(s.shape, np.float32))
  return {
    part: jax.tree.map(fill, shapes['params'])
    for part in ('params', 'first_moment', 'second_moment')
  }


def switch(on: bool) -> None:
  """Turns the checksums of saving and restoring on or off."""
  checksums.of_tree, checksums.compare = (
    _REAL if on else (lambda tree: {}, lambda tree, stored: ([], []))
  )


def measured(work: Callable[[], object]) -> tuple[float, float]:
  """Wall seconds and CPU seconds of all threads."""
  cpu, wall = time.process_time(), time.perf_counter()
  work()
  return time.perf_counter() - wall, time.process_time() - cpu


def save(tree, folder: pathlib.Path) -> tuple[float, float]:
  """Saves a step, and returns wall and CPU seconds for which a run waits."""
  shutil.rmtree(folder, ignore_errors=True)
  checkpoints = Checkpoints(folder)
  waited = measured(lambda: checkpoints.save(1, tree, WeightsMetadata()))
  checkpoints.wait()
  return waited


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='vit_s16')
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--folder', help='where it saves; a temporary folder')
  parser.add_argument(
    '--quick', action='store_true', help='a small model, under a minute'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  if args.quick:
    args.model, args.rounds = 'vit_ti16', 3
  print(machine.describe())
  tree = state(args.model)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
  size = sum(x.nbytes for x in jax.tree.leaves(tree))
  times = {(what, on): [] for what in ('save', 'restore') for on in (0, 1)}
  alone, waits = [], []
  with tempfile.TemporaryDirectory(dir=args.folder) as name:
    folder = pathlib.Path(name) / 'run'
    save(tree, folder)  # the first one also imports and allocates
    for _ in range(args.rounds):
      for on in (0, 1):
        switch(bool(on))
        stall = []
        times['save', on].append(
          measured(lambda: stall.append(save(tree, folder)))
        )
        waits += stall if on else []
        restore = lambda: Checkpoints(folder).restore(abstract)
        times['restore', on].append(measured(restore))
      alone.append(measured(lambda: _REAL[0](tree)))
  print(
    f'{args.model}: {size / 1e6:.0f} MB, {len(jax.tree.leaves(tree))} arrays, '
    f'medians of {args.rounds} rounds, {checksums.crc32.__module__}'
  )
  print('                           wall s   CPU s')
  medians = lambda pairs: [statistics.median(x) for x in zip(*pairs)]
  for (what, on), pairs in times.items():
    label = f'{what} {"with" if on else "without"} checksums'
    wall, cpu = medians(pairs)
    print(f'{label:<26} {wall:6.3f}  {cpu:6.3f}')
  stall, cpu = medians(waits)
  print(f'{"of it, the run waits":<26} {stall:6.3f}  {cpu:6.3f}')
  wall, cpu = medians(alone)
  print(f'{"the checksums alone":<26} {wall:6.3f}  {cpu:6.3f}')
  whole, _ = medians(times['save', 1])
  print(f'the run waits {stall:.2f} s for a save of {whole:.2f} s')
  plain = medians(times['save', 0])
  print(
    f'share of a save: {wall / plain[0]:.1%} of the wall time, '
    f'{cpu / plain[1]:.1%} of the CPU time'
  )
  if args.json:
    runs = {
      f'{what} {"with" if on else "without"} checksums': pairs
      for (what, on), pairs in times.items()
    }
    runs |= {'the run waits': waits, 'the checksums alone': alone}
    result = {'environment': machine.environment(), 'model': args.model}
    result |= {'megabytes': size / 1e6, '(wall, CPU) seconds': runs}
    pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
