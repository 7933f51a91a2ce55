"""Meshes and shardings, in one process with 8 virtual devices."""

import collections
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax.data.sources.opening import open_source
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import batch_slice, make_mesh, put_batch
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.build import Run, build, compile_step

STEPS, BATCH = 20, 24  # no parameter has an axis of 24, so 24 is the batch
CLASSES = 5

# All sizes differ, so that the shape of an array identifies it.
MODELS = {
  'vit': dict(
    name='vit_ti16', patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32
  ),
  'scan': dict(
    name='vit_ti16',
    patch_size=8,
    width=16,
    depth=3,
    num_heads=2,
    mlp_dim=32,
    scan=True,
    remat='full',
    drop_path=0.1,
  ),
  'ceit': dict(
    name='ceit_t',
    patch_size=8,
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=32,
    stem_width=8,
  ),
}
MESHES = {
  'data': dict(),
  'zero': dict(preset='zero'),
  'fsdp': dict(preset='fsdp'),
  'fsdp2': dict(preset='fsdp', fsdp=2),
  'fsdp_tensor': dict(preset='fsdp_tensor'),
  'rules': dict(
    preset='fsdp',
    fsdp=2,
    tensor=2,
    rules=(
      (r'.*/Dense_0/kernel', ('fsdp', 'tensor')),
      (r'.*/(query|key)/.*', 'tensor'),
      (r'head/.*', 'replicated'),
    ),
  ),
}


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
  config = recipe('vit', {})
  source = open_source(
    'synthetic',
    split='train',
    num_examples=96,
    num_classes=CLASSES,
    image_size=(16, 16),
  )
  with recipe_data.train_batches(config, source) as batches:
    return [
      {k: b[k] for k in ('image', 'label')}
      for b, _ in zip(batches, range(STEPS))
    ]


def recipe(model: str, mesh: dict[str, Any]):
  config = tiny_config(
    data=dict(batch_size=BATCH, mixup=0.2),
    mesh=mesh,
    optim=dict(clip=1.0, ema=0.9),
  )
  del config.model['patch_size']
  config.model = {}
  config.model.update(MODELS[model])
  return config


@dataclasses.dataclass
class Trained:
  """A model after STEPS steps on a mesh."""

  run: Run
  hlo: str
  start: Any  # the state before the first step, on the host
  state: Any
  losses: np.ndarray


@functools.cache
def trained(model: str, mesh_name: str) -> Trained:
  """Trains from the state of one device, which saves a compilation."""
  one = mesh_name == 'one'
  config = recipe(model, {} if one else MESHES[mesh_name])
  mesh = make_mesh(
    config.mesh.preset,
    config.mesh.fsdp,
    config.mesh.tensor,
    jax.devices()[:1] if one else None,
  )
  run = build(config, mesh, num_classes=CLASSES, num_examples=96)
  start = None if one else trained(model, 'one').start
  with jax.set_mesh(mesh):
    if one:
      start = jax.device_get(run.init())
    state = jax.device_put(start, run.shardings)
    put = [put_batch(b, mesh) for b in batches()]
    # This compiles faster, with the same collectives.
    train_step = (
      compile_step(run)
      .lower(state, put[0], {})
      .compile({'xla_backend_optimization_level': 0})
    )
    losses = []
    for batch in put:
      state, values = train_step(state, batch, {})
      losses.append(values['loss'])
  return Trained(
    run, train_step.as_text(), start, state, np.asarray(jax.device_get(losses))
  )


def slow(*case):
  return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  'model, mesh',
  [
    *(('vit', mesh) for mesh in MESHES),
    ('scan', 'fsdp_tensor'),
    ('ceit', 'fsdp'),
    *(slow('scan', mesh) for mesh in MESHES if mesh != 'fsdp_tensor'),
    *(slow('ceit', mesh) for mesh in MESHES if mesh != 'fsdp'),
  ],
)
def test_every_mesh_trains_as_one_device(model, mesh):
  one, many = trained(model, 'one'), trained(model, mesh)
  assert one.losses[-1] < one.losses[0] - 0.2  # the model learns
  np.testing.assert_allclose(many.losses, one.losses, rtol=0, atol=1e-5)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(one.state.batch_stats),
    jax.tree.leaves(many.state.batch_stats),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_sharded_initialization_equals_that_of_one_device():
  run = trained('vit', 'fsdp_tensor').run
  with jax.set_mesh(run.mesh):
    state = run.init()
  for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(run.shardings)):
    assert x.sharding.is_equivalent_to(s, x.ndim)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(trained('vit', 'one').start.params),
    jax.tree.leaves(state.params),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=str(path))


def device_bytes(tree) -> int:
  """Bytes on the first device."""
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'mesh, params, rest',
  [
    ('data', 1, 1),
    ('zero', 8, 8),
    ('fsdp', 8, 8),
    ('fsdp2', 2, 2),
    ('fsdp_tensor', 8, 8),
  ],
)
def test_state_is_really_split(mesh, params, rest):
  """A device has 1 / shards of the bytes, except for what is not split."""
  state = trained('vit', mesh).state
  whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
  slack = 0.08 * whole if mesh == 'fsdp_tensor' else 0.02 * whole
  if mesh != 'data':
    slack += sum(
      x.nbytes
      for path, x in jax.tree_util.tree_leaves_with_path(state.params)
      if path[-1].key in ('bias', 'scale')
    )
  for tree, copies, shards in (
    (state.params, 1, params),
    (state.opt_state, 2, rest),
    (state.ema, 1, rest),
  ):
    assert (
      copies * whole / shards
      <= device_bytes(tree)
      <= copies * (whole / shards + slack)
    )


_COLLECTIVE = re.compile(
  r' = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)
_SHAPE = re.compile(r'\b(?:f|bf|s|u|pred)\d*\[([\d,]*)\]')


def collectives(hlo: str) -> list[tuple[str, list[tuple[int, ...]]]]:
  """(kind, shapes of its results) of every collective in a program."""
  operations = []
  for line in hlo.splitlines():
    match = _COLLECTIVE.search(line)
    if match:
      shapes = [
        tuple(int(d) for d in s.split(',') if d)
        for s in _SHAPE.findall(match[1])
      ]
      operations.append((match[2], shapes))
  return operations


def without_mixup(operations):
  """Leaves out the permutes by which mixup gets the partners of images.

  The batch of images and labels may have been split into groups before.
  """
  for kind, shapes in operations:
    if kind != 'collective-permute':
      yield kind, shapes
    else:
      for shape in shapes:
        image = shape[-3:] == (16, 16, 3)
        batch = shape[:-3] if image else shape[:-1]
        assert image or shape[-1] == CLASSES
        assert math.prod(batch) < BATCH


def test_data_parallel_has_one_fused_all_reduce():
  """One all-reduce has the gradient, the loss and the accuracy."""
  case = trained('vit', 'data')
  operations = list(without_mixup(collectives(case.hlo)))
  assert [kind for kind, _ in operations] == ['all-reduce']
  entries = sum(math.prod(s) for s in operations[0][1])
  gradient = sum(x.size for x in jax.tree.leaves(case.state.params))
  assert gradient < entries < 1.05 * gradient


def parameter_shapes(case: Trained) -> collections.Counter:
  """Sorted shapes, without axes of 1, of the parameters that are split."""
  return collections.Counter(
    tuple(sorted(d for d in x.shape if d > 1))
    for x, s in zip(
      jax.tree.leaves(case.state.params),
      jax.tree.leaves(case.run.shardings.params),
    )
    if any(s.spec)
  )


def test_zero_gathers_kernels_once_in_the_compute_type():
  """A model in bfloat16 sends its kernels as bfloat16, and trains the same."""
  losses = {}
  for name in ('data', 'zero'):
    config = recipe('vit', MESHES[name])
    config.model.dtype = 'bfloat16'
    mesh = make_mesh(config.mesh.preset)
    run = build(config, mesh, num_classes=CLASSES, num_examples=96)
    with jax.set_mesh(mesh):
      state = jax.device_put(trained('vit', 'one').start, run.shardings)
      put = [put_batch(b, mesh) for b in batches()[:3]]
      lowered = compile_step(run).lower(state, put[0], {})
      step = lowered.compile({'xla_backend_optimization_level': 0})
      values = []
      for batch in put:
        state, logged = step(state, batch, {})
        values.append(logged['loss'])
    losses[name] = np.asarray(jax.device_get(values))
  np.testing.assert_allclose(losses['zero'], losses['data'], rtol=0, atol=2e-3)
  assert losses['zero'][0] == losses['data'][0]  # the same forward pass
  # What is whole at the start of the step, from the program before the
  # partitioner: bfloat16 for kernels, each once.
  kernels = collections.Counter(
    'x'.join(map(str, x.shape))
    for (path, x), s in zip(
      jax.tree_util.tree_leaves_with_path(run.abstract_state.params),
      jax.tree.leaves(run.shardings.params),
    )
    if any(s.spec) and path[-1].key == 'kernel' and path[0].key != 'head'
  )  # the head computes in float32
  whole = collections.Counter(
    m[1]
    for m in re.finditer(
      r'sharding_constraint .*<@mesh, \[[{}, ]*\]> : tensor<([\dx]+)xbf16>',
      lowered.as_text(),
    )
  )
  assert len(kernels) == 5
  assert {shape: whole[shape] for shape in kernels} == dict(kernels)


@pytest.mark.parametrize('mesh', ['fsdp', 'fsdp2'])
def test_fsdp_gathers_parameter_by_parameter(mesh):
  case = trained('vit', mesh)
  gathered, reduced = collections.Counter(), []
  for kind, shapes in without_mixup(collectives(case.hlo)):
    if kind == 'all-gather':
      gathered.update(tuple(sorted(d for d in s if d > 1)) for s in shapes)
    else:
      assert kind in ('all-reduce', 'reduce-scatter')
      reduced += shapes
  wanted = parameter_shapes(case)
  # Each split parameter is gathered alone, and nothing else is gathered:
  # neither two layers at once nor an activation, which would have the axis of
  # the batch.
  assert gathered.keys() == wanted.keys()
  assert all(gathered[shape] >= wanted[shape] for shape in wanted)
  # The gradient is also reduced once for each layer: over fsdp, and then each
  # device's shard of it over data.
  mesh = case.run.mesh.shape
  times = 1 + (1 / mesh['fsdp'] if mesh['data'] > 1 else 0)
  sizes = [math.prod(s) for s in reduced]
  parameters = [x.size for x in jax.tree.leaves(case.state.params)]
  assert max(sizes) <= max(parameters)
  assert sum(sizes) < 1.1 * times * sum(parameters)


@pytest.mark.parametrize(
  'model, mesh',
  [
    ('vit', 'zero'),
    ('vit', 'fsdp_tensor'),
    ('vit', 'rules'),
    ('scan', 'fsdp_tensor'),
    ('ceit', 'fsdp'),
  ],
)
def test_no_activation_is_gathered_over_the_batch(model, mesh):
  """Except one that is smaller than the kernel, which is gathered otherwise."""
  kernel = MODELS[model]['width'] * MODELS[model]['mlp_dim']
  case = trained(model, mesh)
  for kind, shapes in collectives(case.hlo):
    for shape in shapes:
      if kind == 'all-gather' and any(d % BATCH == 0 for d in shape):
        assert model == 'ceit' and math.prod(shape) < kernel, shape


def abstract(**shapes):
  return {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}


@pytest.mark.parametrize('mesh, whole', [('zero', True), ('fsdp2', False)])
def test_gradients_of_convolutions_are_whole_before_they_are_split(mesh, whole):
  """Else TPU slices such as v5p:2x2x4 compute one convolution a shard."""
  config = recipe('vit', MESHES[mesh])
  config.data.mixup = 0.0
  devices = make_mesh(config.mesh.preset, config.mesh.fsdp, config.mesh.tensor)
  run = build(config, devices, num_classes=CLASSES, num_examples=96)
  batch = {
    'image': jax.ShapeDtypeStruct((BATCH, 16, 16, 3), np.uint8),
    'label': jax.ShapeDtypeStruct((BATCH,), np.int32),
  }
  with jax.set_mesh(devices):
    program = compile_step(run).trace(run.abstract_state, batch, {}).jaxpr
  shape = run.abstract_state.params['embedding']['kernel'].shape
  specs = [
    eqn.params['sharding'].spec
    for eqn in program.eqns
    if eqn.primitive.name == 'sharding_constraint'
    and eqn.outvars[0].aval.shape == shape
  ]
  split = run.shardings.params['embedding']['kernel'].spec
  assert len(shape) == 4 and split != P()
  if whole:
    # The kernel is put together for the step; then come its gradients.
    assert specs[:3] == [split, P(*[None] * 4), P()]
    specs = specs[3:]
  assert set(specs) == {split}


def test_every_parameter_is_covered_and_the_first_rule_wins():
  mesh = make_mesh('fsdp', 4, 2)
  params = {'a': abstract(kernel=(64, 32), bias=(32,)), 'b': abstract(w=(6,))}
  specs = rules.param_specs(
    params,
    mesh,
    'fsdp',
    rules=(
      (r'a/kernel', ('tensor', 'fsdp')),
      (r'a/.*', 'tensor'),
      (r'a/bias', 'replicated'),
    ),
  )
  assert specs == {
    'a': {'kernel': P('tensor', 'fsdp'), 'bias': P('tensor')},
    'b': {'w': P()},
  }


class Device:
  """A stand-in for a device of a process."""

  platform = 'cpu'

  def __init__(self, number, per_process):
    self.id, self.process_index = number, number // per_process


@pytest.mark.parametrize(
  'devices, per_process, preset, want',
  [
    (4, 4, 'data', [(0, 1)]),
    (8, 4, 'fsdp', [(0, 2), (1, 2)]),
    (8, 4, 'fsdp_tensor', [(0, 2), (1, 2)]),
    # Two processes are one copy of the model: they feed the same examples.
    (4, 1, 'fsdp_tensor', [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ],
)
def test_which_slice_of_the_batch_a_process_feeds(
  devices, per_process, preset, want
):
  mesh = make_mesh(
    preset, devices=[Device(i, per_process) for i in range(devices)]
  )
  assert [batch_slice(mesh, p) for p in range(len(want))] == want


def test_a_mesh_that_cuts_a_process_in_two_is_refused():
  mesh = make_mesh('fsdp_tensor', 2, 3, [Device(i, 2) for i in range(6)])
  with pytest.raises(ValueError, match='no equal slices'):
    batch_slice(mesh)


def test_rules_are_aligned_at_the_right():
  """A scanned stack has one more axis; axes that do not divide are whole."""
  mesh = make_mesh('fsdp_tensor')
  kernel = {'query': abstract(kernel=(3, 16, 2, 8))}
  specs = rules.param_specs({'x': kernel}, mesh, 'fsdp_tensor')
  assert specs['x']['query']['kernel'] == P(None, 'fsdp', 'tensor', None)
  kernel = {'query': abstract(kernel=(16, 3, 8))}  # three heads
  specs = rules.param_specs({'x': kernel}, mesh, 'fsdp_tensor')
  assert specs['x']['query']['kernel'] == P('fsdp', None, None)


def test_zero_splits_heads_where_the_devices_divide_them():
  mesh = make_mesh('zero', fsdp=4)
  kernels = abstract(
    query=(64, 4, 8), out=(4, 8, 64), value=(64, 6, 8), w=(8, 64)
  )
  params = {k: {'kernel': x} for k, x in kernels.items()}
  specs = rules.param_specs({'block': params}, mesh, 'zero')['block']
  assert {k: v['kernel'] for k, v in specs.items()} == {
    'query': P(None, 'fsdp'),
    'out': P('fsdp'),
    'value': P('fsdp'),  # 4 devices do not divide 6 heads
    'w': P(None, 'fsdp'),
  }


@pytest.mark.parametrize(
  'rule, says',
  [
    (('.*', 'model'), "names axis 'model'; allowed: replicated, data, fsdp"),
    (('.*', (None, 'fsdp', None)), r'has 3 axes, but w has shape \(64, 8\)'),
    (('.*', ('model', None)), "names axis 'model'; allowed"),
    (('.*', ('fsdp', 'fsdp')), "names axis 'fsdp' twice"),
    (('(', 'fsdp'), 'is not a regular expression'),
    (('.*',), r'is not \(regex, spec\)'),
    (('.*', 'fsdp:2'), "'fsdp:2': after the colon comes the array axis"),
    (('.*', 'model:-2'), "names axis 'model'; allowed"),
  ],
)
def test_bad_rules_say_what_is_wrong(rule, says):
  mesh = make_mesh('fsdp')
  with pytest.raises(ValueError, match=says):
    rules.param_specs(abstract(w=(64, 8)), mesh, 'fsdp', (rule,))


def test_large_replicated_parameters_are_logged(caplog):
  mesh = make_mesh('fsdp')
  params = abstract(odd=(513, 513), even=(512, 512), small=(3,))
  specs = rules.param_specs(params, mesh, 'fsdp')
  assert specs == {'odd': P(), 'even': P('fsdp'), 'small': P()}
  assert re.search(r'left replicated.*odd \(513, 513\)$', caplog.text.strip())
  caplog.clear()
  rules.param_specs(params, make_mesh('data'), 'data')
  assert not caplog.text  # 'data' replicates all parameters on purpose


@pytest.mark.parametrize(
  'kwargs, says',
  [
    (dict(tensor=3), 'mesh.tensor=3 does not divide 8 devices'),
    (dict(tensor=0), 'mesh.tensor=0 does not divide'),
    (dict(fsdp=3), 'mesh.fsdp=3 x mesh.tensor=1 does not divide 8 devices'),
    (dict(fsdp=8, tensor=2), 'mesh.fsdp=8 x mesh.tensor=2 does not divide'),
    (dict(fsdp=-2), 'mesh.fsdp=-2'),
    (dict(preset='zero3'), "mesh.preset='zero3'; allowed: data, zero, fsdp"),
  ],
)
def test_meshes_that_do_not_fit(kwargs, says):
  with pytest.raises(ValueError, match=re.escape(says)):
    make_mesh(**kwargs)


@pytest.mark.parametrize(
  'kwargs, shape',
  [
    (dict(), (8, 1, 1)),
    (dict(preset='zero'), (1, 8, 1)),
    (dict(preset='zero', fsdp=2), (4, 2, 1)),
    (dict(preset='fsdp'), (1, 8, 1)),
    (dict(preset='fsdp', fsdp=2), (4, 2, 1)),
    (dict(preset='fsdp_tensor'), (1, 4, 2)),
    (dict(preset='fsdp_tensor', fsdp=2), (2, 2, 2)),
  ],
)
def test_mesh_shapes(kwargs, shape):
  assert tuple(make_mesh(**kwargs).shape.values()) == shape
