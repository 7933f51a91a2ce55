"""Released formats (.npz, .pth, .safetensors, our steps) <-> variables."""

_PUBLIC = {
    'WeightsError': 'engine',
    'formats': 'engine',
    'from_state_dict': 'engine',
    'released_shapes': 'engine',
    'stack_blocks': 'engine',
    'to_state_dict': 'engine',
    'unstack_blocks': 'engine',
    'Report': 'report',
    'resize_table': 'resize',
}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
  if name in _PUBLIC:
    import importlib
    module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
