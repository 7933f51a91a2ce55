"""Compiles a recipe for a TPU slice, on a machine without TPUs.

    vit-jax aot configs/vit_l16_i21k.py --topology=v3:8x8

libtpu (`pip install 'vit_jax[tpu]'`) compiles for any TPU topology on a plain
machine. It raises the same out-of-memory error as on the TPU. The program that
it returns lists the collectives, and estimated cycles for every instruction.
The report has:

- memory: the peak per device, as the compiler computes it, and its limit;
- collectives: how often each kind runs, over which mesh axes, and its bytes;
- step time: the sum of the estimated cycles, times the trip count for
  instructions in a loop, divided by the clock rate. It covers arithmetic and
  memory traffic of one device. Pallas kernels have no estimated cycles; they
  are priced by the compiler's schedule (`aot.kernels`). Collectives take their
  bytes divided by the published bandwidth, at the point of the schedule where
  they stand: what the schedule computes between their start and their end hides
  them. The report has the range from all to none of them hidden.

Calibration: a ViT-S/16 with batch 1,024 on a v3-8 was published with 6 to 7
hours for 90 epochs, about 610 img/s per core. The same model is estimated at
658 img/s per core, 8 % too fast. Expect an error of 20 % in absolute times, and
less in comparisons. The ViT paper's core-days on JFT (L/16 0.68k, H/14 2.5k)
are 2.9 and 2.0 times the estimates for the recipes here.
"""

import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from typing import Any

from vit_jax.aot.chips import CHIPS, parse_topology
from vit_jax.aot.compile import compile_recipe
from vit_jax.aot.report import CALIBRATION, advice
from vit_jax.aot.request import Request
from vit_jax.recipe.sections import Config


def estimate(
  config: Config,
  topology: str,
  *,
  effort: str = 'full',
  evaluation: bool = True,
  num_classes: int | None = None,
  num_examples: int | None = None,
  hlo: str | None = None,
  timeout: float = 3600,
) -> dict[str, Any]:
  """Compiles a recipe's training and evaluation step for a TPU topology.

  Args:
    config: the recipe.
    topology: 'v3:8x8' (a grid of chips) or 'v3-128' (cores).
    effort: 'full', or 'fast' for a quick compilation with right collectives, a
      little too much memory, and meaningless times.
    evaluation: also compile the evaluation step.
    num_classes, num_examples: number of classes and of training images, if the
      data is not on this machine.
    hlo: file to which the text of the compiled program is written.
    timeout: seconds after which the compilation is stopped.

  Returns:
    The report, plain JSON values: 'fits', 'devices', 'mesh', 'peak_bytes',
    'memory_limit', 'parameter_bytes' and 'state_bytes' per device,
    'collectives', 'kernels', 'model_flops', 'step_seconds' (estimated, with
    collectives), 'compute_seconds', 'wire_seconds', 'step_seconds_range',
    'images_per_second', 'mfu', 'days', 'device_days', 'advice' and more.

  Raises:
    ValueError: an unknown topology, or a recipe that does not fit the mesh.
    RuntimeError: libtpu is not installed, or the compiler failed.
  """
  chip, grid = parse_topology(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise RuntimeError(
      "libtpu is not installed: pip install 'vit_jax[tpu]' (684 MB, no TPU "
      'needed)'
    )
  report = _compile_elsewhere(
    Request(
      config,
      chip,
      grid,
      effort=effort,
      evaluate=evaluation,
      num_classes=num_classes,
      num_examples=num_examples,
      program_file=hlo,
    ),
    timeout,
  )
  if 'value_error' in report:
    raise ValueError(report['value_error'])
  report['chips'] = report['devices'] // CHIPS[chip].devices
  if 'days' in report:
    report['chip_hours'] = 24 * report['days'] * report['chips']
  report['advice'] = advice(report)
  report['note'] = CALIBRATION
  return report


def _compile_elsewhere(request: Request, timeout: float) -> dict[str, Any]:
  """Runs `compile_recipe` in another process.

  libtpu's environment must be set before JAX starts. Compiling an unrolled H/14
  also takes 11 GiB, which are free again when the process has ended.
  """
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  env.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE='v3-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_STDERR_LOG_LEVEL='3',
    TPU_MIN_LOG_LEVEL='3',
  )
  with tempfile.TemporaryDirectory() as folder:
    question = pathlib.Path(folder, 'request.pickle')
    answer = pathlib.Path(folder, 'report.json')
    question.write_bytes(pickle.dumps(request))
    done = subprocess.run(
      [sys.executable, '-m', 'vit_jax.aot', str(question), str(answer)],
      env=env,
      capture_output=True,
      text=True,
      timeout=timeout,
    )
    if not answer.exists():
      raise RuntimeError(
        f'the compiler process ended with {done.returncode}: '
        + done.stderr[-2000:]
      )
    return json.loads(answer.read_text())


def answer_request(question: str, answer: str) -> None:
  """Reads a pickled Request, compiles it, and writes the report as JSON."""
  request = pickle.loads(pathlib.Path(question).read_bytes())
  try:
    report = compile_recipe(request)
  except ValueError as e:
    report = {'value_error': str(e)}
  pathlib.Path(answer).write_text(json.dumps(report))
