"""Which model a file of weights is for: `identify`.

A file tells its model in one of four ways, which are tried in order: by the
metadata that vit_jax wrote, by the name under which its authors published it,
by the `config.json` beside it, as the Hugging Face hub has it, and by the names
and shapes of its tensors. Tensors say nothing about the activation, the epsilon
of a norm and the normalization of images, so they decide only if all models
that they fit agree on these.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from absl import logging
import numpy as np

from vit_jax.models import timm_names
from vit_jax.models.registry import model_info, released_model
from vit_jax.preprocessing import Preprocessing, as_size
from vit_jax.weights import WeightsError, WeightsMetadata, hub

# File names that say nothing, so that the name of the folder counts.
_GENERIC = ('model', 'pytorch_model', 'checkpoint', 'weights', 'index')
# Arguments of timm's models in a config.json, and the fields that they set;
# None for those that the tensors say, or that matter in training only.
_TIMM_ARGUMENTS = {
  'depth': 'depth',
  'num_blocks': 'depth',
  'layers': 'layers',
  'embed_dim': 'width',
  'num_heads': 'num_heads',
  'patch_size': 'patch_size',
  'init_values': 'layer_scale',
  'num_classes': None,
  'img_size': None,
  'drop_rate': None,
  'drop_path_rate': None,
}
# What the code behind these formats fixes, where Google's differs.
_OF_PYTORCH = {
  'activation': ('gelu_tanh', 'gelu_erf'),
  'std_eps': (1e-10, 1e-8),
  'stem_style': ('google', 'timm'),
}
# Pillow's number of an interpolation, in a preprocessor_config.json.
_RESAMPLES = {1: 'lanczos', 2: 'bilinear_antialias', 3: 'bicubic', 5: 'hamming'}


@dataclasses.dataclass(frozen=True)
class Identity:
  """The model of a file.

  Attributes:
    name: registered name, or timm's.
    fields: fields that differ from those of the name.
    preprocessing: how its authors feed it; None for that of the name.
    classes: class names, in the order of the outputs, if they are known.
    reason: what told the model.
  """

  name: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  preprocessing: Preprocessing | None = None
  classes: Sequence[str] | None = None
  reason: str = ''


def identify(
  source: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  metadata: WeightsMetadata,
  model: str | None = None,
) -> Identity:
  """Finds the model of a file.

  Args:
    source: path or hub name.
    arrays: {name in the file: array}.
    metadata: what vit_jax wrote into the file.
    model: the name that the user gave; None searches it.

  Raises:
    WeightsError: the file does not tell its model; the message lists those that
      its tensors fit.
    ValueError: it is a published model that is not of this family.
  """
  feeding, classes = metadata.preprocessing, metadata.classes
  if model and model != metadata.model:
    name = model_info(model).name
    return Identity(name, {}, feeding, classes, 'the name that was given')
  if metadata.model:
    return Identity(
      metadata.model, metadata.fields, feeding, classes, 'metadata'
    )
  for name in _names(source):
    if model := released_model(name):
      return Identity(model, {}, feeding, classes, f'the name {name}')
  config = hub.read_config(source)
  if config is not None:
    if 'architecture' in config:
      return _of_timm(config)
    if config.get('model_type') in ('vit', 'deit', 'vit_mae'):
      return _of_transformers(
        config, hub.read_config(source, 'preprocessor_config.json') or {}
      )
  return _of_tensors(source, arrays)


def _names(source: str | os.PathLike) -> list[str]:
  """The last words of a source that may be published names."""
  path = os.fspath(source).rstrip('/')
  folder, _, file = path.rpartition('/')
  generic = file.partition('.')[0] in _GENERIC
  return [file, os.path.basename(folder)] if generic else [file]


def _of_timm(config: Mapping[str, Any]) -> Identity:
  """Reads the config.json that timm writes."""
  cfg = config.get('pretrained_cfg') or {}
  name = config['architecture']
  if cfg.get('tag'):
    name = f'{name}.{cfg["tag"]}'
  info = model_info(name)
  fields = {}
  for key, value in (config.get('model_args') or {}).items():
    if key not in _TIMM_ARGUMENTS:
      raise WeightsError(
        f"its config.json changes {name} by '{key}': {value!r}, which is not "
        f'read; allowed: {", ".join(_TIMM_ARGUMENTS)}. Name the model and set '
        'its fields with --model and --set'
      )
    field = _TIMM_ARGUMENTS[key]
    if field == 'layers' and not hasattr(info.module, 'layers'):
      field = 'num_layers'  # as BiT calls them
    if field:
      fields[field] = tuple(value) if isinstance(value, list) else value
  feeding = info.preprocessing
  if cfg.get('input_size') and cfg.get('mean'):
    feeding = Preprocessing(
      as_size(cfg['input_size'][1:]),
      cfg.get('crop_pct', 0.875),
      timm_names.interpolation(cfg.get('interpolation', 'bicubic')),
      timm_names.normalize(cfg['mean'], cfg['std']),
      crop_resize=timm_names.crop_resize(cfg.get('crop_mode', 'center')),
    )
  classes = config.get('label_names')
  return Identity(name, fields, feeding, classes, 'config.json')


def _of_transformers(
  config: Mapping[str, Any], feeding: Mapping[str, Any]
) -> Identity:
  """Reads the config.json and preprocessor_config.json of transformers."""
  activations = {
    'gelu': 'gelu_erf',
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'quick_gelu': 'quick_gelu',
  }
  activation = config.get('hidden_act', 'gelu')
  if activation not in activations:
    raise WeightsError(
      f'its config.json has hidden_act={activation!r}; allowed: '
      f'{", ".join(activations)}'
    )
  fields = {
    'width': config['hidden_size'],
    'depth': config['num_hidden_layers'],
    'num_heads': config['num_attention_heads'],
    'mlp_dim': config['intermediate_size'],
    'patch_size': config['patch_size'],
    'norm_eps': config.get('layer_norm_eps', 1e-12),
    'activation': activations[activation],
  }
  size = feeding.get('crop_size') or feeding.get('size')
  size = size or config.get('image_size', 224)
  if isinstance(size, Mapping):
    size = size.get('height') or size.get('shortest_edge') or 224
  crop = None
  if feeding.get('do_center_crop'):
    resized = feeding.get('size')
    if isinstance(resized, Mapping):
      resized = resized.get('height') or resized.get('shortest_edge')
    crop = size / resized if resized else 0.875
  half = (0.5,) * 3
  preprocessing = Preprocessing(
    as_size(size),
    crop,
    _RESAMPLES.get(feeding.get('resample', 2), 'bilinear_antialias'),
    timm_names.normalize(
      feeding.get('image_mean', half), feeding.get('image_std', half)
    ),
  )
  labels = config.get('id2label') or {}
  classes = [labels[key] for key in sorted(labels, key=int)]
  if config['model_type'] == 'deit':
    both = 'DeiTForImageClassificationWithTeacher'
    if both not in (config.get('architectures') or []):
      fields['fusion'] = 'class'  # the second head is not in the file
    return Identity(
      'deit_b16_distilled', fields, preprocessing, classes, 'config.json'
    )
  return Identity('vit_b16', fields, preprocessing, classes, 'config.json')


def _of_tensors(
  source: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> Identity:
  """The only model that the tensors fit, whatever they leave open."""
  from vit_jax.inference.describe import matching_models

  names = without_area_attention(arrays, matching_models(arrays))
  if not names:
    names = matching_models(arrays, names=timm_names.names())
  meanings = {_meaning(name) for name in names}
  if len(meanings) == 1:
    return Identity(names[0], reason='its tensors')
  raise WeightsError(
    f'{source} does not say which model it is for: '
    + (
      f'name it (--model NAME). Its tensors fit {", ".join(names[:6])}, which '
      'differ in their activation or in how images are prepared'
      if names
      else 'name it (--model NAME; vit-jax models lists all names)'
    )
  )


def without_area_attention(
  arrays: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[str]:
  """Names of models without those of area attention, if others are left.

  Area attention has the parameters of ordinary attention, so a file of a plain
  ViT fits it too. Only the names of the project's own files tell it.
  """
  if any('area_attention' in name for name in arrays):
    return list(names)
  has_areas = lambda name: model_info(name).fields.get('area_sizes')
  return [name for name in names if not has_areas(name)] or list(names)


def _meaning(name: str) -> tuple:
  """What the tensors of a model leave open, but for its image size."""
  info = model_info(name)
  fields = {k: v for k, v in info.fields.items() if k != 'init_style'}
  feeding = dataclasses.replace(info.preprocessing, size=(1, 1))
  return (info.module, repr(sorted(fields.items())), feeding)


def fields_of_format(name: str, fmt: str) -> dict[str, Any]:
  """Fields that the code behind a format fixes for a model of Google's code.

  PyTorch's code computes the exact GELU, and timm's BiT and hybrid stems add
  another epsilon to the variance of kernels. A registered name of Google's code
  stands for theirs.

  Args:
    name: of the model.
    fmt: format of the file.
  """
  if fmt not in ('timm', 'transformers', 'transformers5'):
    return {}
  info = model_info(name)
  defaults = {
    field.name: info.fields.get(field.name, field.default)
    for field in dataclasses.fields(info.module)
  }
  fields = {
    key: theirs
    for key, (googles, theirs) in _OF_PYTORCH.items()
    if key in defaults
    and defaults[key] == googles
    and timm_names.find(name) is None
  }
  if defaults.get('stem') is None:
    fields.pop('stem_style', None)
  if fields:
    logging.info('%s in the format %s: %s', name, fmt, fields)
  return fields
