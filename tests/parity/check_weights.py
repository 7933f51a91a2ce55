"""Checkers for loading: position-table resizing and fine-tune loading."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.check_vit import vit_jax_model
from tests.parity.harness import kind
from vit_jax.models.position import sincos2d
from vit_jax.weights import from_state_dict, resize_table


def _grid(size) -> tuple[int, int]:
  return (size, size) if np.ndim(size) == 0 else tuple(size)


@kind('vit_jax_posembed_resize')
def check_posembed_resize(case):
  for c in case.config:
    value = resize_table(
      case.inputs[c['key']], _grid(c['grid_in']), _grid(c['grid_out']), 'linear'
    )
    case.compare(c['key'], value, case.meta['tolerance']['atol'])


@kind('big_vision_posemb')
def check_posemb(case):
  tolerance = case.meta['tolerance']['atol']
  for old, new, _ in case.config['resample']:
    key = f'resample_{old}to{new}'
    value = resize_table(case.inputs[key], _grid(old), _grid(new), 'linear')
    case.compare(key, value, tolerance)
  for height, width, dim in case.config['sincos']:
    case.compare(
      f'sincos2d_{height}x{width}_{dim}',
      sincos2d(height, width, dim),
      tolerance,
    )


@kind('vit_jax_finetune_load')
def check_finetune_load(case):
  c = case.config['finetune']
  model = vit_jax_model(c)
  variables, _ = from_state_dict(model, case.params, c['image_size'])
  # Fine-tuning starts from the head that the model was initialized with.
  params = {
    **variables['params'],
    'head': {
      leaf: case.inputs[f'init_head_{leaf}'] for leaf in ('kernel', 'bias')
    },
  }
  table = params['Transformer']['posembed_input']['pos_embedding']
  case.compare(
    'Transformer/posembed_input/pos_embedding',
    table,
    case.meta['tolerance']['pos_embedding_atol'],
  )
  logits, _ = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))(
    params, jnp.asarray(case.inputs['images'])
  )
  case.compare('logits', logits)
