"""Names of models: `register`, `create_model`, `list_models`, `model_info`.

A registered name is a Flax module class, the fields that make the variant, and
how its authors feed it with images. Every file of this folder is a family and
registers its names on import. The files are imported the first time that a
name is needed, so `import vit_jax` stays light.

A file of your own adds models in the same way. It has to be importable (in the
current directory, say), and `load_module` imports it:

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

`load_module` states what such a class must have.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import os
import pkgutil
import sys
import types
from typing import Any

from flax import linen as nn

from vit_jax.preprocessing import Preprocessing

# 224 px, resized without regard to the aspect ratio, pixels in [-1, 1].
GOOGLE = Preprocessing()


@dataclasses.dataclass(frozen=True)
class ModelInfo:
  """A named variant.

  Attributes:
    name: the registered name.
    module: the Linen module class.
    fields: fields of `module` that make the variant.
    preprocessing: how the authors feed images in evaluation, and at which size.
    released: names of published weights: files (a shell pattern where there
      are several) and timm models.
    role: '' for the models that this package is about, 'comparator' for the
      convolutional networks that their papers compare with, 'teacher' for one
      of these that taught a published model.
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
  """Registers `name` as `module(**fields)`; model files end with calls of it.

  See `ModelInfo` for the arguments. Raises ValueError if the name is taken, or
  if `module` has no such field.
  """
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

  The module is looked for where Python looks for modules, and last in the
  current directory. It calls `register(NAME, CLASS, ...)` for each model.
  CLASS is a `flax.linen.Module` with

  - a field `num_classes: int`; with 0, the logits are the features;
  - `__call__(self, images, *, train: bool)`, which takes float images
    (B, H, W, 3), normalized, and returns the float32 logits (B, num_classes)
    and a dict of intermediates with 'pre_logits' (B, D), the features before
    the head. The last layer should be called 'head': fine-tuning then resets
    it when the number of classes differs;
  - parameters in the collection 'params' and, if there are running statistics,
    those in 'batch_stats'. Random numbers in training come from
    `self.make_rng('dropout')`.

  Further fields are optional. Training sets `dtype` where there is such a
  field. The recipe keys `model.remat`, `model.scan`, `model.dropout` and the
  others reach the field of the same name.

  Args:
    name: dotted name, such as 'my_models' for the file my_models.py.

  Returns:
    The module.

  Raises:
    ValueError: there is no such module. Errors inside of the module are not
      caught.
  """
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name and not name.startswith(f'{error.name}.'):
      raise  # the module exists, and imports another one that does not
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
  """Registered names that match a shell pattern, sorted; 'vit' is 'vit*'."""
  _load_families()
  if not any(c in pattern for c in '*?['):
    pattern = f'{pattern}*'
  return sorted(n for n in _MODELS if fnmatch.fnmatchcase(n, pattern))


def model_info(name: str) -> ModelInfo:
  """What is registered as `name`; ValueError with the nearest names if none."""
  _load_families()
  if name not in _MODELS:
    raise ValueError(
      f'unknown model {name!r}.{_nearest(name, _MODELS)} '
      'All names: vit-jax models, or vit_jax.list_models().'
    )
  return _MODELS[name]


def released_model(source: str | os.PathLike) -> str | None:
  """The model that a published file or hub entry is of, by its name.

  Args:
    source: a path, or a hub name such as 'hf:timm/regnety_160.deit_in1k'.

  Returns:
    A registered name; None if nothing of this name was published, or if the
    name fits several models.
  """
  _load_families()
  file = os.fspath(source).rstrip('/').rpartition('/')[2]
  names = [
    info.name
    for info in _MODELS.values()
    if any(fnmatch.fnmatchcase(file, pattern) for pattern in info.released)
  ]
  return names[0] if len(names) == 1 else None


def create_model(
  name: str, num_classes: int = 1000, **fields: Any
) -> nn.Module:
  """Builds a Linen module by name.

  Args:
    name: a name of `list_models()`.
    num_classes: size of the head; 0 means no head (logits are `pre_logits`).
    **fields: any field of the module class, overriding the variant's own.

  Returns:
    A Linen module: `variables = model.init(key, images, train=False)`,
    `logits, out = model.apply(variables, images, train=False)`, with images
    float (B, H, W, 3), normalized.

  Raises:
    ValueError: unknown name or field, with the nearest ones.
  """
  info = model_info(name)
  _check_fields(name, info.module, fields)
  return info.module(**{**info.fields, 'num_classes': num_classes, **fields})
