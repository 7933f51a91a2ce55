"""Runs and files that version 0.1.0 wrote, and how they are used.

`tests/fixtures/earlier/make.py` made them with these functions, and
`tests/test_earlier.py` uses them with the code of today.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import zipfile

import numpy as np

from tests.helpers import ROOT

FIXTURES = pathlib.Path(ROOT, 'tests', 'fixtures', 'earlier')
RECIPES = ('vit', 'ceit', 'mixer')  # arguments of recipe.py
RUNS = (*RECIPES, 'flowers')  # flowers is a fine-tuning
# The fine-tuning starts from the parameters of the run `vit`.
FINETUNE = (
  'finetune',
  '--weights',
  'vit',
  '--data',
  'images',
  '--workdir',
  'flowers',
  '--steps',
  '12',
  '--batch',
  '8',
  '--image-size',
  '16',
  '--lr',
  '0.1',
)
IMAGES = 'images/test'
# The weights of every run are converted to these files; the fixtures have only
# those of `flowers`.
CONVERSIONS = tuple(
  f'{run}.{suffix}' for run in RUNS for suffix in ('npz', 'safetensors')
)
EXPORTED = 'flowers.stablehlo'
# Values of metrics.jsonl that depend on the clock.
CLOCK = (
  'seconds',
  'img_per_sec',
  'img_per_sec_per_device',
  'eta_seconds',
  'input_wait',
  'mfu',
  'goodput',
  'steps_repeated',
)

# Every number depends on the program, that is on these packages,
PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'opencv-python-headless',
  'pillow',
)
# and on the instructions that XLA finds on the CPU: with other vectors or
# without a fused multiply-add, sums are rounded in another order.
CPU_FEATURES = (
  'sse4_1',
  'sse4_2',
  'avx',
  'avx2',
  'fma',
  'f16c',
  'avx_vnni',
  'avx512',
  'amx',
)
# The number of cores must not matter: one thread for each matrix product.
XLA_FLAGS = '--xla_cpu_multi_thread_eigen=false'


def environment(**more) -> dict[str, str]:
  """The environment of a process: one device, XLA's default options."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': ROOT,
    'XLA_FLAGS': XLA_FLAGS,
    **more,
  }


def machine() -> dict:
  """The properties of a machine that the last bit of a result depends on."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = ''
  cpu = {}
  try:  # on Linux; elsewhere the CPU counts as another one
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      key, _, value = line.partition(':')
      cpu.setdefault(key.strip(), value.strip())
  except OSError:
    pass
  return {
    'architecture': platform.machine(),
    'packages': versions,
    # The family and model stand for the sizes of the caches, which decide
    # how matrix products are cut into blocks.
    'cpu': [cpu.get(k, '') for k in ('vendor_id', 'cpu family', 'model')],
    'cpu_features': sorted(
      x for x in cpu.get('flags', '').split() if x.startswith(CPU_FEATURES)
    ),
  }


def train_command(run: str) -> list[str]:
  """The command that starts or resumes a run."""
  if run == 'flowers':
    code = 'import sys; from vit_jax.cli.parser import main; sys.exit(main())'
    return [sys.executable, '-c', code, *FINETUNE]
  return [
    sys.executable,
    '-m',
    'vit_jax.main',
    '--workdir',
    run,
    f'--config={FIXTURES / "recipe.py"}:{run}',
  ]


def train(run: str, folder, env=None) -> str:
  """Trains to the end in `folder`; returns what the command printed."""
  done = subprocess.run(
    train_command(run),
    cwd=folder,
    env=env or environment(),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def vit_jax(commands, folder, env=None) -> None:
  """Runs commands of vit-jax, one after the other, in one process."""
  code = (
    'import json, sys\nfrom vit_jax.cli.parser import main\n'
    'for command in json.loads(sys.argv[1]):\n'
    '  code = main(command)\n'
    '  if code: sys.exit(code)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, json.dumps(commands)],
    cwd=folder,
    env=env or environment(),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-2000:]


def predict_command(weights: str, output: str) -> list[str]:
  return ['predict', weights, IMAGES, '-k', '100', f'--json={output}']


def unpack(run: str, folder) -> pathlib.Path:
  """The interrupted run in `folder`, with the images if they are needed."""
  if run == 'flowers':
    copy_images(folder)
  with zipfile.ZipFile(FIXTURES / f'{run}.zip') as archive:
    archive.extractall(folder)
  return pathlib.Path(folder, run)


def copy_images(folder):
  """Copies the images to `folder`/images, for one run."""
  shutil.copytree(
    FIXTURES / 'images', pathlib.Path(folder, 'images'), dirs_exist_ok=True
  )


def metrics(workdir) -> list[dict]:
  """The lines of metrics.jsonl, without values that depend on the clock."""
  lines = pathlib.Path(workdir, 'metrics.jsonl').read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k not in CLOCK and not k.startswith('time_')
    }
    for line in lines
  ]


def plain(arrays) -> dict[str, np.ndarray]:
  """Converts bfloat16, which .npz files cannot have, to float32."""
  return {
    k: x.astype(np.float32) if x.dtype.name == 'bfloat16' else x
    for k, x in arrays.items()
  }


def digest(path) -> str:
  """SHA-256 of the names, types, shapes and bytes of a file's tensors.

  Not of the whole file: a later version may say more in its metadata.
  """
  from vit_jax.weights import read

  arrays = read(path).arrays
  result = hashlib.sha256()
  for name in sorted(arrays):
    x = np.ascontiguousarray(arrays[name])
    result.update(f'{name} {x.dtype} {x.shape}\n'.encode() + x.tobytes())
  return result.hexdigest()
