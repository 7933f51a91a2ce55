"""Released formats (.npz, .pth, .safetensors, our steps) <-> variables."""

_PUBLIC = {
  'load_pretrained': 'engine',
  'from_state_dict': 'engine',
  'save_weights': 'save',
  'to_state_dict': 'save',
  'released_shapes': 'save',
  'known_formats': 'naming',
  'read': 'formats',
  'stack_blocks': 'blocks',
  'unstack_blocks': 'blocks',
  'resize_table': 'resize',
  'Report': 'report',
  'WeightsError': 'errors',
}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
  if name in _PUBLIC:
    import importlib

    module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
