"""vit_jax: the Vision Transformer family in JAX/Flax.

Importing it starts no backend and loads no TensorFlow, torch or plots.
"""

__version__ = '0.2.0'

_PUBLIC = {
  'create_model': 'vit_jax.models.registry',
  'list_models': 'vit_jax.models.registry',
  'model_info': 'vit_jax.models.registry',
  'load_pretrained': 'vit_jax.weights',
  'from_state_dict': 'vit_jax.weights',
  'save_weights': 'vit_jax.weights',
  'train_and_evaluate': 'vit_jax.train',
}
__all__ = sorted([*_PUBLIC, '__version__'])


def __getattr__(name):
  if name in _PUBLIC:
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
