"""Measures how long commands and imports take until they are done.

  python -m benchmarks.startup --quick
  python -m benchmarks.startup

Every run is a new process of Python. The compilation cache is empty for the
rows "cold" and filled for the rows "warm". A run of "first step" is the command
that trains ViT-S/16 at 224 px with 16 images, from its start to the end of its
first step, with the command's own settings of the cache. timm is a peer where
it is installed.
"""

import argparse
from collections.abc import Callable
import importlib.util
import os
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import machine, turns

_COMMAND = 'import sys; from vit_jax.cli.parser import main; sys.exit(main())'
_FIRST_IMAGE = """
import jax, numpy as np, vit_jax
model = vit_jax.create_model('vit_s16')
x = np.zeros((1, 224, 224, 3), np.float32)
v = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()
forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
jax.block_until_ready(forward(v, x))
"""
_TIMMS_FIRST_IMAGE = """
import timm, torch
model = timm.create_model('vit_small_patch16_224').eval()
with torch.inference_mode():
  model(torch.zeros(1, 3, 224, 224))
"""

_STEP = 'first step'
_STEP_ARGS = (
  *('-m', 'vit_jax.main', '--config=configs/vit_s16_i1k.py:smoke'),
  *('--config.model.width=384', '--config.model.depth=12'),
  *('--config.model.num_heads=6', '--config.model.mlp_dim=1536'),
  *('--config.model.patch_size=16', '--config.model.representation_size=384'),
  '--config.data.image_size=224',
)
_TIMMS_STEP = """
import sys, timm, torch
model = timm.create_model('vit_small_patch16_224').train()
optimizer = torch.optim.AdamW(model.parameters())
forward = torch.compile(model) if sys.argv[1:] else model
images, labels = torch.rand(16, 3, 224, 224), torch.randint(1000, (16,))
torch.nn.functional.cross_entropy(forward(images), labels).backward()
optimizer.step()
"""


def command(settings: dict[str, Any]) -> Callable[[], object]:
  """Runs Python with `argv` in a new process.

  Args:
    settings: 'argv'; 'cold', whether every run has an empty cache of compiled
      programs; 'until', how the line begins at which a run ends; 'at_first',
      the same for the first run, which fills the cache.
  """
  argv = [sys.executable, *settings['argv']]
  kept = tempfile.TemporaryDirectory()
  # Each run of a cold program is as the first, so none has to prepare it.
  prepares = iter([bool(settings.get('cold'))])
  ends = [line for k in ('at_first', 'until') if (line := settings.get(k))]

  def once():
    if next(prepares, False):
      return
    with tempfile.TemporaryDirectory() as empty:
      folder = empty if settings.get('cold') else kept.name
      if ends:
        line = ends.pop(0) if len(ends) > 1 else ends[0]
        env = {**os.environ, 'XDG_CACHE_HOME': folder}
        _run_until(line, [*argv, f'--workdir={empty}/run'], env)
        return
      env = turns.with_cache(folder)
      env['TORCHINDUCTOR_CACHE_DIR'] = folder  # of torch.compile
      subprocess.run(
        argv,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
      )

  return once


def _run_until(line: str, argv: list[str], env: dict[str, str]) -> None:
  """Runs a program until it prints a line that begins so."""
  with subprocess.Popen(
    argv,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env=env,
    text=True,
  ) as program:
    reached = any(said.startswith(line) for said in program.stdout or ())
    program.kill()
  if not reached:
    raise RuntimeError(f'{argv} ended before a line {line!r}')


def _candidate(name: str, *argv: str, **settings) -> turns.Candidate:
  settings['argv'] = list(argv)
  return turns.Candidate(name, 'benchmarks.startup:command', settings)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument(
    '--quick',
    action='store_true',
    help='1 round without compiled timm, under 5 minutes',
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  rows = [
    _candidate('python', '-c', 'pass'),
    _candidate('vit-jax --help', '-c', _COMMAND, '--help'),
    _candidate('vit-jax --version', '-c', _COMMAND, '--version'),
    _candidate('vit-jax models', '-c', _COMMAND, 'models'),
    _candidate('import vit_jax', '-c', 'import vit_jax'),
    _candidate('first image, cold', '-c', _FIRST_IMAGE, cold=True),
    _candidate('first image, warm', '-c', _FIRST_IMAGE),
    _candidate(f'{_STEP}, cold', *_STEP_ARGS, cold=True, until='compiled in'),
    # The step is kept after it has run once.
    _candidate(
      f'{_STEP}, warm', *_STEP_ARGS, at_first='step 3/', until='compiled in'
    ),
  ]
  if all(importlib.util.find_spec(p) for p in ('torch', 'timm')):
    rows.append(_candidate('import timm', '-c', 'import timm'))
    rows += [
      _candidate('first image, timm', '-c', _TIMMS_FIRST_IMAGE),
      _candidate(f'{_STEP}, timm', '-c', _TIMMS_STEP),
    ]
    compiled = _candidate(
      f'{_STEP}, timm compiled', '-c', _TIMMS_STEP, 'compile', cold=True
    )
    rows += [] if args.quick else [compiled]
  else:
    print('torch and timm are not installed: left out', file=sys.stderr)
  measured = turns.measure(rows, 1 if args.quick else args.rounds)
  print(machine.describe())
  print(f'\n{turns.seconds_table(measured)}')
  if args.json:
    turns.write_json(args.json, {'startup': measured})


if __name__ == '__main__':
  main()
