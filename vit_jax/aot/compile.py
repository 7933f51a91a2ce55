"""Compiles a recipe for a TPU slice without one, and reads the result.

    vit-jax aot --config=configs/vit_l16_i21k.py --topology=v3:8x8

libtpu (`pip install 'vit_jax[tpu]'`) compiles for any TPU topology on a plain
machine. It raises the real out-of-memory error, and the program that it returns
lists the collectives and, for every instruction, estimated cycles. The report
has:

- memory: the peak per device by the compiler, and what the device has;
- collectives: how often each kind runs, over which mesh axes, and its bytes;
- step time: the sum of the estimated cycles (of a loop, times its trip count)
  over the clock rate. It covers the arithmetic and the memory traffic of one
  device. Communication is not in it and is given separately, as bytes over the
  published bandwidth.

Calibration: S/16 at batch 1,024 on a v3-8 (a recipe published as 6 to 7 hours
for 90 epochs, about 610 img/s per core) is estimated at 658 img/s per core
when built the same way: 8 % fast. Expect +-20 % of the arithmetic, and better
of comparisons; the paper's core-days on JFT (L/16 0.68k, H/14 2.5k) are 2.9
and 2.0 times those estimated for the recipes here.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from vit_jax.aot.chips import CHIPS, EXAMPLES, parse_topology
from vit_jax.aot.hlo import Program
from vit_jax.aot.report import CALIBRATION, advice


@dataclasses.dataclass(frozen=True)
class Request:
  """What a compilation is asked for; it is sent to a process of its own."""

  config: Any
  chip: str  # key of CHIPS
  grid: str
  effort: str  # 'full' or 'fast'
  evaluate: bool
  num_classes: int | None
  num_examples: int | None
  program_file: str | None


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What a train step must know of its data."""

  num_classes: int
  num_examples: int
  multi_label: bool


def _describe_topology(chip: str, grid: str):
  from jax.experimental import topologies

  options = {}
  if CHIPS[chip].config_name:
    options['chip_config_name'] = CHIPS[chip].config_name
  if grid in ('1x1', '1x1x1'):
    options['chips_per_host_bounds'] = [1, 1, 1]
  return topologies.get_topology_desc(
    platform='tpu', topology_name=f'{chip}:{grid}', **options
  )


def data_facts(
  config: Any, num_classes: int | None, num_examples: int | None
) -> DataFacts:
  """The facts of a recipe's data, also where the data is not on this machine.

  Args:
    config: the recipe.
    num_classes, num_examples: given by the user; None takes those of the
      recipe, then the published ones of a data set of so many classes, and
      opens the data set at last.
  """
  num_classes = num_classes or config.data.num_classes
  num_examples = num_examples or config.data.num_examples
  if num_classes and (num_examples or num_classes in EXAMPLES):
    packed = config.data.source == 'packed'
    return DataFacts(
      num_classes,
      num_examples or EXAMPLES[num_classes],
      packed and config.loss.name == 'sigmoid',
    )
  if not num_classes and config.data.source == 'tfds:imagenet2012':
    return DataFacts(1_000, num_examples or EXAMPLES[1_000], False)
  from vit_jax.recipe.build import open_train_source

  source = open_train_source(config)
  return DataFacts(
    num_classes or source.num_classes,
    num_examples or len(source),
    source.multi_label,
  )


def compile_recipe(request: Request) -> dict[str, Any]:
  """Compiles a recipe in this process; see `estimate` for the report."""
  from vit_jax.parallel.mesh import make_mesh
  from vit_jax.recipe.build import build
  from vit_jax.recipe.checks import check

  config, start = request.config, time.time()
  check(config)
  facts = data_facts(config, request.num_classes, request.num_examples)
  devices = _describe_topology(request.chip, request.grid).devices
  mesh = make_mesh(
    config.mesh.preset, config.mesh.fsdp, config.mesh.tensor, devices=devices
  )
  run = build(
    config,
    mesh,
    num_classes=facts.num_classes,
    num_examples=facts.num_examples,
  )
  report = _describe_run(request, run, devices)
  executable = _compile(_lower_train(config, run, facts), request, report)
  if executable is not None:
    _read_program(report, executable, run.mesh, request)
    _add_speed(report, run, devices)
  report['compile_seconds'] = round(time.time() - start, 1)
  if request.evaluate and executable is not None:
    _add_evaluation(report, request, run, facts)
  peak = max(report.get('peak_bytes', 0), report.get('eval_peak_bytes', 0))
  report['fits'] = report['fits'] and peak <= report['memory_limit']
  import jax

  report['compiler_gib'] = round(
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
  )
  report['libtpu'] = importlib.metadata.version('libtpu')
  report['jax'] = jax.__version__
  return report


def _describe_run(request: Request, run, devices) -> dict[str, Any]:
  """The part of the report that is known before anything is compiled."""
  import jax
  import jax.numpy as jnp

  from vit_jax.models import flops
  from vit_jax.parallel.mesh import batch_shards
  from vit_jax.recipe.keys import image_shape

  config, state, mesh = request.config, run.abstract_state, run.mesh
  batch_size = config.data.batch_size
  per_device = lambda tree: sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
  macs = flops.forward_macs(run.model, *image_shape(config))
  return {
    'config': config.run.name,
    'model': config.model.name,
    'topology': f'{request.chip}:{request.grid}',
    'devices': len(devices),
    'device': 'core' if request.chip in ('v2', 'v3') else 'chip',
    'mesh': dict(mesh.shape),
    'preset': config.mesh.preset,
    'remat': getattr(run.model, 'remat', 'none'),
    'scan': getattr(run.model, 'scan', False),
    'dtype': jnp.dtype(run.model.dtype).name,
    'accumulate': config.optim.accumulate,
    'batch_size': batch_size,
    'per_device_batch': batch_size / batch_shards(mesh),
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'parameter_bytes': per_device(state.params),
    'state_bytes': per_device(state),
    'memory_limit': int(CHIPS[request.chip].memory * 2**30),
    'fits': True,
    # A multiply-add is two operations; the backward pass takes twice as many
    # as the forward pass.
    'model_flops': 6 * macs * batch_size,
    'steps': run.total_steps,
  }


def _batch(batch_size: int, size, run, facts: DataFacts, **more) -> dict:
  """Shapes and shardings of a batch as the host sends it."""
  import jax
  import jax.numpy as jnp

  from vit_jax.parallel.mesh import BATCH

  array = lambda shape, dtype: jax.ShapeDtypeStruct(
    (batch_size, *shape), dtype, sharding=jax.NamedSharding(run.mesh, BATCH)
  )
  label = (
    array((facts.num_classes,), jnp.float32)
    if facts.multi_label
    else array((), jnp.int32)
  )
  others = {name: array((), dtype) for name, dtype in more.items()}
  return {'image': array((*size, 3), jnp.uint8), 'label': label, **others}


def _lower_train(config, run, facts: DataFacts):
  """The train step of the recipe, with its teacher, ready to be compiled."""
  import jax
  import jax.numpy as jnp

  from vit_jax.recipe.keys import host_shape
  from vit_jax.teachers.teacher import abstract_teacher
  from vit_jax.training import step as step_lib

  teacher, extras, more = None, {}, {}
  if config.loss.distill != 'none':
    teacher, extras['teacher'] = abstract_teacher(
      config, run.mesh, run.num_classes
    )
    more['index'] = jnp.int32  # of the example, for stored logits
  batch = _batch(config.data.batch_size, host_shape(config), run, facts, **more)
  with jax.set_mesh(run.mesh):
    step = step_lib.compile_train_step(
      step_lib.make_train_step(
        config,
        run.model,
        run.tx,
        run.schedule,
        run.num_classes,
        specs=run.update_specs,
        teacher=teacher,
      ),
      run.shardings,
      run.mesh,
    )
    return step.lower(run.abstract_state, batch, extras)


def _compile(lowered, request: Request, report: dict[str, Any]):
  """The executable; None, with the reason in the report, if it does not fit."""
  import jax

  options = {}
  if request.effort == 'fast':
    options['xla_optimization_level'] = 'EFFORT_O0'
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as e:
    message = str(e)
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    report['fits'] = False
    report['error'] = message.strip().splitlines()[0][:600]
    needed = re.search(r'\((\d+\.?\d*)([GM])\)', message) or re.search(
      r'[Uu]sed (\d+\.?\d*)([GM])', message
    )
    if needed:
      unit = 2**30 if needed[2] == 'G' else 2**20
      report['peak_bytes'] = int(float(needed[1]) * unit)
    return None


def _add_evaluation(
  report: dict[str, Any], request: Request, run, facts: DataFacts
) -> None:
  """Compiles the evaluation step that training runs, and adds its cost."""
  import jax
  import jax.numpy as jnp

  from vit_jax.evaluation.exact import make_eval_step
  from vit_jax.parallel.mesh import batch_shards
  from vit_jax.recipe.keys import host_shape, preprocessing

  config, shards = request.config, batch_shards(run.mesh)
  batch_size = config.eval.batch_size or config.data.batch_size
  batch_size = max(1, batch_size // shards) * shards
  batch = _batch(batch_size, host_shape(config), run, facts, mask=jnp.float32)
  step = jax.jit(
    make_eval_step(
      run.model,
      num_classes=facts.num_classes,
      preprocessing=preprocessing(config),
      loss=config.loss.name,
    )
  )
  state = run.abstract_state
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  with jax.set_mesh(run.mesh):
    executable = _compile(step.lower(variables, batch), request, report)
  if executable is None:
    return
  evaluation: dict[str, Any] = {}
  _read_program(
    evaluation,
    executable,
    run.mesh,
    dataclasses.replace(request, program_file=None),
  )
  report['eval_peak_bytes'] = evaluation['peak_bytes']
  report['eval_images_per_second'] = batch_size / max(
    evaluation['step_seconds'], 1e-9
  )


def _add_speed(report: dict[str, Any], run, devices) -> None:
  """Adds images/s, MFU and the length of the whole recipe."""
  from vit_jax.models import flops

  seconds, count = report['step_seconds'], len(devices)
  peak = flops.peak_flops(devices[0])
  report['images_per_second'] = report['batch_size'] / seconds
  report['images_per_second_per_device'] = report['images_per_second'] / count
  report['mfu'] = report['model_flops'] / (seconds * peak * count)
  report['days'] = run.total_steps * seconds / 86_400
  report['device_days'] = report['days'] * count


def _read_program(
  report: dict[str, Any], executable, mesh, request: Request
) -> None:
  """Adds memory, collectives and estimated time of the compiled program."""
  text, chip = executable.as_text(), CHIPS[request.chip]
  if request.program_file:
    pathlib.Path(request.program_file).write_text(text)
  memory, program = executable.memory_analysis(), Program(text)
  cycles, cycles_by_part = program.cycles()
  report['peak_bytes'] = int(
    getattr(memory, 'peak_memory_in_bytes', 0)
    or memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  report['argument_bytes'] = memory.argument_size_in_bytes
  report['temporary_bytes'] = memory.temp_size_in_bytes
  report['step_seconds'] = cycles / (chip.clock * 1e9)
  report['milliseconds_by_part'] = {
    name: round(value / (chip.clock * 1e6), 3)
    for name, value in cycles_by_part.items()
  }
  report['collectives'] = program.collectives(dict(mesh.shape))
  # The bandwidth is that of an all-reduce, which sends every byte twice: once
  # to be summed, once to be handed out. The others send it once.
  sent = sum(
    c['bytes'] * (1 if c['kind'] == 'all-reduce' else 0.5)
    for c in report['collectives']
  )
  report['wire_seconds'] = (
    sent / (chip.bandwidth * 1e9) if chip.bandwidth else None
  )


def estimate(
  config: Any,
  topology: str,
  *,
  effort: str = 'full',
  evaluation: bool = True,
  num_classes: int | None = None,
  num_examples: int | None = None,
  hlo: str | None = None,
  timeout: float = 3600,
) -> dict[str, Any]:
  """Compiles a recipe's train and eval step for a TPU topology.

  Args:
    config: the recipe.
    topology: 'v3:8x8' (a grid of chips) or 'v3-128' (cores).
    effort: 'full', or 'fast': a quick compilation whose memory (a little too
      high) and collectives count, but whose times mean nothing.
    evaluation: also compile the eval step.
    num_classes, num_examples: of the data, where it is not on this machine.
    hlo: file for the compiled program's text.
    timeout: seconds after which the compilation is given up.

  Returns:
    The report, plain JSON values: 'fits', 'devices', 'mesh', 'peak_bytes',
    'memory_limit', 'parameter_bytes' and 'state_bytes' per device,
    'collectives', 'model_flops', 'step_seconds' (estimated), 'wire_seconds',
    'images_per_second', 'mfu', 'days', 'device_days', 'advice' and more.

  Raises:
    ValueError: an unknown topology, a recipe that does not fit the mesh.
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
  report['advice'] = advice(report)
  report['note'] = CALIBRATION
  return report


def _compile_elsewhere(request: Request, timeout: float) -> dict[str, Any]:
  """Runs `compile_recipe` in a process of its own.

  The environment must be set before JAX starts there, and an unrolled H/14
  takes 11 GiB that are given back when the process ends.
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
