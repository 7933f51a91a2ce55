"""Which formats a model has, and the names and shapes of its parameters."""

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
# Flax path -> the rule that names it, and its released name.
Assignment = dict[str, tuple[Rule, str]]

# The format 'flax', which every model has: the names of its own tree.
FLAX = [Rule('params/(.*)', r'\1'), Rule('(batch_stats/.*)', r'\1')]

# Parameters that a file may have and a model may lack: a difference that is
# noted in the report, and no error.
OPTIONAL = tuple(
  f'params/{module}/{leaf}'
  for module in ('head', 'head_dist', 'aux_head', 'pre_logits')
  for leaf in ('kernel', 'bias')
)


@functools.cache
def _modules() -> list[types.ModuleType]:
  from vit_jax.weights import maps

  return [
    importlib.import_module(f'{maps.__name__}.{m.name}')
    for m in pkgutil.iter_modules(maps.__path__)
  ]


def map_module(model: nn.Module) -> types.ModuleType | None:
  """The module of `maps` for a model's class (or a base of it), or None."""
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
  """The formats a model loads from and saves to: {name: ordered rules}.

  'npz' is the naming of the published Google files; 'big_vision', 'timm' and
  'official' (the authors' PyTorch code) are those of the code bases; 'flax' is
  the model's own tree.
  """
  return {
    **{
      fmt: rules(model) if callable(rules) else rules
      for fmt, rules in _maps_of(model)[1].items()
    },
    'flax': FLAX,
  }


def rules_of(model: nn.Module, fmt: str) -> list[Rule]:
  """The rules of one format; WeightsError names the known ones."""
  known = known_formats(model)
  if fmt not in known:
    raise WeightsError(
      f'format {fmt!r} is not known for '
      f'{type(model).__name__}; allowed: {", ".join(known)}'
    )
  return known[fmt]


def resembles(model: nn.Module, names: Iterable[str]) -> bool:
  """Whether the names of a file may be those of a model.

  A quick test, without the model's shapes: more than a third of the names that
  one of its formats spells out occur in the file. Rules that pass any name on,
  as those for Flax names do, say nothing; files with Flax names always pass.

  Args:
    model: a Linen module of this project.
    names: of the tensors in a file.
  """
  text = '\n'.join(names)
  if re.search(r'/kernel\d?$', text, re.MULTILINE):
    return True
  for rules in known_formats(model).values():
    patterns = {
      _regex_of(rule.name) for rule in rules if isinstance(rule.name, str)
    }
    # What is left of a pattern without the parts that match anything, and
    # without the leaf that all PyTorch layers have, tells models apart.
    patterns = {
      p for p in patterns if re.sub(r'\[.*?\]\+|\\\.(bias|weight)|\$', '', p)
    }
    hits = sum(
      re.search(pattern, text, re.MULTILINE) is not None for pattern in patterns
    )
    if 3 * hits > len(patterns):
      return True
  return False


def _regex_of(template: str) -> str:
  """A regex for the end of a name, from a rule's template."""
  groups = r'(\\g<\d+>|\\\d|\{\d-1\})'
  return (
    ''.join(
      r'[\w.]+' if re.fullmatch(groups, piece) else re.escape(piece)
      for piece in re.split(groups, template)
    )
    + '$'
  )


def assign(rules: list[Rule], paths: Iterable[str]) -> Assignment:
  """The first matching rule of each path; paths without one are left out."""
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
  """Shapes of a model's variables, by `jax.eval_shape`: nothing is computed.

  Args:
    model: a Linen module of this project.
    image_size: (height, width).

  Returns:
    {path: shape}, and the (height, width) of the patches, which is None for a
    model without an intermediate 'stem' (B, h, w, D).
  """
  try:
    hash(model)
  except TypeError:  # a field such as a list
    return _trace.__wrapped__(model, image_size)
  return _trace(model, image_size)


@functools.lru_cache(maxsize=8)
def _trace(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[dict[str, Shape], tuple[int, int] | None]:
  (_, out), variables = jax.eval_shape(
    functools.partial(model.init_with_output, train=False),
    jax.random.key(0),
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
  """The same model with its blocks one by one."""
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def any_image_size(model: nn.Module) -> tuple[int, int]:
  """An image size that the model accepts, for uses where any size will do.

  224 where the patches divide it, else 32 patches.
  """
  height, width = (
    224 if 224 % p == 0 else 32 * p
    for p in as_size(getattr(model, 'patch_size', 16))
  )
  return height, width


def abstract(shape: Shape) -> np.ndarray:
  """An array of this shape without memory of its own."""
  return np.broadcast_to(np.float32(0), shape)
