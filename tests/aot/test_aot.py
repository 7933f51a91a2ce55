"""Compiled programs are read and reported; with libtpu, real topologies."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.aot import estimate
from vit_jax.aot import report as report_lib
from vit_jax.aot.chips import parse_topology
from vit_jax.aot.hlo import Program
from vit_jax.cli import parser
from vit_jax.parallel.mesh import BATCH, make_mesh
from vit_jax.recipe.build import build, compile_step
from vit_jax.recipe.keys import default_config
from vit_jax.recipe.overrides import load_config

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is missing'
)

CYCLES = 'backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'
PROGRAM = """HloModule jit_step, entry_computation_layout={()->()}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %inner = bf16[8,128]{1,0} negate(%p), CYCLES_1000000
}

%body (t: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %t = (s32[], bf16[8,128]) parameter(0)
  %x = bf16[8,128]{1,0} fusion(%t), kind=kLoop, calls=%fused, MLP, CYCLES_10
  %gather = bf16[32,128]{1,0} all-gather(%x), GROUP_A, dimensions={0}
  ROOT %r = (s32[], bf16[8,128]) tuple(%x, %x)
}

%condition (t: (s32[], bf16[8,128])) -> pred[] {
  %t = (s32[], bf16[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %bound = s32[]{:T(256)} constant(24)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%all-reduce-scatter.1 (input: f32[64]) -> f32[16] {
  %input = f32[64] parameter(0)
  %sum = f32[64] all-reduce(%input), GROUP_F
  ROOT %slice = f32[16] dynamic-slice(%sum)
}

ENTRY %main (p0: bf16[8,128]) -> f32[] {
  %p0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %loop = (s32[]{:T(256)}, /*index=1*/bf16[8,128]{1,0}) while(%p0), LOOP
  %norm = f32[8]{0} fusion(%p0), kind=kLoop, calls=%fused, NORM, CYCLES_7
  %reduce = (f32[4,2]{1,0}, f32[]) all-reduce(%norm, %norm), GROUP_B
  %scatter = f32[4]{0} reduce-scatter(%norm), GROUP_C, to_apply=%add
  %start = (f32[2], f32[8]) all-gather-start(%norm), GROUP_D
  %done = f32[8] all-gather-done(%start)
  %part = f32[16] all-gather(%norm), GROUP_E
  %split = f32[16] fusion(%part), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = f32[] copy(%done), CYCLES_3
}
"""
for _n in (1000000, 10, 7, 3):
  PROGRAM = PROGRAM.replace(f'CYCLES_{_n}\n', CYCLES.format(_n) + '\n')
for _name, _text in {
  'MLP': 'metadata={op_name="jit(f)/transpose(jvp(ViT))/MlpBlock_0/dot"}',
  'NORM': 'metadata={op_name="jit(f)/jvp(ViT)/LayerNorm_0/mul"}',
  'LOOP': 'condition=%condition, body=%body',
  'GROUP_A': "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
  'GROUP_B': 'replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add',
  'GROUP_C': 'replica_groups=[1,8]<=[8]',
  'GROUP_D': 'replica_groups=[2,4]<=[4,2]T(1,0)',
  'GROUP_F': "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
  'GROUP_E': "replica_groups=mesh['axis_0'=4,'axis_1'=2], "
  "device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={0}",
}.items():
  PROGRAM = PROGRAM.replace(_name, _text)


def test_cycles_count_loops_and_not_the_inside_of_fusions():
  total, by_kind = Program(PROGRAM).cycles()
  assert total == 24 * 10 + 7 + 3
  assert by_kind == {'mlp backward': 240, 'norm forward': 7, 'other': 3}


def test_collectives_by_kind_axis_and_bytes():
  listed = Program(PROGRAM).collectives({'data': 2, 'fsdp': 4})
  by = {(c['kind'], c['axes']): c for c in listed}
  gather = by['all-gather', 'fsdp']
  assert gather == dict(
    kind='all-gather',
    axes='fsdp',
    executions=24,
    bytes=24 * 32 * 128 * 2,
    largest=32 * 128 * 2,
  )
  assert by['all-reduce', 'data']['bytes'] == 4 * 2 * 4 + 4
  assert by['reduce-scatter', 'data x fsdp']['bytes'] == 8 * 4 * 4
  # On a TPU: an all-reduce and a slice in one fusion.
  assert by['reduce-scatter', 'fsdp'] == dict(
    kind='reduce-scatter', axes='fsdp', executions=1, bytes=256, largest=256
  )
  assert ('all-reduce', 'fsdp') not in by
  # [4,2]T(1,0): devices 0, 2, 4, 6, which differ on both axes.
  assert by['all-gather', 'data x fsdp']['bytes'] == 8 * 4
  # Devices 0 and 4.
  assert by['all-gather', 'data']['bytes'] == 16 * 4


@pytest.mark.parametrize(
  'text, expected',
  [
    ('v3:8x8', ('v3', '8x8')),
    ('v3-512', ('v3', '16x16')),
    ('v2-8', ('v2', '2x2')),
    ('v4:4x4x4', ('v4', '4x4x4')),
    ('v5e-16', ('v5e', '4x4')),
    ('v5litepod-64', ('v5e', '8x8')),
    ('v5p-128', ('v5p', '4x4x4')),
  ],
)
def test_topologies(text, expected):
  assert parse_topology(text) == expected


@pytest.mark.parametrize('text', ['v3', 'v9:2x2', 'v3-7', 'v5e-9', 'v3:8'])
def test_unknown_topologies(text):
  with pytest.raises(ValueError, match='CHIP:GRID'):
    parse_topology(text)


def compiled_program(preset, **mesh):
  """A small ViT's train step on the eight virtual CPU devices."""
  config = default_config()
  config.run.steps = 10
  config.data.source, config.data.batch_size = 'synthetic', 16
  config.data.image_size = 16
  config.model.update(
    name='vit_s16',
    patch_size=8,
    width=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    dropout=0.1,
  )
  config.optim.clip = 1.0
  config.mesh.preset = preset
  config.mesh.update(mesh)
  made = make_mesh(preset, config.mesh.fsdp, config.mesh.tensor)
  run = build(config, made, num_classes=8, num_examples=64)
  split = jax.NamedSharding(made, BATCH)
  batch = {
    'image': jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.uint8, sharding=split),
    'label': jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split),
  }
  with jax.set_mesh(made):
    executable = (
      compile_step(run).lower(run.abstract_state, batch, {}).compile()
    )
  params = [x for x in jax.tree.leaves(run.abstract_state.params)]
  return Program(executable.as_text()).collectives(dict(made.shape)), params


def test_data_parallel_only_reduces():
  listed, params = compiled_program('data')
  total = sum(4 * x.size for x in params)
  assert {c['kind'] for c in listed} == {'all-reduce'}
  assert {c['axes'] for c in listed} == {'data'}
  # The gradients are reduced once, with a few numbers for the log.
  assert total <= sum(c['bytes'] for c in listed) <= 1.05 * total + 1024


def test_fsdp_gathers_one_parameter_at_a_time():
  listed, params = compiled_program('fsdp', fsdp=4)
  largest, total = (
    max(4 * x.size for x in params),
    sum(4 * x.size for x in params),
  )
  gathers = [c for c in listed if c['kind'] == 'all-gather']
  assert gathers
  for c in gathers:
    assert c['axes'] == 'fsdp'
    assert c['largest'] <= largest  # no whole model, no activations
    assert c['executions'] >= 3 * 6  # the six kernels of every block alone
  assert sum(c['bytes'] for c in gathers) <= 3 * total
  assert all(c['largest'] <= total for c in listed)


def report(**changes):
  base = dict(
    fits=False,
    memory_limit=16 * 2**30,
    preset='data',
    dtype='bfloat16',
    parameters=10**9,
    parameter_bytes=4 * 10**9,
    state_bytes=12 * 10**9,
    devices=64,
    remat='none',
    scan=False,
    per_device_batch=64.0,
    accumulate=1,
    batch_size=4096,
  )
  return {**base, **changes}


@pytest.mark.parametrize(
  'changes, says',
  [
    ({}, 'mesh.preset=fsdp'),
    ({}, 'remat=dots_no_batch'),
    ({'state_bytes': 2**30}, 'mesh.preset=zero'),
    (
      {'preset': 'zero'},
      'mesh.preset=fsdp: puts each parameter together where',
    ),
    ({'preset': 'zero'}, 'not all of them (1.86 GiB) at the start'),
    ({'remat': 'dots_no_batch'}, 'remat=full'),
    ({'scan': True}, 'scan=False'),
    ({}, 'optim.accumulate=2'),
    ({'per_device_batch': 1.0}, 'more devices'),
  ],
)
def test_advice(changes, says):
  assert any(says in tip for tip in report_lib.advice(report(**changes)))
  assert report_lib.advice(report(fits=True)) == []


def test_overrides_reach_the_recipe():
  config = load_config(
    str(ROOT / 'configs/vit_b16_i21k.py') + ':short',
    {
      'optim.lr': '3e-4',
      'model.remat': 'full',
      'data.area': '(0.1, 1.0)',
    },
  )
  assert config.optim.lr == 3e-4 and config.model.remat == 'full'
  assert config.run.epochs == 30.0 and config.data.area == (0.1, 1.0)


def test_mistakes_end_with_1(capsys):
  run = lambda *a: (parser.main(['aot', *a]), capsys.readouterr().err)
  recipe = f'--config={ROOT}/configs/vit_b16_i21k.py'
  assert run('--config=nowhere.py', '--topology=v3:2x2')[0] == 1
  code, error = run(recipe, '--topology=v3-9')
  assert code == 1 and 'CHIP:GRID' in error
  code, error = run(recipe, '--topology=v3:2x2', '--config.optim.rate=1')
  assert code == 1 and 'rate' in error


SMALL = [
  '--config.model.name=vit_ti16',
  '--config.model.depth=2',
  '--config.model.dropout=0.0',
  '--num_classes=100',
]


def test_the_cost_of_a_recipe():
  values = report(chip_hours=1234.4, chips=32)
  assert report_lib.cost(values).startswith('1,234 chip-hours on 32 chips, wit')
  priced = report_lib.cost({**values, 'price_per_chip_hour': 1.5})
  assert ', at 1.5 each 1,852, without evaluation' in priced


@needs_libtpu
@pytest.mark.slow
def test_a_step_for_a_v3_8(capsys, tmp_path):
  code = parser.main(
    [
      'aot',
      f'--config={ROOT}/configs/vit_b16_i21k.py',
      '--topology=v3:2x2',
      '--batch=256',
      '--price-per-chip-hour=2',
      '--json',
      *SMALL,
      f'--hlo={tmp_path}/program.txt',
    ]
  )
  r = json.loads(capsys.readouterr().out)
  assert code == 0 and r['fits'] and r['advice'] == []
  assert r['devices'] == 8 and r['per_device_batch'] == 32
  assert r['mesh'] == {'data': 1, 'fsdp': 8, 'tensor': 1}
  split = 4 * r['parameters'] / 8
  assert split < r['parameter_bytes'] < 1.05 * split
  # The parameters and the two moments of Adam.
  assert 3 <= r['state_bytes'] / r['parameter_bytes'] < 3.01
  assert 0 < r['peak_bytes'] < 2**30 and 0 < r['eval_peak_bytes'] < 2**30
  np.testing.assert_allclose(
    r['mfu'], r['model_flops'] / (r['step_seconds'] * 8 * 61.6e12)
  )
  assert 0.05 < r['mfu'] < 1
  np.testing.assert_allclose(
    r['device_days'], 8 * r['steps'] * r['step_seconds'] / 86_400
  )
  assert r['chips'] == 4
  np.testing.assert_allclose(r['cost'], 2 * 24 * r['device_days'] / 2)
  kinds = {c['kind'] for c in r['collectives']}
  assert {'all-reduce', 'all-gather'} <= kinds
  assert (tmp_path / 'program.txt').stat().st_size > 10_000


@needs_libtpu
@pytest.mark.slow
def test_collectives_on_a_v3_8():
  """FSDP gathers kernels one at a time, on the fsdp axis only.

  Gradients may be scattered, or reduced and cut, as the compiler chooses.
  """
  config = load_config(
    f'{ROOT}/configs/vit_b16_i21k.py',
    {
      'model.name': 'vit_ti16',
      'model.depth': '2',
      'data.batch_size': '64',
      'mesh.preset': 'fsdp',
      'mesh.fsdp': '4',
    },
  )
  r = estimate.estimate(
    config, 'v3:2x2', effort='fast', evaluation=False, num_classes=100
  )
  gathers = [c for c in r['collectives'] if c['kind'] == 'all-gather']
  assert gathers and {c['axes'] for c in gathers} == {'fsdp'}
  assert max(c['largest'] for c in gathers) <= 4 * 192 * 768
  scatters = [c for c in r['collectives'] if c['kind'] == 'reduce-scatter']
  assert {c['axes'] for c in scatters} == {'fsdp'}
  assert max(c['largest'] for c in scatters) <= 4 * 192 * 768
  reduced = sum(
    c['bytes']
    for c in r['collectives']
    if c['kind'] in ('all-reduce', 'reduce-scatter')
  )
  assert reduced < 3 * 4 * r['parameters']


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_gets_advice(capsys):
  code = parser.main(
    [
      'aot',
      f'--config={ROOT}/configs/vit_G14_jft.py',
      '--topology=v3:2x2',
      '--batch=64',
      '--preset=data',
      '--no-eval',
      '--effort=fast',
      '--config.mesh.fsdp=1',
    ]
  )
  out = capsys.readouterr().out
  assert code == 1
  assert 'DOES NOT FIT' in out and '15.48 GiB' in out
  assert 'mesh.preset=fsdp' in out
