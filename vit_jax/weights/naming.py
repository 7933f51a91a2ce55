"""The formats of a model, and the names and shapes of its parameters."""

from collections.abc import Callable, Iterable
import functools
import importlib
import pkgutil
import re
import types

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.preprocessing import as_size
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.rules import Rule

Shape = tuple[int, ...]
Rules = list[Rule] | Callable[[nn.Module], list[Rule]]
# {Flax path: (the rule that gives its released name, the released name)}.
Assignment = dict[str, tuple[Rule, str]]

# The rules of the format 'flax', which every model has: a parameter has the
# name of its path.
FLAX = [Rule('params/(.*)', r'\1'), Rule('(batch_stats/.*)', r'\1')]

# Parameters of a file that a model may lack: this is reported and not an error.
OPTIONAL = tuple(
  f'params/{module}/{leaf}'
  for module in ('head', 'head_dist', 'aux_head', 'pre_logits')
  for leaf in ('kernel', 'bias')
)


@functools.cache
def _modules() -> list[types.ModuleType]:
  """All modules in `maps`."""
  from vit_jax.weights import maps

  return [
    importlib.import_module(f'{maps.__name__}.{m.name}')
    for m in pkgutil.iter_modules(maps.__path__)
  ]


def map_module(model: nn.Module) -> types.ModuleType | None:
  """The module of `maps` for the class of a model or a base class, or None."""
  return _maps_of(model)[0]


def _maps_of(
  model: nn.Module,
) -> tuple[types.ModuleType | None, dict[str, Rules]]:
  for cls in type(model).__mro__:
    for module in _modules():
      if cls.__name__ in module.MAPS:
        return module, module.MAPS[cls.__name__]
  return None, {}


def known_formats(model: nn.Module) -> dict[str, list[Rule]]:
  """The formats that a model can be loaded from and saved in.

  'npz' has the names of the published Google files; 'big_vision', 'timm' and
  'official' (the authors' PyTorch code) have the names of these code bases;
  'flax' has the paths of the model's own parameters.

  Returns:
    {name of a format: its rules, of which the first that matches counts}.
  """
  return {
    **{
      fmt: rules(model) if callable(rules) else rules
      for fmt, rules in _maps_of(model)[1].items()
    },
    'flax': FLAX,
  }


def rules_of(model: nn.Module, fmt: str) -> list[Rule]:
  """The rules of one format.

  Raises:
    WeightsError: the model has no such format; the message names the others.
  """
  known = known_formats(model)
  if fmt not in known:
    raise WeightsError(
      f'format {fmt!r} is not known for '
      f'{type(model).__name__}; allowed: {", ".join(known)}'
    )
  return known[fmt]


def resembles(model: nn.Module, names: Iterable[str]) -> bool:
  """Whether the names of a file may be those of a model.

  A quick test that needs no shapes of the model. For each format it asks
  whether more than a third of the names that the format spells out occur in the
  file. Rules that take over any name, as those of Google's files do, cannot be
  tested so: a model with such rules resembles every file with Flax names.

  Args:
    model: a Linen module of this project.
    names: of the tensors in a file.
  """
  text = '\n'.join(names)
  formats = known_formats(model)
  if re.search(r'/kernel\d?$', text, re.MULTILINE):
    released = [rules for fmt, rules in formats.items() if fmt != 'flax']
    catch_all = any(not _says(_regex_of(n)) for n in _names(released))
    if catch_all or not released or hasattr(model, 'scan'):
      return True  # `scan` stacks blocks under other names
    patterns = [
      {r.pattern.removeprefix('params/') + '$' for r in rules}
      for rules in released
    ]
  else:
    patterns = [
      {p for name in _names([rules]) if _says(p := _regex_of(name))}
      for rules in formats.values()
    ]
  return any(3 * _hits(some, text) > len(some) for some in patterns)


def _names(formats: Iterable[list[Rule]]) -> list[str]:
  """The names of rules that are templates, not functions."""
  return [r.name for rules in formats for r in rules if isinstance(r.name, str)]


def _says(pattern: str) -> bool:
  """Whether a regex of a name has more than wildcards and the leaf's name."""
  return bool(re.sub(r'\[.*?\]\+|\\\.(bias|weight)|\$', '', pattern))


def _hits(patterns: Iterable[str], text: str) -> int:
  return sum(re.search(p, text, re.MULTILINE) is not None for p in patterns)


def _regex_of(template: str) -> str:
  """A regex for the end of a released name, made from a rule's template."""
  groups = r'(\\g<\d+>|\\\d|\{\d-1\})'
  return (
    ''.join(
      r'[\w.]+' if re.fullmatch(groups, piece) else re.escape(piece)
      for piece in re.split(groups, template)
    )
    + '$'
  )


def torch_patterns() -> set[str]:
  """Regexes for whole names of all PyTorch formats, with 0 for any number.

  Names that rules compute are left out.
  """
  from vit_jax.models.registry import create_model, list_models
  from vit_jax.models.resnetv2 import STEMS, ResNetV2
  from vit_jax.models.towers.tower import BLOCKS, Tower

  models = [
    *(ResNetV2(stem=stem) for stem in STEMS),
    *map(create_model, list_models()),
    *(Tower(block=block) for block in BLOCKS),
    *(Tower(mlp=mlp) for mlp in ('swiglu', 'swiglu_packed')),
  ]
  patterns, seen = set(), set()
  for model in models:
    # Rules depend on the class and on these fields.
    stem = getattr(model, 'stem', None)
    areas = bool(getattr(model, 'area_sizes', ()))
    kind = (type(model), stem is None, not stem, areas)
    if kind in seen and not isinstance(model, Tower | ResNetV2):
      continue
    seen.add(kind)
    for template in _names(known_formats(model).values()):
      if '/' not in template and _says(_regex_of(template)):
        patterns.add(re.sub(r'\d+', '0', _regex_of(template)[:-1]))
  return patterns


def assign(rules: list[Rule], paths: Iterable[str]) -> Assignment:
  """Finds the first matching rule of each Flax path.

  Returns:
    {path: (rule, released name)}, without the paths that no rule matches.
  """
  assigned = {}
  for path in paths:
    for rule in rules:
      name = rule.match(path)
      if name is not None:
        assigned[path] = rule, name
        break
  return assigned


def model_shapes(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[dict[str, Shape], tuple[int, int] | None]:
  """Shapes of a model's variables, by `jax.eval_shape`, without computation.

  Args:
    model: a Linen module of this project.
    image_size: (height, width) in pixels.

  Returns:
    {Flax path: shape}, and the grid (height, width) of the patches, or None for
    a model without an intermediate 'stem' (B, h, w, D).
  """
  try:
    hash(model)
  except TypeError:  # a field is a list, so the model cannot be a cache key
    return _trace.__wrapped__(model, image_size)
  return _trace(model, image_size)


@functools.lru_cache(maxsize=8)
def _trace(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[dict[str, Shape], tuple[int, int] | None]:
  (_, out), variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32),
  )
  stem = out.get('stem')
  grid = stem.shape[1:3] if stem is not None and stem.ndim == 4 else None
  shapes = {
    path: tuple(x.shape)  # pyright: ignore[reportAttributeAccessIssue]
    for path, x in flatten_dict(variables, sep='/').items()
  }
  return shapes, grid


def unrolled(model: nn.Module) -> nn.Module:
  """The model itself, or for a scanned model the one that is not scanned."""
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def any_image_size(model: nn.Module) -> tuple[int, int]:
  """An image size that the model accepts, where the size does not matter.

  It is 224, or 32 patches if the patch size does not divide 224.
  """
  height, width = (
    224 if 224 % p == 0 else 32 * p
    for p in as_size(getattr(model, 'patch_size', 16))
  )
  return height, width


def abstract(shape: Shape) -> np.ndarray:
  """An array of zeros of a shape that takes no memory."""
  return np.broadcast_to(np.float32(0), shape)
