"""The estimated time of a step: Pallas kernels, and what hides collectives."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.aot import kernels, report
from vit_jax.aot.chips import CHIPS
from vit_jax.aot.hlo import Program
from vit_jax.models.fused import tpu

CYCLES = '"estimated_cycles":"{}"'
# Four collectives of 1,000 bytes each: an all-reduce between whose start and
# end 30 cycles of computation stand, one in a loop that nothing hides, one that
# runs in three fusions, and a reduce-scatter.
SCHEDULE = f"""HloModule step, is_scheduled=true

%scattering (p: f32[250]) -> f32[250] {{
  %p = f32[250] parameter(0)
  ROOT %begin = f32[250] all-gather(%p), channel_id=7
}}

%computing (p: f32[250]) -> f32[250] {{
  %p = f32[250] parameter(0)
  %gather = f32[250] all-gather(%p), channel_id=7
  ROOT %y = f32[250] add(%gather, %p), {CYCLES.format(999)}
}}

%ending (p: f32[250]) -> f32[250] {{
  %p = f32[250] parameter(0)
  ROOT %end = f32[250] all-gather(%p), channel_id=7
}}

%all-reduce-scatter.1 (p: f32[250]) -> f32[125] {{
  %p = f32[250] parameter(0)
  %sum = f32[250] all-reduce(%p), channel_id=8
  ROOT %slice = f32[125] dynamic-slice(%sum)
}}

%body (t: (s32[], f32[250])) -> (s32[], f32[250]) {{
  %t = (s32[], f32[250]) parameter(0)
  %x = f32[250] fusion(%t), calls=%plain, {CYCLES.format(10)}
  %reduce = f32[250] all-reduce(%x), channel_id=2
  ROOT %r = (s32[], f32[250]) tuple(%t, %reduce)
}}

%condition (t: (s32[], f32[250])) -> pred[] {{
  %t = (s32[], f32[250]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}}

ENTRY %main (p: f32[250]) -> f32[250] {{
  %p = f32[250] parameter(0)
  %start = f32[250] all-reduce-start(%p), channel_id=1
  %meanwhile = f32[250] fusion(%p), calls=%plain, {CYCLES.format(30)}
  %done = f32[250] all-reduce-done(%start)
  %loop = (s32[], f32[250]) while(%p), condition=%condition, body=%body
  %async-start = f32[250] fusion(%p), calls=%scattering
  %both = f32[250] fusion(%async-start), calls=%computing, {CYCLES.format(500)}
  %async-done = f32[250] fusion(%both), calls=%ending
  %scatter = f32[125] fusion(%p), calls=%all-reduce-scatter.1
  ROOT %y = f32[250] copy(%done), {CYCLES.format(4)}
}}
"""


def test_computation_hides_collectives_where_the_schedule_lets_it():
  program = Program(SCHEDULE)
  assert program.cycles()[0] == 30 + 3 * 10 + 500 + 4
  seconds = program.seconds(1.0, lambda kind, size: size / 10)
  # 100 of the start (30 hidden), 3 loops, 500 (100 hidden), 100, 4
  assert seconds == 100 + 3 * (10 + 100) + 500 + 100 + 4
  assert program.seconds(1.0, lambda kind, size: 0) == 564


def test_a_collective_in_three_fusions_is_one():
  listed = Program(SCHEDULE).collectives({'data': 2})
  counts = {c['kind']: (c['executions'], c['bytes']) for c in listed}
  assert counts == {
    'all-reduce': (4, 4000),
    'all-gather': (1, 1000),
    'reduce-scatter': (1, 1000),
  }


def test_an_all_reduce_sends_bytes_twice():
  chip = CHIPS['v3']
  assert chip.wire_seconds('all-reduce', 166 * 10**9) == 1
  assert chip.wire_seconds('all-gather', 166 * 10**9) == 0.5


def _traced(b=2, t=24, h=4, k=16):
  x = jax.ShapeDtypeStruct((b, t, h, k), jnp.bfloat16)
  gradient = jax.grad(
    lambda q, k, v: jnp.sum(tpu.attend(q, k, v), dtype='float32'), (0, 1, 2)
  )
  return jax.make_jaxpr(lambda *x: (gradient(*x), gradient(*x)))(x, x, x).jaxpr


def test_kernels_of_a_traced_program():
  called = {k.name: k for k in kernels.kernels(_traced())}
  assert set(called) == {'forward_attention', 'backward_attention'}
  forward = called['forward_attention']
  assert forward.steps == 2 and not forward.loops  # four heads in a step
  assert forward.operands == ('bf16[2,4,16,24]',) * 3
  assert forward.results == ('bf16[2,4,16,24]', 'f32[2,4,1,24]')
  # 24 tokens are stored as 128; a row of float32 numbers is not padded.
  assert forward.bytes == 4 * 2 * 4 * 16 * 128 * 2 + 2 * 4 * 128 * 4
  assert forward.flops == 2 * 2 * (2 * 4 * 24 * 24) * 16


def test_a_program_with_kernels_takes_their_time():
  text = (
    'ENTRY %main (p: bf16[2,4,16,24]) -> f32[2] {\n'
    '  %k.1 = (bf16[2,4,16,24]{3,2,1,0:T(8,128)(2,1)}, f32[2,4,1,24]{3,2,1,0})'
    ' custom-call(%p, %p), custom_call_target="tpu_custom_call", '
    'operand_layout_constraints={bf16[2,4,16,24]{3,2,1,0}, '
    'bf16[2,4,16,24]{3,2,1,0}, bf16[2,4,16,24]{3,2,1,0}}, '
    'metadata={op_name="jit(f)/jvp(V)/MultiHeadAttention_0/forward_attention/pallas"}\n'
    '}\n'
  )
  kernel = next(
    k for k in kernels.kernels(_traced()) if k.name == 'forward_attention'
  )
  name = kernels.key(kernel.operands, kernel.results)
  program = Program(text, {name: dict(cycles=77)})
  assert program.cycles() == (77, {'attention forward': 77})
  assert program.kernel_calls() == {name: 1}
  assert Program(text).cycles()[0] == 0


@pytest.mark.parametrize(
  'kernel, words',
  [
    (dict(by='schedule', bundles=12, steps=3456), '12 instructions'),
    (dict(by='bytes', bundles=12, steps=3), 'by the bytes'),
    (dict(by='operations', bundles=None, steps=3), 'that it declares'),
  ],
)
def test_the_report_says_how_a_kernel_is_estimated(kernel, words):
  kernel |= dict(name='attention', executions=23, milliseconds=0.34)
  text = report.describe_kernel(kernel)
  assert text.startswith('kernel attention: 23 x 0.340 ms') and words in text
  unknown = kernel | dict(milliseconds=None)
  assert 'not in the step' in report.describe_kernel(unknown)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is missing'
)
@pytest.mark.parametrize('chip', ['v3', 'v5e'])
def test_prices_of_kernels(chip, monkeypatch):
  for name, value in dict(
    TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1'
  ).items():
    monkeypatch.setenv(name, value)
  called = kernels.kernels(_traced())
  priced = kernels.prices(called, chip, '2x2')
  assert len(priced) == 2
  for price in priced.values():
    assert price['by'] == 'schedule' and price['steps'] == 2
    np.testing.assert_equal(price['cycles'], price['bundles'] * 2)
