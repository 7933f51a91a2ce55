"""Loads and saves weights: .npz, .pth, .safetensors and checkpoint steps."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from vit_jax.weights.blocks import stack_blocks, unstack_blocks
  from vit_jax.weights.contents import FileContents, inspect
  from vit_jax.weights.engine import from_state_dict, load_pretrained
  from vit_jax.weights.errors import WeightsError
  from vit_jax.weights.formats import WeightFile, read
  from vit_jax.weights.metadata import WeightsMetadata
  from vit_jax.weights.naming import known_formats, resembles
  from vit_jax.weights.report import Report, TensorRecord
  from vit_jax.weights.resize import resize_table
  from vit_jax.weights.save import (
    released_shapes,
    save_weights,
    to_state_dict,
  )

_MODULES = {
  'FileContents': 'contents',
  'Report': 'report',
  'TensorRecord': 'report',
  'WeightFile': 'formats',
  'WeightsError': 'errors',
  'WeightsMetadata': 'metadata',
  'from_state_dict': 'engine',
  'inspect': 'contents',
  'known_formats': 'naming',
  'load_pretrained': 'engine',
  'read': 'formats',
  'released_shapes': 'save',
  'resembles': 'naming',
  'resize_table': 'resize',
  'save_weights': 'save',
  'stack_blocks': 'blocks',
  'to_state_dict': 'save',
  'unstack_blocks': 'blocks',
}
__all__ = [
  'FileContents',
  'Report',
  'TensorRecord',
  'WeightFile',
  'WeightsError',
  'WeightsMetadata',
  'from_state_dict',
  'inspect',
  'known_formats',
  'load_pretrained',
  'read',
  'released_shapes',
  'resembles',
  'resize_table',
  'save_weights',
  'stack_blocks',
  'to_state_dict',
  'unstack_blocks',
]


def __getattr__(name: str):
  if name in _MODULES:
    module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
