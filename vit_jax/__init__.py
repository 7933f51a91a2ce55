"""vit_jax: the Vision Transformer family in JAX/Flax.

    classifier = vit_jax.load_classifier('ViT-B_16.npz', model='vit_b16')
    for result in classifier.classify(['photo.jpg']):
      print(result['predictions'][0])

The names in `__all__` are the public API. Each is imported when it is first
used: importing vit_jax starts no JAX backend and loads no TensorFlow, torch or
plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from vit_jax.finetuning import finetune
  from vit_jax.inference.accuracy import evaluate
  from vit_jax.inference.export import export
  from vit_jax.inference.loading import load_classifier
  from vit_jax.inference.prediction import predict
  from vit_jax.models.registry import create_model, list_models, model_info
  from vit_jax.preprocessing import Preprocessing
  from vit_jax.recipe.keys import ConfigError
  from vit_jax.train import train_and_evaluate
  from vit_jax.weights.engine import from_state_dict, load_pretrained
  from vit_jax.weights.errors import WeightsError
  from vit_jax.weights.report import Report
  from vit_jax.weights.save import save_weights

__version__ = '0.2.0'

__all__ = [
  'ConfigError',
  'Preprocessing',
  'Report',
  'WeightsError',
  'create_model',
  'evaluate',
  'export',
  'finetune',
  'from_state_dict',
  'list_models',
  'load_classifier',
  'load_pretrained',
  'model_info',
  'predict',
  'save_weights',
  'train_and_evaluate',
]

# {public name: the module that defines it}, as above for type checkers.
_MODULES = {
  'ConfigError': 'vit_jax.recipe.keys',
  'Preprocessing': 'vit_jax.preprocessing',
  'Report': 'vit_jax.weights.report',
  'WeightsError': 'vit_jax.weights.errors',
  'create_model': 'vit_jax.models.registry',
  'evaluate': 'vit_jax.inference.accuracy',
  'export': 'vit_jax.inference.export',
  'finetune': 'vit_jax.finetuning',
  'from_state_dict': 'vit_jax.weights.engine',
  'list_models': 'vit_jax.models.registry',
  'load_classifier': 'vit_jax.inference.loading',
  'load_pretrained': 'vit_jax.weights.engine',
  'model_info': 'vit_jax.models.registry',
  'predict': 'vit_jax.inference.prediction',
  'save_weights': 'vit_jax.weights.save',
  'train_and_evaluate': 'vit_jax.train',
}


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
