"""Names of models: `register`, `create_model`, `list_models`, `model_info`.

A registered name is a Flax module class plus the fields that make the variant,
and what one must know to feed it as its authors did (image size, normalisation,
test crop). Every file of this folder is a family and registers its names on
import; they are imported the first time a name is asked for, so
`import vit_jax` stays light.
"""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import pkgutil
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
  """A named variant: the module class, its fields, and how to feed it."""

  name: str
  module: type
  fields: dict[str, Any]
  image_size: int = 224
  normalize: str = 'half'  # key of NORMALIZATION
  # Test-time geometry: 'squash' (resize to R x R), or the crop ratio c
  # (shorter side to R / c, then centre crop R).
  crop: str | float = 'squash'
  interpolation: str = 'bilinear'  # 'bilinear' (no antialias) or 'bicubic'
  released: tuple[str, ...] = ()  # known names of published files


_ENTRIES: dict[str, Entry] = {}


def register(
  name: str,
  module: type,
  *,
  image_size=224,
  normalize='half',
  crop='squash',
  interpolation='bilinear',
  released=(),
  **fields,
):
  """Registers `name` as `module(**fields)`; model files end with it."""
  if name in _ENTRIES:
    raise ValueError(f'model {name!r} is registered twice')
  _ENTRIES[name] = Entry(
    name,
    module,
    fields,
    image_size,
    normalize,
    crop,
    interpolation,
    tuple(released),
  )


@functools.cache
def _load_families():
  import vit_jax.models as package

  for family in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f'vit_jax.models.{family.name}')


def _nearest(word: str, words) -> str:
  near = difflib.get_close_matches(word, list(words), n=5, cutoff=0.5)
  return f' Did you mean {", ".join(near)}?' if near else ''


def list_models(pattern: str = '*') -> list[str]:
  """Registered names that match a shell pattern, sorted; 'vit' = 'vit*'."""
  _load_families()
  if not any(c in pattern for c in '*?['):
    pattern = f'{pattern}*'
  return sorted(n for n in _ENTRIES if fnmatch.fnmatch(n, pattern))


def model_info(name: str) -> Entry:
  """The registry entry of `name`; ValueError with the nearest names if none."""
  _load_families()
  if name not in _ENTRIES:
    raise ValueError(
      f'unknown model {name!r}.{_nearest(name, _ENTRIES)} '
      'All names: vit-jax models, or vit_jax.list_models().'
    )
  return _ENTRIES[name]


def create_model(name: str, num_classes: int = 1000, **fields):
  """Builds a Linen module by name.

  Args:
    name: a name of `list_models()`.
    num_classes: size of the head; 0 means no head (logits are `pre_logits`).
    **fields: any field of the module class, overriding the variant's own.

  Returns:
    A Linen module: `variables = model.init(key, images, train=False)`,
    `logits, out = model.apply(variables, images, train=False)`, with images
    float (B, H, W, 3), normalised.

  Raises:
    ValueError: unknown name or field, with the nearest ones.
  """
  entry = model_info(name)
  allowed = [
    f.name
    for f in dataclasses.fields(entry.module)
    if f.name not in ('parent', 'name')
  ]
  for field in fields:
    if field not in allowed:
      raise ValueError(
        f'{name} ({entry.module.__name__}) has no field {field!r}.'
        f'{_nearest(field, allowed)} Fields: {", ".join(allowed)}.'
      )
  return entry.module(**{**entry.fields, 'num_classes': num_classes, **fields})
