"""Compiles a recipe for a TPU slice that is not there, and reads the result.

    vit-jax aot --config=configs/vit_l16_i21k.py --topology=v3:8x8

libtpu (`pip install 'vit_jax[tpu]'`) compiles for any TPU topology on a plain
machine. It raises the real out-of-memory error, lists the real collectives,
and its schedule carries cycle estimates. What is reported:

- memory: the compiler's peak per device against the device's;
- collectives: the executions, bytes and mesh axes in the compiled program;
- step time: the schedule's estimated cycles, loop bodies times their trip
  counts, at the chip's clock. An estimate of the arithmetic and the memory
  traffic of one device. Time on the wire is not in it, and is given beside it
  as the all-reduced and gathered bytes over the published bandwidth.

Calibration: S/16 at batch 1,024 on a v3-8 (a recipe published as 6 to 7 hours
for 90 epochs, about 610 img/s per core) is estimated at 658 img/s per core
when built the same way: 8 % fast. Expect +-20 % of the arithmetic, and better
of comparisons; the paper's core-days on JFT (L/16 0.68k, H/14 2.5k) are 2.9
and 2.0 times those estimated for the recipes here.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import time

from vit_jax.aot.chips import CHIPS, EXAMPLES, parse_topology
from vit_jax.aot.hlo import Program
from vit_jax.aot.report import CALIBRATION, advice

# ------------------------------------------------------------ the compilation


def _describe_topology(chip: str, grid: str):
  from jax.experimental import topologies

  options = {}
  if 'chip_config_name' in CHIPS[chip]:
    options['chip_config_name'] = CHIPS[chip]['chip_config_name']
  if grid in ('1x1', '1x1x1'):
    options['chips_per_host_bounds'] = [1, 1, 1]
  return topologies.get_topology_desc(
    platform='tpu', topology_name=f'{chip}:{grid}', **options
  )


def _facts(config, num_classes, num_examples) -> tuple[int, int, bool]:
  """Classes, training examples and multi-label, with or without the data."""
  num_classes = num_classes or config.data.num_classes
  num_examples = num_examples or config.data.num_examples
  if num_classes and (num_examples or num_classes in EXAMPLES):
    packed = config.data.source == 'packed'
    return (
      num_classes,
      num_examples or EXAMPLES[num_classes],
      packed and config.loss.name == 'sigmoid',
    )
  if not num_classes and config.data.source == 'tfds:imagenet2012':
    return 1_000, num_examples or EXAMPLES[1_000], False
  from vit_jax.recipe.build import open_train_source

  source = open_train_source(config)
  return (
    num_classes or source.num_classes,
    num_examples or len(source),
    source.multi_label,
  )


def _compile(request: dict) -> dict:
  """Runs in a process of its own: compiles, and returns the report."""
  import jax
  import jax.numpy as jnp

  from vit_jax.evaluation.exact import make_eval_step
  from vit_jax.models import flops
  from vit_jax.parallel.mesh import BATCH, batch_shards, make_mesh
  from vit_jax.recipe.build import build, host_shape
  from vit_jax.recipe.checks import check
  from vit_jax.recipe.keys import image_shape, preprocessing
  from vit_jax.training import step as step_lib

  config, chip, grid = request['config'], request['chip'], request['grid']
  facts, start = CHIPS[chip], time.time()
  check(config)
  num_classes, num_examples, multi_label = _facts(
    config, request['num_classes'], request['num_examples']
  )
  devices = _describe_topology(chip, grid).devices
  mesh = make_mesh(
    config.mesh.preset, config.mesh.fsdp, config.mesh.tensor, devices=devices
  )
  run = build(config, mesh, num_classes=num_classes, num_examples=num_examples)
  batch_size, count = config.data.batch_size, len(devices)
  split = jax.NamedSharding(mesh, BATCH)
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
    (batch_size, *shape), dtype, sharding=split
  )
  labels = (
    array((num_classes,), jnp.float32) if multi_label else array((), jnp.int32)
  )
  batch = {'image': array((*host_shape(config), 3), jnp.uint8), 'label': labels}
  per_device = lambda tree: sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
  state = run.abstract_state
  macs = flops.forward_macs(run.model, *image_shape(config))
  report = {
    'config': config.run.name,
    'model': config.model.name,
    'topology': f'{chip}:{grid}',
    'devices': count,
    'device': 'core' if chip in ('v2', 'v3') else 'chip',
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
    'memory_limit': int(facts['memory'] * 2**30),
    'fits': True,
    'model_flops': 6 * macs * batch_size,
    'steps': run.total_steps,
  }
  options = (
    {'xla_optimization_level': 'EFFORT_O0'}
    if (request['effort'] == 'fast')
    else {}
  )

  def compiled(step, *args):
    try:
      return step.lower(*args).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      report['fits'] = False
      report['error'] = str(e).strip().splitlines()[0][:600]
      needed = re.search(r'\((\d+\.?\d*)([GM])\)', str(e)) or re.search(
        r'[Uu]sed (\d+\.?\d*)([GM])', str(e)
      )
      if needed:
        report['peak_bytes'] = int(
          float(needed[1]) * 2 ** (30 if needed[2] == 'G' else 20)
        )

  teacher, extras = None, {}
  if config.loss.distill != 'none':
    teacher, extras = _teacher(config, run, mesh)
  with jax.set_mesh(mesh):
    train_step = step_lib.compile_train_step(
      step_lib.make_train_step(
        config,
        run.model,
        run.tx,
        run.schedule,
        num_classes,
        specs=run.update_specs,
        teacher=teacher,
      ),
      run.shardings,
      mesh,
    )
    executable = compiled(train_step, state, batch, extras)
    if executable is not None:
      _read(report, executable, mesh, facts, request.get('hlo'))
    report['compile_seconds'] = round(time.time() - start, 1)
    if request['eval'] and executable is not None:
      eval_size = config.eval.batch_size or batch_size
      array = lambda shape, dtype: jax.ShapeDtypeStruct(
        (eval_size, *shape), dtype, sharding=split
      )
      eval_labels = jax.ShapeDtypeStruct(
        (eval_size, *labels.shape[1:]), labels.dtype, sharding=split
      )
      eval_batch = {
        'image': array((*image_shape(config), 3), jnp.uint8),
        'label': eval_labels,
        'mask': array((), jnp.float32),
      }
      executable = compiled(
        jax.jit(
          make_eval_step(
            run.model,
            num_classes=num_classes,
            preprocessing=preprocessing(config),
            loss=config.loss.name,
          )
        ),
        {'params': state.params, 'batch_stats': state.batch_stats},
        eval_batch,
      )
      if executable is not None:
        evaluation = {}
        _read(evaluation, executable, mesh, facts, None)
        report['eval_peak_bytes'] = evaluation['peak_bytes']
        report['eval_images_per_second'] = eval_size / max(
          evaluation['step_seconds'], 1e-9
        )
  if 'step_seconds' in report:
    seconds = report['step_seconds']
    peak = flops.peak_flops(devices[0])
    report['images_per_second'] = batch_size / seconds
    report['images_per_second_per_device'] = batch_size / seconds / count
    report['mfu'] = report['model_flops'] / (seconds * peak * count)
    report['days'] = run.total_steps * seconds / 86_400
    report['device_days'] = report['days'] * count
  report['fits'] = (
    report['fits']
    and max(report.get('peak_bytes', 0), report.get('eval_peak_bytes', 0))
    <= report['memory_limit']
  )
  import resource

  report['compiler_gib'] = round(
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
  )
  report['libtpu'] = importlib.metadata.version('libtpu')
  report['jax'] = jax.__version__
  return report


def _teacher(config, run, mesh):
  """A distillation teacher with abstract variables, as the run has it."""
  import jax

  from vit_jax.models.registry import create_model
  from vit_jax.parallel.mesh import replicated
  from vit_jax.recipe.keys import image_shape

  model = create_model(
    config.loss.teacher, run.num_classes, dtype=run.model.dtype
  )
  size = config.loss.teacher_image_size
  shape = (size, size) if size else image_shape(config)
  variables = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jax.numpy.zeros((1, *shape, 3)), train=False
    )
  )
  variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    variables,
  )

  def teacher(variables, images, batch):
    del batch
    images = jax.image.resize(images, (images.shape[0], *shape, 3), 'bilinear')
    return model.apply(variables, images, train=False)[0]

  return teacher, {'teacher': variables}


def _read(report: dict, executable, mesh, facts, path):
  """Adds what the compiled program says of itself to the report."""
  text = executable.as_text()
  if path:
    pathlib.Path(path).write_text(text)
  memory, program = executable.memory_analysis(), Program(text)
  cycles, parts = program.cycles()
  clock = facts['clock'] * 1e9
  report['peak_bytes'] = int(
    getattr(memory, 'peak_memory_in_bytes', 0)
    or memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  report['argument_bytes'] = memory.argument_size_in_bytes
  report['temporary_bytes'] = memory.temp_size_in_bytes
  report['step_seconds'] = cycles / clock
  report['milliseconds_by_part'] = {
    k: round(1000 * v / clock, 3) for k, v in parts.items()
  }
  report['collectives'] = program.collectives(dict(mesh.shape))
  moved = sum(
    c['bytes'] * (1 if c['kind'] == 'all-reduce' else 0.5)
    for c in report['collectives']
  )
  report['wire_seconds'] = (
    moved / (facts['wire'] * 1e9) if (facts['wire']) else None
  )


def estimate(
  config,
  topology: str,
  *,
  effort: str = 'full',
  evaluation: bool = True,
  num_classes: int | None = None,
  num_examples: int | None = None,
  hlo: str | None = None,
  timeout: float = 3600,
) -> dict:
  """Compiles a recipe's train and eval step for a TPU topology.

  Args:
    config: the recipe.
    topology: 'v3:8x8' (a grid of chips) or 'v3-128' (cores).
    effort: 'full', or 'fast': a quick compilation whose memory (a little too
      high) and collectives count, but whose times mean nothing.
    evaluation: also compile the eval step.
    num_classes, num_examples: of the data, where it is not here.
    hlo: a file for the compiled program's text.
    timeout: seconds.

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
  request = dict(
    config=config,
    chip=chip,
    grid=grid,
    effort=effort,
    eval=evaluation,
    num_classes=num_classes,
    num_examples=num_examples,
    hlo=hlo,
  )
  with tempfile.TemporaryDirectory() as folder:
    question, answer = f'{folder}/question', f'{folder}/answer'
    pathlib.Path(question).write_bytes(pickle.dumps(request))
    # A process of its own: the environment must be set before JAX starts, and
    # an unrolled H/14 takes 11 GiB that should be given back.
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
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'vit_jax.aot.compile',
        '--worker',
        question,
        answer,
      ],
      env=env,
      capture_output=True,
      text=True,
      timeout=timeout,
    )
    if not os.path.exists(answer):
      raise RuntimeError(
        f'the compiler process ended with {done.returncode}: '
        + done.stderr[-2000:]
      )
    report = json.loads(pathlib.Path(answer).read_text())
  if 'value_error' in report:
    raise ValueError(report['value_error'])
  report['advice'] = advice(report)
  report['note'] = CALIBRATION
  return report


def _worker(question: str, answer: str) -> None:
  request = pickle.loads(pathlib.Path(question).read_bytes())
  try:
    report = _compile(request)
  except ValueError as e:
    report = {'value_error': str(e)}
  pathlib.Path(answer).write_text(json.dumps(report))


if __name__ == '__main__':  # a process of its own, started by `estimate`
  _worker(*sys.argv[2:])
