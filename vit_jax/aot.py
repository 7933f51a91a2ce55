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

import argparse
import ast
import collections
import importlib.metadata
import importlib.util
import itertools
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

# Per device of JAX (v2 and v3: a core, tpu7x: a chiplet, else a chip): clock
# in GHz, usable memory in GiB (from the compiler's own error), and all-reduce
# bandwidth in GB/s (published per pod, Cloud TPU documentation, divided by the
# devices). The peak FLOP/s are in `flops.PEAK_TFLOPS`.
CHIPS = {
    'v2': dict(clock=0.70, memory=7.48, wire=117),
    'v3': dict(clock=0.94, memory=15.48, wire=166),
    'v4': dict(clock=1.05, memory=30.75, wire=268, chip_config_name='megacore'),
    'v5e': dict(clock=1.50, memory=15.75, wire=200),
    'v5p': dict(clock=1.75, memory=95.74, wire=None,
                chip_config_name='megacore'),
    'v6e': dict(clock=1.75, memory=31.25, wire=400),
    'tpu7x': dict(clock=1.90, memory=94.75, wire=None),
}
# What the clouds call a slice by: cores.
CORES = {'8': '2x2', '32': '4x4', '128': '8x8', '256': '8x16', '512': '16x16',
         '1024': '16x32x1', '2048': '32x32'}
# Training examples by number of classes, for data that is not here.
EXAMPLES = {
    10: 50_000, 100: 50_000, 1_000: 1_281_167, 18_291: 303_000_000,
    21_841: 14_197_122, 21_843: 14_197_122}
PRESETS = ('data', 'zero', 'fsdp', 'fsdp_tensor')
CALIBRATION = (
    'Estimates by the compiler, not measurements, collectives not included: '
    'within about 10 % of a published S/16 on v3-8 written the same way; the '
    'core-days published for H/14 and L/16 on JFT are 2 to 3 times as many.')


def parse_topology(topology: str) -> tuple[str, str]:
  """('v3', '8x8') of 'v3:8x8' or 'v3-128'. ValueError says what is known."""
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', topology)
  if match and match[1] in CHIPS:
    return match[1], match[2]
  match = re.fullmatch(r'(v[23])-(\d+)', topology)
  if match and match[2] in CORES:
    return match[1], CORES[match[2]]
  raise ValueError(
      f'topology {topology!r}: give CHIP:GRID with the grid in chips, such as '
      f'v3:8x8 (128 cores), v4:4x4x4, v5e:8x8; chips: {", ".join(CHIPS)}; or '
      f'v2-N, v3-N with N cores of {", ".join(CORES)}')


# ---------------------------------------------------------------- the program

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
          's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
_COLLECTIVE = re.compile(
    r'(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
    r'(-start)?$')
_INSTRUCTION = re.compile(
    r'\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)', re.DOTALL)
# Parts of a model, by the names in the program's metadata; first match.
_PARTS = (
    ('attention', r'MultiHead\w+_\d+/(?!query|key|value|out)|attend'),
    ('projections', r'MultiHead|/qkv|/proj'),
    ('mlp', r'[Mm]lp|Dense_[01]|channel_mixing|token_mixing'),
    ('norm', r'Norm|norm'),
    ('head', r'/head|pre_logits'),
    ('embedding', r'embedding|/cls|stem'),
    ('other', r''),
)


def _sizes(type_text: str) -> list[int]:
  """Bytes of each array in 'bf16[8,128]{1,0}' or '(f32[2], s32[])'."""
  return [math.prod(int(d) for d in dims.split(',') if d) * _BYTES[dtype]
          for dtype, dims in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', type_text)
          if dtype in _BYTES]


class Program:
  """The text of a compiled program: its instructions by computation."""

  def __init__(self, text: str):
    self._of = collections.defaultdict(list)  # computation: instructions
    current = None
    for line in text.splitlines():
      header = re.match(r'(ENTRY )?%(\S+) \(.*\{$', line)
      if header:
        current = header[2]
        if header[1]:
          self._entry = current
      elif current and line.startswith('  '):
        match = _INSTRUCTION.match(line)
        if match:
          self._of[current].append(match.groups())

  def _callees(self, rest: str, key: str) -> list[str]:
    names = re.findall(rf'\b{key}=\{{?((?:%[\w.\-]+(?:, )?)+)', rest)
    return re.findall(r'%([\w.\-]+)', names[0]) if names else []

  def _trips(self, rest: str) -> int:
    """The bound in a loop's condition; loops count from 0 by 1."""
    found, names = [], self._callees(rest, 'condition')
    while names:
      for _, kind, op, arguments in self._of[names.pop()]:
        if op == 'constant' and kind.startswith(('s32[]', 'u32[]')):
          found.append(int(re.match(r'-?\d+', arguments)[0]))
        names += self._callees(arguments, 'calls')
    return max(found, default=1)

  def walk(self, computation: str | None = None, times: int = 1,
           inside: bool = False):
    """Yields (times executed, inside a fusion, instruction) in all branches."""
    for instruction in self._of[computation or self._entry]:
      _, _, op, rest = instruction
      yield times, inside, instruction
      if op == 'while':
        trips = self._trips(rest)
        for name in self._callees(rest, 'body'):
          yield from self.walk(name, times * trips, inside)
      elif op in ('call', 'conditional'):
        for key in ('to_apply', 'branch_computations', 'true_computation',
                    'false_computation'):
          for name in self._callees(rest, key):
            yield from self.walk(name, times, inside)
      else:
        for name in self._callees(rest, 'calls'):
          yield from self.walk(name, times, True)

  def cycles(self) -> tuple[int, dict[str, int]]:
    """Estimated cycles of one execution, and by part of the model."""
    parts = collections.Counter()
    for times, inside, (_, _, _, rest) in self.walk():
      found = re.search(r'"estimated_cycles":"(\d+)"', rest)
      if found and not inside:
        name = re.search(r'op_name="([^"]*)"', rest)
        name = name[1] if name else ''
        part = next(p for p, pattern in _PARTS if re.search(pattern, name))
        way = 'backward' if 'transpose(' in name else 'forward'
        parts[part if part == 'other' else f'{part} {way}'] += (
            times * int(found[1]))
    return sum(parts.values()), dict(parts.most_common())

  def collectives(self, mesh_shape: dict[str, int]) -> list[dict]:
    """Kinds of collectives with executions, bytes and mesh axes.

    Bytes are those of the whole array that is reduced, gathered or moved. TPUs
    write a reduce-scatter as a fusion of an all-reduce and a slice.
    """
    scattered = {name for computation, instructions in self._of.items()
                 if computation.startswith('all-reduce-scatter')
                 for name, *_ in instructions}
    rows = collections.defaultdict(lambda: [0, 0, 0])
    for times, _, (instruction, kind, op, rest) in self.walk():
      match = _COLLECTIVE.match(op)
      if not match:
        continue
      name, sizes = match[1], _sizes(kind)
      if match[2] and name != 'all-reduce':
        sizes = sizes[len(sizes) // 2:]  # a start's type is (inputs, outputs)
      axes, group = _axes(rest, mesh_shape)
      size = sum(sizes) * (group if name == 'reduce-scatter' else 1)
      if instruction in scattered:
        name = 'reduce-scatter'
      row = rows[name, axes]
      row[0] += times
      row[1] += times * size
      row[2] = max(row[2], size)
    return [dict(kind=kind, axes=axes, executions=n, bytes=size, largest=most)
            for (kind, axes), (n, size, most) in sorted(
                rows.items(), key=lambda x: -x[1][1])]


def _iota(dims: str, order: str | None):
  """The device list that '[4,2]T(1,0)' stands for."""
  import numpy as np
  dims = [int(d) for d in dims.split(',')]
  ids = np.arange(math.prod(dims)).reshape(dims)
  return ids.transpose([int(d) for d in order.split(',')]) if order else ids


def _first_group(rest: str) -> list[int] | None:
  """The devices of the first replica group, in any of the three notations."""
  # mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, or with device_ids=([2,4]T(1,0))
  match = re.search(
      r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]"
      r"(?:T\(([\d,]+)\))?\))? \{((?:'\w+'(?:, ?|,)?)+)\}", rest)
  if match:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
    ids = _iota(match[2] or str(math.prod(sizes.values())), match[3])
    ids = ids.reshape(list(sizes.values()))
    chosen = re.findall(r"'(\w+)'", match[4])
    index = tuple(slice(None) if k in chosen else 0 for k in sizes)
    return ids[index].flatten().tolist()
  # [groups,size]<=[dims]T(order)
  match = re.search(
      r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest)
  if match:
    ids = _iota(match[3], match[4])
    return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
  # {{0,1},{2,3}}
  match = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  return [int(i) for i in match[1].split(',')] if match else None


def _axes(rest: str, mesh_shape: dict[str, int]) -> tuple[str, int]:
  """The mesh axes along which a collective's devices differ; group size."""
  group, total = _first_group(rest), math.prod(mesh_shape.values())
  if group is None:
    pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', rest)
    if not pairs:
      return 'all', total
    group = [int(pairs[1]), int(pairs[2])]
  where = []
  for i in group:
    place = {}
    for axis in reversed(mesh_shape):
      i, place[axis] = divmod(i, mesh_shape[axis])
    where.append(place)
  axes = [a for a in mesh_shape if len({p[a] for p in where}) > 1]
  return ' x '.join(axes) or 'none', len(group)


# ------------------------------------------------------------ the compilation


def _describe_topology(chip: str, grid: str):
  from jax.experimental import topologies
  options = {}
  if 'chip_config_name' in CHIPS[chip]:
    options['chip_config_name'] = CHIPS[chip]['chip_config_name']
  if grid in ('1x1', '1x1x1'):
    options['chips_per_host_bounds'] = [1, 1, 1]
  return topologies.get_topology_desc(
      platform='tpu', topology_name=f'{chip}:{grid}', **options)


def _facts(config, num_classes, num_examples) -> tuple[int, int, bool]:
  """Classes, training examples and multi-label, with or without the data."""
  num_classes = num_classes or config.data.num_classes
  num_examples = num_examples or config.data.num_examples
  if num_classes and (num_examples or num_classes in EXAMPLES):
    packed = config.data.source == 'packed'
    return (num_classes, num_examples or EXAMPLES[num_classes],
            packed and config.loss.name == 'sigmoid')
  if not num_classes and config.data.source == 'tfds:imagenet2012':
    return 1_000, num_examples or EXAMPLES[1_000], False
  from vit_jax.train import open_train_source
  source = open_train_source(config)
  return (num_classes or source.num_classes, num_examples or len(source),
          source.multi_label)


def _compile(request: dict) -> dict:
  """Runs in a process of its own: compiles, and returns the report."""
  import jax
  import jax.numpy as jnp

  from vit_jax import flops, sharding, train
  from vit_jax import step as step_lib
  from vit_jax.config import check, image_shape
  from vit_jax.evaluate import host_shape

  config, chip, grid = request['config'], request['chip'], request['grid']
  facts, start = CHIPS[chip], time.time()
  check(config)
  num_classes, num_examples, multi_label = _facts(
      config, request['num_classes'], request['num_examples'])
  devices = _describe_topology(chip, grid).devices
  mesh = sharding.make_mesh(config.mesh.preset, config.mesh.fsdp,
                            config.mesh.tensor, devices=devices)
  run = train.build(config, mesh, num_classes=num_classes,
                    num_examples=num_examples)
  batch_size, count = config.data.batch_size, len(devices)
  split = jax.NamedSharding(mesh, sharding.BATCH)
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
      (batch_size, *shape), dtype, sharding=split)
  labels = array((num_classes,), jnp.float32) if multi_label else array(
      (), jnp.int32)
  batch = {'image': array((*host_shape(config), 3), jnp.uint8),
           'label': labels}
  per_device = lambda tree: sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree))
  state = run.abstract_state
  macs = flops.forward_macs(run.model, *image_shape(config))
  report = {
      'config': config.run.name, 'model': config.model.name,
      'topology': f'{chip}:{grid}', 'devices': count,
      'device': 'core' if chip in ('v2', 'v3') else 'chip',
      'mesh': dict(mesh.shape), 'preset': config.mesh.preset,
      'remat': getattr(run.model, 'remat', 'none'),
      'scan': getattr(run.model, 'scan', False),
      'dtype': jnp.dtype(run.model.dtype).name,
      'accumulate': config.optim.accumulate, 'batch_size': batch_size,
      'per_device_batch': batch_size / sharding.batch_shards(mesh),
      'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
      'parameter_bytes': per_device(state.params),
      'state_bytes': per_device(state),
      'memory_limit': int(facts['memory'] * 2 ** 30), 'fits': True,
      'model_flops': 6 * macs * batch_size, 'steps': run.total_steps,
  }
  options = {'xla_optimization_level': 'EFFORT_O0'} if (
      request['effort'] == 'fast') else {}

  def compiled(step, *args):
    try:
      return step.lower(*args).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      report['fits'] = False
      report['error'] = str(e).strip().splitlines()[0][:600]
      needed = re.search(r'\((\d+\.?\d*)([GM])\)', str(e)) or re.search(
          r'[Uu]sed (\d+\.?\d*)([GM])', str(e))
      if needed:
        report['peak_bytes'] = int(
            float(needed[1]) * 2 ** (30 if needed[2] == 'G' else 20))

  teacher, extras = None, {}
  if config.loss.distill != 'none':
    teacher, extras = _teacher(config, run, mesh)
  with jax.set_mesh(mesh):
    train_step = step_lib.compile_train_step(
        step_lib.make_train_step(config, run.model, run.tx, run.schedule,
                                 num_classes, specs=run.update_specs,
                                 teacher=teacher),
        run.shardings, mesh)
    executable = compiled(train_step, state, batch, extras)
    if executable is not None:
      _read(report, executable, mesh, facts, request.get('hlo'))
    report['compile_seconds'] = round(time.time() - start, 1)
    if request['eval'] and executable is not None:
      eval_size = config.eval.batch_size or batch_size
      array = lambda shape, dtype: jax.ShapeDtypeStruct(
          (eval_size, *shape), dtype, sharding=split)
      eval_labels = jax.ShapeDtypeStruct(
          (eval_size, *labels.shape[1:]), labels.dtype, sharding=split)
      eval_batch = {'image': array((*image_shape(config), 3), jnp.uint8),
                    'label': eval_labels, 'mask': array((), jnp.float32)}
      executable = compiled(
          jax.jit(step_lib.make_eval_step(config, run.model, num_classes)),
          {'params': state.params, 'batch_stats': state.batch_stats},
          eval_batch)
      if executable is not None:
        evaluation = {}
        _read(evaluation, executable, mesh, facts, None)
        report['eval_peak_bytes'] = evaluation['peak_bytes']
        report['eval_images_per_second'] = eval_size / max(
            evaluation['step_seconds'], 1e-9)
  if 'step_seconds' in report:
    seconds = report['step_seconds']
    peak = flops.peak_flops(devices[0])
    report['images_per_second'] = batch_size / seconds
    report['images_per_second_per_device'] = batch_size / seconds / count
    report['mfu'] = report['model_flops'] / (seconds * peak * count)
    report['days'] = run.total_steps * seconds / 86_400
    report['device_days'] = report['days'] * count
  report['fits'] = report['fits'] and max(
      report.get('peak_bytes', 0), report.get('eval_peak_bytes', 0)
  ) <= report['memory_limit']
  import resource
  report['compiler_gib'] = round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 2)
  report['libtpu'] = importlib.metadata.version('libtpu')
  report['jax'] = jax.__version__
  return report


def _teacher(config, run, mesh):
  """A distillation teacher with abstract variables, as the run has it."""
  import jax

  from vit_jax import sharding
  from vit_jax.config import image_shape
  from vit_jax.models.registry import create_model
  model = create_model(config.loss.teacher, run.num_classes,
                       dtype=run.model.dtype)
  size = config.loss.teacher_image_size
  shape = (size, size) if size else image_shape(config)
  variables = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jax.numpy.zeros((1, *shape, 3)), train=False))
  variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.replicated(mesh)), variables)

  def teacher(variables, images, batch):
    del batch
    images = jax.image.resize(
        images, (images.shape[0], *shape, 3), 'bilinear')
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
  report['peak_bytes'] = int(getattr(
      memory, 'peak_memory_in_bytes', 0) or memory.argument_size_in_bytes
      + memory.temp_size_in_bytes + memory.output_size_in_bytes
      - memory.alias_size_in_bytes)
  report['argument_bytes'] = memory.argument_size_in_bytes
  report['temporary_bytes'] = memory.temp_size_in_bytes
  report['step_seconds'] = cycles / clock
  report['milliseconds_by_part'] = {
      k: round(1000 * v / clock, 3) for k, v in parts.items()}
  report['collectives'] = program.collectives(dict(mesh.shape))
  moved = sum(c['bytes'] * (1 if c['kind'] == 'all-reduce' else 0.5)
              for c in report['collectives'])
  report['wire_seconds'] = moved / (facts['wire'] * 1e9) if (
      facts['wire']) else None


def estimate(config, topology: str, *, effort: str = 'full',
             evaluation: bool = True, num_classes: int | None = None,
             num_examples: int | None = None, hlo: str | None = None,
             timeout: float = 3600) -> dict:
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
        'needed)')
  request = dict(config=config, chip=chip, grid=grid, effort=effort,
                 eval=evaluation, num_classes=num_classes,
                 num_examples=num_examples, hlo=hlo)
  with tempfile.TemporaryDirectory() as folder:
    question, answer = f'{folder}/question', f'{folder}/answer'
    pathlib.Path(question).write_bytes(pickle.dumps(request))
    # A process of its own: the environment must be set before JAX starts, and
    # an unrolled H/14 takes 11 GiB that should be given back.
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    env.update(
        JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
        ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v3-8',
        TPU_WORKER_HOSTNAMES='localhost', TPU_STDERR_LOG_LEVEL='3',
        TPU_MIN_LOG_LEVEL='3')
    done = subprocess.run(
        [sys.executable, '-m', 'vit_jax.aot', '--worker', question, answer],
        env=env, capture_output=True, text=True, timeout=timeout)
    if not os.path.exists(answer):
      raise RuntimeError(f'the compiler process ended with {done.returncode}: '
                         + done.stderr[-2000:])
    report = json.loads(pathlib.Path(answer).read_text())
  if 'value_error' in report:
    raise ValueError(report['value_error'])
  report['advice'] = advice(report)
  report['note'] = CALIBRATION
  return report


def advice(report: dict) -> list[str]:
  """What to change in a recipe that does not fit; [] for one that does."""
  if report['fits']:
    return []
  limit, tips = report['memory_limit'], []
  preset, state = report['preset'], report['state_bytes']
  mirrors = state / max(1, report['parameter_bytes'])
  if preset in ('data', 'zero') and state > limit / 4:
    after = (report['parameters'] * 4 * mirrors) / min(32, report['devices'])
    tips.append(
        f'--config.mesh.preset=fsdp: the state takes {_gib(state)} of '
        f'{_gib(limit)} on every device; split over up to 32 devices about '
        f'{_gib(after)}')
  elif preset == 'data':
    tips.append('--config.mesh.preset=zero: splits the optimizer state')
  if report['remat'] == 'none':
    tips.append('--config.model.remat=dots_no_batch, or full: recomputes '
                'activations in the backward pass')
  elif report['remat'] != 'full':
    tips.append('--config.model.remat=full: keeps only the block inputs')
  if report['scan']:
    tips.append('--config.model.scan=False: unrolled blocks need less memory '
                'than stacked ones (and more time to compile)')
  if report['per_device_batch'] / report['accumulate'] > 1:
    tips.append(f'--config.optim.accumulate={2 * report["accumulate"]}: the '
                'same batch in smaller parts')
    tips.append(f'more devices than {report["devices"]}, or a smaller '
                f'--config.data.batch_size than {report["batch_size"]} '
                f'({report["per_device_batch"]:g} images a device)')
  else:
    tips.append(f'more devices than {report["devices"]}')
  return tips


# --------------------------------------------------------------- the command


def _gib(size) -> str:
  return f'{size / 2 ** 30:.2f} GiB'


def describe(report: dict) -> str:
  """The report as text."""
  r, device = report, report['device']
  lines = [
      f'{r["config"] or r["model"]} on {r["topology"]}: {r["devices"]} '
      f'{device}s, mesh ' + ' x '.join(
          f'{k} {v}' for k, v in r['mesh'].items()) + f', preset {r["preset"]}',
      f'  {r["parameters"]:,} parameters, {r["dtype"]}, remat {r["remat"]}, '
      f'{"scanned" if r["scan"] else "unrolled"} blocks; global batch '
      f'{r["batch_size"]}, {r["per_device_batch"]:g} a {device}' + (
          f' in {r["accumulate"]} parts' if r['accumulate'] > 1 else ''),
      f'  per {device}: parameters {_gib(r["parameter_bytes"])}, whole state '
      f'{_gib(r["state_bytes"])}'
      + (f', peak {_gib(r["peak_bytes"])}' if 'peak_bytes' in r else '')
      + f' of {_gib(r["memory_limit"])}'
      + (f' (eval {_gib(r["eval_peak_bytes"])})'
         if 'eval_peak_bytes' in r else '')]
  for c in r.get('collectives', ()):
    lines.append(f'  {c["kind"]} over {c["axes"]}: {c["executions"]} x, '
                 f'{c["bytes"] / 2 ** 20:,.1f} MiB, the largest '
                 f'{c["largest"] / 2 ** 20:,.1f} MiB')
  if 'step_seconds' in r:
    wire = '' if r['wire_seconds'] is None else (
        f'; collectives, if nothing hides them, '
        f'{1e3 * r["wire_seconds"]:.1f} ms more')
    lines += [
        f'  estimated step {1e3 * r["step_seconds"]:.1f} ms{wire}',
        f'  estimated {r["images_per_second"]:,.0f} img/s, '
        f'{r["images_per_second_per_device"]:,.0f} a {device}; '
        f'{r["model_flops"]:.3g} model FLOPs a step, MFU {r["mfu"]:.3f}',
        f'  estimated whole recipe, {r["steps"]:,} steps: {r["days"]:.2f} '
        f'days, {r["device_days"]:,.0f} {device}-days']
    lines.append('  ms by part: ' + ', '.join(
        f'{k} {v:.1f}' for k, v in r['milliseconds_by_part'].items()))
  lines.append(f'  compiled in {r["compile_seconds"]:.0f} s with libtpu '
               f'{r["libtpu"]}. {CALIBRATION}')
  if not r['fits']:
    lines.append('DOES NOT FIT: ' + r.get(
        'error', f'peak {_gib(r["peak_bytes"])} of {_gib(r["memory_limit"])}'))
    lines += [f'  try {tip}' for tip in r['advice']]
  return '\n'.join(lines)


def _row(r: dict) -> list[str]:
  return [
      r['topology'], str(r['devices']), r['preset'], r['remat'],
      'scan' if r['scan'] else 'unrolled', str(r['batch_size']),
      f'{r["state_bytes"] / 2 ** 30:.2f}',
      f'{r["peak_bytes"] / 2 ** 30:.2f}' if 'peak_bytes' in r else '?',
      *([f'{1e3 * r["step_seconds"]:.1f}',
         f'{r["images_per_second_per_device"]:.0f}', f'{r["mfu"]:.3f}',
         f'{r["device_days"]:.0f}']
        if r['fits'] else ['does not fit', '', '', '']),
      f'{r["compile_seconds"]:.0f}']


def table(reports: list[dict]) -> str:
  """A Markdown table, one row per report."""
  head = ['topology', 'devices', 'preset', 'remat', 'blocks', 'batch',
          'state GiB', 'peak GiB', 'step ms', 'img/s/device', 'MFU',
          'device-days', 'compile s']
  rows = [head, ['---'] * len(head)] + [_row(r) for r in reports]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def load_config(source: str, overrides=()):
  """The recipe of 'configs/X.py:ARG' with 'optim.lr=1e-3' overrides."""
  from vit_jax.config import ConfigError
  path, _, arg = source.partition(':')
  if not os.path.exists(path):
    raise ConfigError(f'--config={source}: there is no file {path}')
  root = str(pathlib.Path(path).resolve().parent.parent)
  sys.path.insert(0, root)  # recipes import their neighbours
  try:
    spec = importlib.util.spec_from_file_location('recipe', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg) if arg else module.get_config()
  finally:
    sys.path.remove(root)
  for override in overrides:
    key, _, text = override.partition('=')
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text
    *sections, last = key.split('.')
    section = config
    for name in sections:
      section = section[name]
    with section.ignore_type():
      section[last] = value
  return config


def main(argv=None) -> int:
  """The command; returns 0, or 1 if a recipe does not fit or is wrong."""
  argv = sys.argv[1:] if argv is None else list(argv)
  parser = argparse.ArgumentParser(
      prog='vit-jax aot', description=__doc__.split('\n\n')[0],
      epilog='Any key of the recipe can be set: --config.KEY=VALUE. '
      + CALIBRATION)
  parser.add_argument('--config', required=True, help='configs/X.py[:ARG]')
  parser.add_argument('--topology', required=True,
                      help='v3:8x8, v5e:8x8, v3-128, ...; several with commas')
  parser.add_argument('--preset', help='mesh.preset; several with commas')
  parser.add_argument('--batch', type=int, help='data.batch_size')
  parser.add_argument('--remat', help='model.remat; several with commas')
  parser.add_argument('--scan', action=argparse.BooleanOptionalAction,
                      help='model.scan')
  parser.add_argument('--sweep', action='store_true',
                      help='all presets (or those given) x topologies: a table')
  parser.add_argument('--effort', choices=('full', 'fast'), default='full',
                      help='fast: memory and collectives only')
  parser.add_argument('--eval', action=argparse.BooleanOptionalAction,
                      default=True, help='also compile the eval step')
  parser.add_argument('--num_classes', type=int)
  parser.add_argument('--num_examples', type=int)
  parser.add_argument('--json', action='store_true')
  parser.add_argument('--hlo', help='file for the compiled program')
  overrides = [a.removeprefix('--config.') for a in argv
               if a.startswith('--config.')]
  args = parser.parse_args(
      [a for a in argv if not a.startswith('--config.')])
  split = lambda text: text.split(',') if text else [None]
  presets = split(args.preset)
  if args.sweep and not args.preset:
    presets = PRESETS
  reports = []
  try:
    for topology, preset, remat in itertools.product(
        args.topology.split(','), presets, split(args.remat)):
      config = load_config(args.config, overrides)
      if preset is not None:
        config.mesh.preset = preset
        if args.sweep:
          config.mesh.fsdp = config.mesh.tensor = -1
      if args.batch is not None:
        config.data.batch_size = args.batch
      for field, value in (('remat', remat), ('scan', args.scan)):
        if value is not None:
          config.model[field] = value
      print(f'compiling for {topology}, {config.mesh.preset}', file=sys.stderr)
      reports.append(estimate(
          config, topology, effort=args.effort, evaluation=args.eval,
          num_classes=args.num_classes, num_examples=args.num_examples,
          hlo=args.hlo))
      if not args.json and not args.sweep:
        print(describe(reports[-1]))
  except (ValueError, RuntimeError, KeyError, TypeError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  if args.json:
    print(json.dumps(reports if len(reports) > 1 else reports[0], indent=2))
  elif args.sweep or len(reports) > 1:
    print(table(reports))
  if args.sweep:
    return 0 if any(r['fits'] for r in reports) else 1
  return 0 if all(r['fits'] for r in reports) else 1


def _worker(question: str, answer: str) -> None:
  request = pickle.loads(pathlib.Path(question).read_bytes())
  try:
    report = _compile(request)
  except ValueError as e:
    report = {'value_error': str(e)}
  pathlib.Path(answer).write_text(json.dumps(report))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--worker']:
    _worker(*sys.argv[2:])
  else:
    sys.exit(main())
