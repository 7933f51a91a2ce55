"""Attention on NVIDIA GPUs: which arrays cuDNN takes, and its call for CUDA.

No GPU is needed: programs are traced and lowered for CUDA, and not run.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.helpers import tiny_config
from vit_jax.models import attention, flops
from vit_jax.models.area.attention import area_attend
from vit_jax.models.fused import attend as fused
from vit_jax.models.fused import gpu
from vit_jax.models.platform import traced_for
from vit_jax.parallel.mesh import make_mesh, put_batch
from vit_jax.recipe.build import build, compile_step

FORWARD, BACKWARD = '@__cudnn$fmhaSoftmax(', '@__cudnn$fmhaSoftmaxBackward('


@pytest.fixture
def hopper(monkeypatch):
  """As on a GPU of compute capability 9.0 with cuDNN 9.10."""
  import jax._src.cudnn.fused_attention_stablehlo as call

  monkeypatch.setattr(call, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(gpu, 'capability', lambda: (9, 0))
  monkeypatch.setattr(gpu, 'compiles', lambda *shape: True)
  with traced_for('gpu'):
    yield


def _arrays(b=2, t=197, h=3, k=64, s=None, v=None, dtype='bfloat16'):
  shapes = (b, t, h, k), (b, s or t, h, k), (b, s or t, h, v or k)
  return [jax.ShapeDtypeStruct(x, dtype) for x in shapes]


def _for_cuda(fn, *args):
  # A new function, because what jit has traced depends on the stand-ins.
  lowered = (
    jax.jit(lambda *x: fn(*x)).trace(*args).lower(lowering_platforms=('cuda',))
  )
  return lowered.as_text()


def _gradients(q, k, v):
  y, backward = jax.vjp(lambda *x: fused.attend(*x)[0], q, k, v)
  return backward(y)


@pytest.mark.parametrize(
  'shape',
  [
    {},
    {'t': 196},
    {'dtype': 'float16'},
    {'t': 577, 'k': 80},  # H/14 at 336 px
    {'t': 128},
    {'t': 257, 'k': 128},
    {'s': 200},
    {'t': 196, 's': 393},
  ],
)
def test_cudnn_takes(hopper, shape):
  text = _for_cuda(_gradients, *_arrays(**shape))
  assert text.count(FORWARD) == text.count(BACKWARD) == 1


@pytest.mark.parametrize(
  'shape',
  [
    {'dtype': 'float32'},
    {'t': 127},
    {'t': 1, 's': 197},  # a class token
    {'s': 127},
    {'v': 32},
    {'k': 60},
    {'k': 136},
    {'t': 197, 'k': 128},
  ],
)
def test_other_arrays_take_the_plain_form(hopper, shape):
  assert 'cudnn' not in _for_cuda(_gradients, *_arrays(**shape))


def test_dropout_takes_the_plain_form(hopper):
  attend = functools.partial(fused.attend, dropout=lambda probs: probs / 2)
  text = _for_cuda(lambda *x: attend(*x)[0], *_arrays())
  assert 'cudnn' not in text


@pytest.mark.parametrize('lowest', [(0, 0), (7, 5)])
def test_older_gpus_take_the_plain_form(hopper, monkeypatch, lowest):
  monkeypatch.setattr(gpu, 'capability', lambda: lowest)
  assert 'cudnn' not in _for_cuda(_gradients, *_arrays())


def test_an_exported_program_has_no_call_of_cudnn(hopper):
  with traced_for('any'):
    assert 'cudnn' not in _for_cuda(_gradients, *_arrays())


def test_the_work_of_cudnn_is_counted(hopper):
  module = attention.MultiHeadDotProductAttention(
    2, dtype='bfloat16', attend_fn=fused.attend
  )
  x = jax.ShapeDtypeStruct((1, 130, 16), 'bfloat16')
  init = lambda x: module.init(jax.random.key(0), x, x, train=False)
  variables = jax.eval_shape(init, x)
  apply = lambda v, x: module.apply(v, x, x, train=False)[0]
  assert FORWARD in _for_cuda(apply, variables, x)
  products = 4 * 130 * 16 * 16 + 2 * 130 * 130 * 16
  assert flops.count_macs(apply, variables, x) == products


class _Device:
  def __init__(self, compute_capability):
    self.compute_capability = compute_capability


@pytest.mark.parametrize(
  'names, lowest',
  [(['9.0'], (9, 0)), (['10.0', '9.0'], (9, 0)), (['gfx90a'], (0, 0))],
)
def test_the_capability_is_that_of_the_oldest_gpu(monkeypatch, names, lowest):
  monkeypatch.setattr(jax, 'devices', lambda kind: [_Device(n) for n in names])
  assert gpu.capability() == lowest


def test_without_a_gpu_the_plain_form_is_used():
  assert gpu.capability() == (0, 0)
  with traced_for('gpu'):
    q, k, v = (jnp.ones(x.shape, x.dtype) for x in _arrays(t=130, k=8))
    y, _ = jax.jit(fused.attend)(q, k, v)
  chex.assert_trees_all_equal(y, jax.jit(attention.attend)(q, k, v)[0])


def test_a_call_that_does_not_compile_is_told_and_avoided(monkeypatch, caplog):
  """Here, no compiler has the library; on a GPU it may have other limits."""
  monkeypatch.setattr(jax, 'local_devices', lambda backend: jax.devices('cpu'))
  gpu.compiles.cache_clear()
  assert not gpu.compiles(197, 393, 3, 64, 'bfloat16')
  told = '197 queries, 393 keys, 3 heads of width 64 in bfloat16'
  assert told in caplog.text
  gpu.compiles.cache_clear()


def test_a_call_is_compiled_while_a_program_for_a_mesh_is_traced(monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda backend: jax.devices('cpu'))
  xla = functools.partial(gpu.library_attention, implementation='xla')
  monkeypatch.setattr(gpu, 'library_attention', xla)
  gpu.compiles.cache_clear()
  with jax.set_mesh(make_mesh()):
    assert jax.eval_shape(
      lambda: gpu.compiles(3, 5, 1, 8, 'bfloat16') * jnp.ones(1)
    )
    assert gpu.compiles(3, 5, 1, 8, 'bfloat16')
  gpu.compiles.cache_clear()


@pytest.mark.parametrize('tokens', [6, 7])
@pytest.mark.parametrize('items', [7, 8])
def test_the_token_that_is_added_changes_nothing(tokens, items):
  """An odd number of queries or keys gets one more."""
  keys = jax.random.split(jax.random.key(0), 4)
  lengths = tokens, items, items, tokens
  *args, g = (
    jax.random.normal(x, (2, n, 2, 8))
    for x, n in zip(keys, lengths, strict=True)
  )
  library = functools.partial(gpu.library_attention, implementation='xla')
  plain = lambda *x: attention.attend(*x)[0]

  @jax.jit
  def both(*args):
    pairs = [jax.vjp(attend, *args) for attend in (library, plain)]
    return [(y, backward(g)) for y, backward in pairs]

  chex.assert_trees_all_close(*both(*args), atol=1e-5)


def test_each_device_calls_cudnn_on_its_own_examples_and_heads(hopper):
  mesh = make_mesh(fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    text = _for_cuda(_gradients, *_arrays(b=8, h=4))
    assert f'{FORWARD}' in text and 'tensor<2x198x2x64xbf16>' in text
    # 6 examples on 4 devices, and 3 heads on 2.
    assert 'cudnn' not in _for_cuda(_gradients, *_arrays(b=6, h=4))
    assert 'cudnn' not in _for_cuda(_gradients, *_arrays(b=8, h=3))


@pytest.mark.parametrize(
  'dtype, area_sizes',
  [('bfloat16', ()), ('float32', ()), ('bfloat16', [(1, 2)])],
)
def test_the_training_step_of_a_vit_calls_cudnn(hopper, dtype, area_sizes):
  config = tiny_config(
    run=dict(dtype=dtype), data=dict(image_size=24, batch_size=8)
  )
  config.model.update(patch_size=2, width=16, num_heads=2, depth=1)
  config.model.area_sizes = area_sizes
  mesh = make_mesh(config.mesh.preset)
  run = build(config, mesh, num_classes=5, num_examples=64)
  batch = {
    'image': jnp.zeros((8, 24, 24, 3), jnp.uint8),
    'label': jnp.zeros(8, jnp.int32),
    'index': jnp.zeros(8, jnp.int32),
  }
  with jax.set_mesh(mesh):
    step = compile_step(run)
    traced = step.trace(run.abstract_state, put_batch(batch, mesh), {})
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  calls = text.count(FORWARD), text.count(BACKWARD)
  assert calls == ((1, 1) if dtype == 'bfloat16' else (0, 0))


def _areas(q, k, v, *, size=(1, 2), grid=None, **options):
  attend = area_attend(size, grid, weights=False, **options)
  return attend(q, k, v)[0]


def _gradients_of_areas(*qkv, **options):
  y, backward = jax.vjp(functools.partial(_areas, **options), *qkv)
  return backward(y)


@pytest.mark.parametrize(
  'options, areas',
  [
    ({}, 393),
    ({'value_mode': 'mean'}, 393),
    ({'size': (1, 4)}, 782),
    ({'size': (2, 2), 'grid': (14, 14)}, 730),
  ],
)
def test_cudnn_takes_areas(hopper, options, areas):
  """The areas are its keys, in both passes; an odd number gets one more."""
  text = _for_cuda(
    functools.partial(_gradients_of_areas, **options), *_arrays()
  )
  assert text.count(FORWARD) == text.count(BACKWARD) == 1
  assert f'tensor<2x{areas + areas % 2}x3x64xbf16>' in text
  assert 'x197x197x' not in text and f'x198x{areas + areas % 2}x' not in text


@pytest.mark.parametrize(
  'options, shape',
  [
    ({}, {'dtype': 'float32'}),
    ({'size': (1, 5)}, {}),  # 975 areas of 197 tokens
    ({'size': (3, 3), 'grid': (14, 14)}, {}),
    ({'top_k': 4}, {}),
    ({'impl': 'factored'}, {}),
    ({'impl': 'explicit'}, {}),
    ({'value_mode': 'max'}, {}),
    ({}, {'t': 1, 's': 197}),
    ({}, {'v': 32}),
    ({}, {'k': 136}),
  ],
)
def test_other_areas_take_their_own_forms(hopper, options, shape):
  fn = functools.partial(_gradients_of_areas, **options)
  assert 'cudnn' not in _for_cuda(fn, *_arrays(**shape))


@pytest.mark.parametrize('value_mode', ['sum', 'mean'])
@pytest.mark.parametrize('size, grid', [((1, 2), None), ((2, 2), (3, 4))])
def test_areas_as_keys_equal_the_factored_form(
  monkeypatch, value_mode, size, grid
):
  """By the call for cuDNN, which is computed here without its library."""
  xla = functools.partial(gpu.library_attention, implementation='xla')
  monkeypatch.setattr(gpu, 'library_attention', xla)
  monkeypatch.setattr(gpu, 'takes', lambda *qkv: True)
  keys = jax.random.split(jax.random.key(1), 4)
  *qkv, g = (jax.random.normal(x, (2, 13, 2, 8)) for x in keys)
  options = dict(size=size, grid=grid, value_mode=value_mode)

  def both_passes(impl):
    attend = functools.partial(_areas, impl=impl, **options)
    y, backward = jax.vjp(jax.jit(attend), *qkv)
    return y, backward(g)

  with traced_for('gpu'):
    by_library = both_passes('auto')
  chex.assert_trees_all_close(by_library, both_passes('factored'), atol=1e-5)


def test_each_device_calls_cudnn_on_the_areas_of_its_examples(hopper):
  with jax.set_mesh(make_mesh(fsdp=2, tensor=2)):
    text = _for_cuda(_gradients_of_areas, *_arrays(b=8, h=4))
    assert FORWARD in text and 'tensor<2x394x2x64xbf16>' in text
    assert 'cudnn' not in _for_cuda(_gradients_of_areas, *_arrays(b=6, h=4))
