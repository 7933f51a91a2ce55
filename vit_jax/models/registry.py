"""Names of models: `register`, `create_model`, `list_models`, `model_info`.

A registered name stands for a Flax module class, the fields of the variant, and
the preprocessing of its authors. Each file of this folder that defines models
registers their names when it is imported. The files are imported the first time
that a name is looked up, so that `import vit_jax` is fast.

A file of your own adds models in the same way. `load_module` imports it from
the current directory or from where Python looks for modules:

    # my_models.py
    from flax import linen as nn
    from vit_jax.models.registry import register

    class MyModel(nn.Module):
      num_classes: int = 1000
      width: int = 64

      @nn.compact
      def __call__(self, images, *, train):
        x = nn.relu(nn.Dense(self.width, name='embedding')(images))
        x = x.mean(axis=(1, 2))
        out = {'pre_logits': x}
        if self.num_classes:
          x = nn.Dense(self.num_classes, name='head')(x)
        return x, out

    register('my_model', MyModel, width=128)

The docstring of `load_module` says what such a class must have.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import inspect
import os
import pkgutil
import sys
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.catalog import matching
from vit_jax.preprocessing import Preprocessing

# Google's preprocessing: resized to 224x224 px without keeping the aspect
# ratio, with pixels in [-1, 1].
GOOGLE = Preprocessing()


@dataclasses.dataclass(frozen=True)
class ModelInfo:
  """A named variant.

  Attributes:
    name: the registered name.
    module: the Linen module class.
    fields: fields of `module` that make the variant.
    preprocessing: image size and preprocessing of the authors' evaluation.
    released: names of published weights: names of files, or a shell pattern for
      several files, and names of timm models.
    role: 'comparator' for a convolutional network that papers compare their
      transformers with, 'teacher' for one that was the teacher of a published
      model, '' for all other models.
  """

  name: str
  module: type[nn.Module]
  fields: Mapping[str, Any]
  preprocessing: Preprocessing = GOOGLE
  released: tuple[str, ...] = ()
  role: str = ''


_MODELS: dict[str, ModelInfo] = {}


def register(
  name: str,
  module: type[nn.Module],
  *,
  preprocessing: Preprocessing = GOOGLE,
  released: Iterable[str] = (),
  role: str = '',
  **fields: Any,
) -> None:
  """Registers `name` for `module(**fields)`.

  Args:
    name: the name, which must be new.
    module: a Linen module class; see `load_module` for what it must have.
    preprocessing, released, role: see `ModelInfo`.
    **fields: fields of `module` that make the variant.

  Raises:
    ValueError: the name is registered already, `module` has no such field, or
      it is no model (`load_module`).
  """
  _check_module(module)
  if name in _MODELS:
    raise ValueError(
      f'model {name!r} is registered already, as '
      f'{_MODELS[name].module.__name__}: choose another name'
    )
  _check_fields(name, module, fields)
  _MODELS[name] = ModelInfo(
    name, module, fields, preprocessing, tuple(released), role
  )


def load_module(name: str) -> types.ModuleType:
  """Imports a module by name, so that the models in it are registered.

  Python's usual search path applies, and after it the current directory. The
  module calls `register(NAME, CLASS, ...)` for each of its models. CLASS is a
  `flax.linen.Module` with

  - a field `num_classes: int`; for 0, the model has no head and returns
    'pre_logits' as the logits;
  - `__call__(self, images, *, train: bool)`, which takes float images
    (B, H, W, 3), normalized, and returns the float32 logits (B, num_classes)
    and a dict of intermediates with 'pre_logits' (B, D), the features before
    the head. The last layer should be called 'head': fine-tuning then resets
    it when the number of classes differs;
  - parameters in the collection 'params' and, if there are running statistics,
    those in 'batch_stats'. Random numbers in training come from
    `self.make_rng('dropout')`.

  Further fields are optional. Training sets the field `dtype` if there is one.
  A recipe's keys `model.remat`, `model.scan`, `model.dropout` and so on set the
  fields of the same names.

  Args:
    name: dotted name, such as 'my_models' for the file my_models.py.

  Returns:
    The module.

  Raises:
    ValueError: there is no such module. Errors while the module runs are passed
      on as they are.
  """
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name and not name.startswith(f'{error.name}.'):
      raise  # the module exists; one that it imports does not
    raise ValueError(
      f'module {name!r} cannot be imported: give the name of a Python file in '
      f'{os.getcwd()} or on PYTHONPATH, without .py'
    ) from error


@functools.cache
def _load_families() -> None:
  import vit_jax.models as package

  for family in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f'vit_jax.models.{family.name}')


def _nearest(word: str, words: Iterable[str]) -> str:
  near = difflib.get_close_matches(word, list(words), n=5, cutoff=0.5)
  return f' Did you mean {", ".join(near)}?' if near else ''


@functools.cache
def _check_module(module: type[nn.Module]) -> None:
  """A class that is registered has what every model has."""
  if not any(f.name == 'num_classes' for f in dataclasses.fields(module)):
    raise ValueError(
      f'{module.__name__} is no model: it needs a field num_classes: int'
    )
  if 'train' not in inspect.signature(module.__call__).parameters:
    raise ValueError(
      f'{module.__name__} is no model: its method must be __call__(self, '
      'images, *, train)'
    )


def check_outputs(model: nn.Module, size: tuple[int, int]) -> None:
  """Checks what a model of the user returns, without computing it.

  Args:
    model: the module.
    size: (height, width) of its images.

  Raises:
    ValueError: it does not return logits and a dict of intermediates.
  """
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  output, _ = jax.eval_shape(
    functools.partial(model.init_with_output, train=False),
    jax.random.key(0),
    images,
  )
  pair = isinstance(output, tuple) and len(output) == 2
  if not (pair and isinstance(output[1], Mapping)):
    shapes = jax.tree.map(lambda x: x.shape, output)
    raise ValueError(
      f'{type(model).__name__} must return two values, the logits (batch, '
      "num_classes) and a dictionary such as {'pre_logits': features}; for one "
      f'image it returns {shapes}'
    )


def _check_fields(name: str, module: type, fields: Iterable[str]) -> None:
  allowed = [
    f.name
    for f in dataclasses.fields(module)
    if f.name not in ('parent', 'name')
  ]
  for field in fields:
    if field not in allowed:
      raise ValueError(
        f'{name} ({module.__name__}) has no field {field!r}.'
        f'{_nearest(field, allowed)} Fields: {", ".join(allowed)}.'
      )


def list_models(pattern: str = '*') -> list[str]:
  """The registered names that match a shell pattern, sorted.

  Args:
    pattern: such as '*16'. Without *, ? and [ it is the beginning of the names:
      'vit' is 'vit*'.
  """
  _load_families()
  return matching(_MODELS, pattern)


def model_info(name: str) -> ModelInfo:
  """What is registered under a name, or what a name of timm stands for.

  Args:
    name: a registered name, or one of timm such as
      'vit_base_patch16_224.augreg2_in21k_ft_in1k' or 'hf-hub:timm/...'; see
      `timm_names`.

  Raises:
    ValueError: the name is unknown, or of a model of timm that is not of this
      family; the message has the nearest names.
  """
  _load_families()
  if name not in _MODELS:
    info = _timm_info(name)
    if info is not None:
      return info
    raise ValueError(
      f'unknown model {name!r}.{_nearest(name, _MODELS)} '
      'All names: vit-jax models, or vit_jax.list_models().'
    )
  return _MODELS[name]


def _timm_info(name: str) -> ModelInfo | None:
  """What a name of timm stands for; None if it is none."""
  from vit_jax.models import timm_names
  from vit_jax.models.resnetv2 import ResNetV2
  from vit_jax.models.towers.tower import Tower

  timm = timm_names.find(name)
  if timm is None:
    return None
  # Classes that only timm's names use have no registered name.
  module, fields = {'Tower': Tower, 'ResNetV2': ResNetV2}.get(timm.base), {}
  if module is None:
    base = _MODELS[timm.base]
    module, fields = base.module, base.fields
  return ModelInfo(
    timm.name, module, {**fields, **timm.fields}, timm.preprocessing
  )


def released_model(source: str | os.PathLike) -> str | None:
  """The model whose published weights have the name of a file or hub entry.

  Args:
    source: a path, or a hub name such as 'hf:timm/regnety_160.deit_in1k', with
      or without '@REVISION'.

  Returns:
    The registered name of the model, or timm's; None if no published weights
    have this name, or if those of several models do.

  Raises:
    ValueError: it is the name of a model of timm that is not of this family.
  """
  from vit_jax.models import timm_names

  _load_families()
  file = os.fspath(source).rstrip('/').rpartition('/')[2]
  if os.fspath(source).startswith(('hf:', 'hf-hub:', 'hf_hub:')):
    file = file.partition('@')[0]
  stem = timm_names.plain_name(file)
  for suffix in ('.safetensors', '.pth', '.bin', '.npz'):
    stem = stem.removesuffix(suffix)
  timm = timm_names.find(stem)
  if timm is not None:
    return timm.name
  names = [
    info.name
    for info in _MODELS.values()
    if any(
      fnmatch.fnmatchcase(file, pattern.rpartition('/')[2])
      for pattern in info.released
    )
  ]
  return names[0] if len(names) == 1 else None


def create_model(
  name: str, num_classes: int = 1000, **fields: Any
) -> nn.Module:
  """Builds a Linen module by name.

  Args:
    name: one of `list_models()`, or a name of timm.
    num_classes: size of the head; 0 for no head (logits are `pre_logits`).
    **fields: fields of the module class, instead of the variant's values.

  Returns:
    A Linen module: `variables = model.init(key, images, train=False)`,
    `logits, out = model.apply(variables, images, train=False)`, with images
    float (B, H, W, 3), normalized.

  Raises:
    ValueError: the name or a field is unknown; the message has the nearest
      ones.
  """
  info = model_info(name)
  _check_fields(name, info.module, fields)
  return info.module(**{**info.fields, 'num_classes': num_classes, **fields})
