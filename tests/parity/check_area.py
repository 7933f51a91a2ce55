"""Checker for area attention as published in PyTorch (mikomel)."""

import re

import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from vit_jax.models.area import attention, explicit
from vit_jax.models.area.areas import Areas

OUTPUT = re.compile(r'(mha\.)?key_(\w+)\.value_(\w+)\.top(\d+)')


def _learned(params, prefix):
  """Parameters of AreaAttention from a state dict; {} if it has none."""
  name = f'{prefix}area_key_embedding.%d.%s'
  if name % (0, 'weight') not in params:
    return {}
  dense = lambda i: {
    'kernel': params[name % (i, 'weight')].T,
    'bias': params[name % (i, 'bias')],
  }
  return {
    'height_embedding': params[f'{prefix}area_height_embedding.weight'],
    'width_embedding': params[f'{prefix}area_width_embedding.weight'],
    'Dense_0': dense(0),
    'Dense_1': dense(2),
  }


def _project(params, name, x):
  return (
    x @ params[f'mha/{name}_projection.weight'].T
    + params[f'mha/{name}_projection.bias']
  )


@kind('area_')
def check_area(case):
  """Every recorded mode, single- and multi-head, and the area statistics."""
  c, tolerance = case.config, case.meta['tolerance']['all_outputs_atol']
  memory, max_area = tuple(c['memory']), tuple(c['max_area'])
  grid = memory if memory[0] > 1 else None
  heads = c['mha_heads']
  single = [case.inputs[n][:, :, None] for n in 'qkv']
  multi = []
  for n, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    x = _project(case.params, name, case.inputs[f'mha_{n}'])
    multi.append(x.reshape((*x.shape[:2], heads, -1)))

  for output in case.outputs:
    match = OUTPUT.fullmatch(output)
    if match is None:
      continue
    mha, key_mode, value_mode, top_k = match.groups()
    params = _learned(
      case.params, f'mha_{key_mode}/area_attention.' if mha else f'{key_mode}/'
    )
    q, k, v = map(jnp.asarray, multi if mha else single)
    impls = ['explicit']
    if key_mode == 'mean' and value_mode != 'max':
      impls.append('factored')
    for impl in impls:
      module = attention.AreaAttention(
        max_area, grid, key_mode, value_mode, int(top_k), impl
      )
      y, _ = module.apply({'params': params}, q, k, v)
      y = np.asarray(y).reshape((*y.shape[:2], -1))
      if mha:
        y = _project(case.params, 'output', y)
      case.compare(output, y, tolerance)

  areas = Areas(memory, max_area)
  case.compare('areas.height', areas.heights, tolerance)
  case.compare('areas.width', areas.widths, tolerance)
  index = case.outputs['areas.index']
  case.compare('areas.index', np.arange(c['num_areas'])[index], tolerance)
  if len(areas.sizes) != c['num_areas']:
    raise ValueError(f'{len(areas.sizes)} areas, recorded {c["num_areas"]}')
  keys = jnp.asarray(case.inputs['k'][:1])
  for name in explicit.STATISTICS:
    value = explicit.area_statistic(keys, areas, name)[:, index]
    case.compare(f'areas.{name}', value, tolerance)
    if name == 'std':
      case.compare('areas.std_fp64', value, tolerance)
