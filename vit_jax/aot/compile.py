"""Compiles the training and evaluation step of a recipe.

It runs in a process that `estimate.estimate` starts with the environment of
libtpu.
"""

import dataclasses
import importlib.metadata
import math
import re
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.aot import kernels
from vit_jax.aot.chips import CHIPS, describe_topology
from vit_jax.aot.hlo import Program
from vit_jax.aot.request import DataFacts, Request, data_facts
from vit_jax.evaluation.exact import make_eval_step
from vit_jax.files import write_atomically
from vit_jax.models import flops
from vit_jax.parallel.mesh import BATCH, batch_shards, make_mesh
from vit_jax.recipe.build import Run, build, compile_step
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import host_shape, preprocessing
from vit_jax.teachers.teacher import abstract_teacher
from vit_jax.training.memory import peak_bytes


def compile_recipe(request: Request) -> dict[str, Any]:
  """Compiles a recipe and returns the report of `estimate.estimate`."""
  config, start = request.config, time.monotonic()
  check(config)
  facts = data_facts(config, request.num_classes, request.num_examples)
  devices = describe_topology(request.chip, request.grid).devices
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
  traced = _trace_train(config, run, facts)
  executable = _compile(traced, request, run, report)
  if executable is not None:
    _read_program(report, executable, traced, run.mesh, request)
    _add_speed(report, run, devices)
  report['compile_seconds'] = round(time.monotonic() - start, 1)
  if request.evaluate and executable is not None:
    _add_evaluation(report, request, run, facts)
  peak = max(report.get('peak_bytes', 0), report.get('eval_peak_bytes', 0))
  report['fits'] = report['fits'] and peak <= report['memory_limit']

  report['compiler_gib'] = round(
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
  )
  report['libtpu'] = importlib.metadata.version('libtpu')
  report['jax'] = jax.__version__
  return report


def _describe_run(request: Request, run: Run, devices) -> dict[str, Any]:
  """The entries of the report that are known before compiling."""
  config, state, mesh = request.config, run.abstract_state, run.mesh
  batch_size = config.data.batch_size
  per_device = lambda tree: sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
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
    # A multiply-add is two operations, and the backward pass has twice as many
    # of them as the forward pass.
    'model_flops': 6 * run.macs * batch_size,
    'steps': run.total_steps,
  }


def _batch(
  batch_size: int, rounding: str, run: Run, facts: DataFacts, **more
) -> dict:
  """Shapes and shardings of the batch that the host sends."""
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
    (batch_size, *shape), dtype, sharding=jax.NamedSharding(run.mesh, BATCH)
  )
  label = (
    array((facts.num_classes,), jnp.float32)
    if facts.multi_label
    else array((), jnp.int32)
  )
  others = {name: array((), dtype) for name, dtype in more.items()}
  pixels = jnp.float32 if rounding == 'none' else jnp.uint8
  image = array((*host_shape(run.config), 3), pixels)
  return {'image': image, 'label': label, **others}


def _trace_train(config, run: Run, facts: DataFacts):
  """Traces the training step of a recipe, with its teacher."""
  teacher, extras, more = None, {}, {}
  if config.loss.distill != 'none':
    teacher, extras['teacher'] = abstract_teacher(
      config, run.mesh, run.num_classes
    )
    more['index'] = jnp.int32  # number of the example, for stored logits
  data = config.data
  batch = _batch(data.batch_size, data.rounding, run, facts, **more)
  with jax.set_mesh(run.mesh):
    step = compile_step(run, teacher=teacher)
    return step.trace(run.abstract_state, batch, extras)


def _compile(traced, request: Request, run: Run, report: dict[str, Any]):
  """Compiles a step; None if it does not fit, with the reason in the report."""
  options = {}
  if request.effort == 'fast':
    options['xla_optimization_level'] = 'EFFORT_O0'
  try:
    with jax.set_mesh(run.mesh):
      return traced.lower().compile(compiler_options=options)
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
  report: dict[str, Any], request: Request, run: Run, facts: DataFacts
) -> None:
  """Compiles the evaluation step that training runs, and adds its cost."""
  config, shards = request.config, batch_shards(run.mesh)
  batch_size = config.eval.batch_size or config.data.batch_size
  batch_size = max(1, batch_size // shards) * shards
  batch = _batch(batch_size, config.eval.rounding, run, facts, mask=jnp.float32)
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
    traced = step.trace(variables, batch)
  executable = _compile(traced, request, run, report)
  if executable is None:
    return
  evaluation: dict[str, Any] = {}
  _read_program(
    evaluation,
    executable,
    traced,
    run.mesh,
    dataclasses.replace(request, program_file=None),
  )
  report['eval_peak_bytes'] = evaluation['peak_bytes']
  report['eval_images_per_second'] = batch_size / max(
    evaluation['step_seconds'], 1e-9
  )


def _add_speed(report: dict[str, Any], run: Run, devices) -> None:
  """Adds images/s, MFU and the duration of the whole recipe to the report."""
  seconds, count = report['step_seconds'], len(devices)
  peak = flops.peak_flops(devices[0])
  report['images_per_second'] = report['batch_size'] / seconds
  report['images_per_second_per_device'] = report['images_per_second'] / count
  mfu = lambda seconds: report['model_flops'] / (seconds * peak * count)
  report['mfu'] = mfu(seconds)
  # Without any overlap of collectives, and with collectives that take no time.
  alone = report['compute_seconds']
  report['step_seconds_range'] = [alone, alone + report['wire_seconds']]
  report['mfu_range'] = [mfu(x) for x in report['step_seconds_range'][::-1]]
  report['days'] = run.total_steps * seconds / 86_400
  report['device_days'] = report['days'] * count


def _read_program(
  report: dict[str, Any], executable, traced, mesh, request: Request
) -> None:
  """Adds memory, collectives and estimated time of a program to the report."""
  text, chip = executable.as_text(), CHIPS[request.chip]
  if request.program_file:
    write_atomically(request.program_file, text)
  memory = executable.memory_analysis()
  prices = {}
  if request.effort == 'full':
    prices = kernels.prices(
      kernels.kernels(traced.jaxpr), request.chip, request.grid
    )
  program = Program(text, prices)
  cycles, cycles_by_kind = program.cycles()
  report['peak_bytes'] = peak_bytes(memory)
  report['argument_bytes'] = memory.argument_size_in_bytes
  report['temporary_bytes'] = memory.temp_size_in_bytes
  report['collectives'] = program.collectives(dict(mesh.shape))
  report['wire_seconds'] = sum(
    chip.wire_seconds(c['kind'], c['bytes']) for c in report['collectives']
  )
  second = 1 / (chip.clock * 1e9)  # per cycle
  report['compute_seconds'] = cycles * second
  report['step_seconds'] = program.seconds(second, chip.wire_seconds)
  report['milliseconds_by_part'] = {
    name: round(1e3 * value * second, 3)
    for name, value in cycles_by_kind.items()
  }
  report['kernels'] = [
    dict(
      name=price['name'],
      executions=calls,
      milliseconds=round(1e3 * price['cycles'] * second, 4),
      by=price['by'],
      bundles=price['bundles'],
      steps=price['steps'],
    )
    if price
    else dict(name='unknown', executions=calls, milliseconds=None, by='none')
    for calls, price in _calls(program, prices)
  ]


def _calls(program: Program, prices: dict) -> list[tuple[int, dict | None]]:
  """How often a program calls its Pallas kernels, with their prices."""
  calls = program.kernel_calls().items()
  return [(times, prices.get(name)) for name, times in calls]
