"""Finds the prefix under which a file has the tensors of a model.

Training programs put the model into wrappers, each of which puts a word before
the names of its tensors: `module.` (DataParallel), `_orig_mod.`
(torch.compile), `model.` (Lightning), `teacher.backbone.` (DINO), `model_ema.`
and so on, in any order. Beside the model they store others: averages, heads of
a loss, optimizer state. So the prefix is searched and not taken from a list: it
is the one under which most names are those of a model, and every name of the
model has it.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import re
from typing import Any, NamedTuple, TypeVar

from vit_jax.weights.errors import WeightsError

T = TypeVar('T')

# Prefixes of Google's training programs, whose names have slashes.
_FLAX = ('opt/target/', 'optimizer/target/', 'params/')
# Dictionaries of a checkpoint that hold the model, whatever its names are.
_DICTIONARIES = ('model', 'state_dict', 'model_state_dict')
# Words for copies of the model, and for values of an optimizer that are named
# as the model's. Such a copy is taken if there is nothing else: a model before
# its average, and DINO's teacher, which its authors evaluate, before its
# student.
_COPY = re.compile(
  r'(?<![a-z])(ema|swa|averaged?|student|momentum|opt|optim|optimizer|exp_avg'
  r'|exp_avg_sq|momentum_buffer|grad|gradients?|init|initial)(?![a-z])',
  re.IGNORECASE,
)
# Wrappers of a single layer, which PyTorch puts within the names: a compiled or
# sharded layer, and one whose activations are recomputed.
_INNER = re.compile(
  r'((?:^|\.)(?:\d+|\w*attn|mlp|ffn|blocks|layers)\.)'
  r'(?:(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.)+'
)
# A head that stands beside the model: some programs wrap a model that has none
# and add their own.
_HEAD = re.compile(r'(head|head_dist|fc|classifier)\.(weight|bias)')
# Parts of a name that a prefix can be made of: no more than these are tried.
_LONGEST = 10
_MOST_VISITED = 1_000_000
# transformers puts the name of the base model before all names but the head's.
_BASE_MODEL = re.compile(
  r'(^|\.)(?:vit|deit)\.(?=embeddings\.|encoder\.|layers\.|layernorm\.|pooler\.)'
)


class Selection(NamedTuple):
  """The tensors under a prefix.

  Attributes:
    prefix: such as 'teacher.backbone.'; '' for none.
    inside: {name without the prefix: tensor}.
    outside: {name: tensor} of all other tensors.
  """

  prefix: str
  inside: dict[str, Any]
  outside: dict[str, Any]

  def describe(self) -> str:
    """The prefix, and how many tensors of which kind have another one."""
    text = f'took the {len(self.inside)} tensors under {self.prefix!r}'
    if not self.outside:
      return text
    counts: dict[str, int] = {}
    for name in self.outside:
      words = name.split('.')
      own = words[0] == self.prefix.split('.')[0]
      word = '.'.join(words[: 1 + own])
      counts[word] = counts.get(word, 0) + 1
    groups = [f'{word} ({n})' for word, n in counts.items()]
    more = f' and {len(groups) - 6} others' if len(groups) > 6 else ''
    return f'{text}; left out: {", ".join(groups[:6])}{more}'


def flatten(tree: Any, is_leaf: Callable[[Any], bool]) -> dict[str, Any]:
  """{names joined by dots: leaf} of nested dictionaries and lists."""
  flat: dict[str, Any] = {}
  visited = 0

  def visit(prefix: str, value: Any, depth: int) -> None:
    nonlocal visited
    visited += 1
    if visited > _MOST_VISITED:  # containers that hold one another many times
      raise WeightsError(
        f'its dictionaries and lists hold more than {_MOST_VISITED:,} values'
      )
    if is_leaf(value):
      flat[prefix] = value
      return
    if depth > 8:  # a damaged pickle may contain itself
      return
    if isinstance(value, dict):
      items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
      items = enumerate(value)
    else:
      return
    for key, x in items:
      visit(f'{prefix}.{key}' if prefix else str(key), x, depth + 1)

  visit('', tree, 0)
  return flat


def select(
  tensors: Mapping[str, T],
  is_known: Callable[[str], bool] | None = None,
  prefix: str | None = None,
) -> Selection:
  """Chooses the tensors of one model in a file.

  Args:
    tensors: {name: tensor}.
    is_known: whether a name is one of the model; None is every name of a format
      of this package.
    prefix: the prefix to take, with or without its last dot, and '' for all
      names as they are; None searches it.

  Raises:
    WeightsError: no name has the prefix that is given; the message lists those
      under which there is a model.
  """
  if prefix is not None:
    return _given(tensors, prefix, is_known or known_names)
  tensors = _without_inner_words(tensors)
  if any(name.startswith(_FLAX) for name in tensors):
    return _select_flax(tensors)
  ranked = rank(tensors, is_known or known_names)
  if ranked and ranked[0]:
    return _with_head(_split(tensors, ranked[0]), is_known or known_names)
  if copies := tuple(x for x in ranked if _COPY.search(x)):
    # Names without a prefix: the copies are not among them.
    outside = {k: x for k, x in tensors.items() if k.startswith(copies)}
    inside = {k: x for k, x in tensors.items() if k not in outside}
    return Selection('', inside, outside)
  if ranked:
    return _split(tensors, '')
  for word in _DICTIONARIES:
    if any(name.startswith(f'{word}.') for name in tensors):
      inner = _split(tensors, f'{word}.')
      deeper = select(inner.inside, is_known)
      return Selection(
        inner.prefix + deeper.prefix,
        deeper.inside,
        inner.outside
        | {inner.prefix + name: x for name, x in deeper.outside.items()},
      )
  return Selection('', dict(tensors), {})


def rank(names: Iterable[str], is_known: Callable[[str], bool]) -> list[str]:
  """The prefixes under which there is a model, the best first.

  The best one has the most names of a model; of several, the one that is not of
  a copy, and then the shortest. A prefix counts only if names of at least two
  layers of a model follow it, because words such as `norm.weight` end many
  names of other models.
  """
  counts: dict[str, int] = {}
  layers: dict[str, set[str]] = {}
  known = functools.cache(is_known)
  for name in names:
    words = name.split('.')
    for i in range(min(len(words), _LONGEST)):
      rest = '.'.join(words[i:])
      if known(rest):
        prefix = ''.join(f'{word}.' for word in words[:i])
        counts[prefix] = counts.get(prefix, 0) + 1
        layers.setdefault(prefix, set()).add(words[i])
  return sorted(
    (prefix for prefix in counts if len(layers[prefix]) > 1),
    key=lambda p: (-counts[p], bool(_COPY.search(p)), len(p), p),
  )


def _given(
  tensors: Mapping[str, Any], prefix: str, is_known: Callable[[str], bool]
) -> Selection:
  """The tensors under a prefix that the user named."""
  if prefix and not prefix.endswith(('.', '/')):
    prefix += '.'
  result = _split(tensors, prefix)
  if not result.inside:
    names = ', '.join(repr(p) for p in rank(tensors, is_known)[:6])
    raise WeightsError(
      f'no tensor has the prefix {prefix!r}; there are models under '
      f'{names or "none that is known"}; the first tensor is '
      f'{next(iter(tensors), "none")}'
    )
  inside = _without_inner_words(result.inside)
  # A wrapper within the one that the user named is searched as usual.
  deeper = rank(inside, is_known)[:1] if prefix else []
  if deeper and deeper[0]:
    inner = _split(inside, deeper[0])
    outside = {prefix + name: x for name, x in inner.outside.items()}
    return Selection(prefix + deeper[0], inner.inside, result.outside | outside)
  return Selection(prefix, inside, result.outside)


def _split(tensors: Mapping[str, Any], prefix: str) -> Selection:
  inside, outside = {}, {}
  for name, x in tensors.items():
    if name.startswith(prefix):
      inside[name.removeprefix(prefix)] = x
    else:
      outside[name] = x
  return Selection(prefix, inside, outside)


def _with_head(chosen: Selection, is_known: Callable[[str], bool]) -> Selection:
  """The selection with a head that stands one or more words above the model.

  Only if the model has none: 'backbone.blocks.0...' beside 'head.weight'.
  """
  if any(map(_HEAD.fullmatch, chosen.inside)):
    return chosen
  prefix = chosen.prefix
  while prefix:
    prefix = prefix[: prefix.rstrip('.').rfind('.') + 1]
    head = {
      name: name.removeprefix(prefix)
      for name in chosen.outside
      if name.startswith(prefix)
      and _HEAD.fullmatch(name.removeprefix(prefix))
      and is_known(name.removeprefix(prefix))
    }
    if head:
      inside = {new: chosen.outside[old] for old, new in head.items()}
      outside = {k: x for k, x in chosen.outside.items() if k not in head}
      return Selection(chosen.prefix, chosen.inside | inside, outside)
  return chosen


def _without_inner_words(tensors: Mapping[str, T]) -> dict[str, T]:
  """Tensors without the words that no prefix can have: within the names."""
  return {
    _INNER.sub(r'\1', _BASE_MODEL.sub(r'\1', name)): x
    for name, x in tensors.items()
  }


def _select_flax(tensors: Mapping[str, Any]) -> Selection:
  """Removes Google's prefixes, one after the other."""
  taken, inside, outside = '', dict(tensors), {}
  for prefix in _FLAX:
    if any(name.startswith(prefix) for name in inside):
      taken += prefix
      kept = {}
      for name, x in inside.items():
        if name.startswith((prefix, 'batch_stats/')):
          kept[name.removeprefix(prefix)] = x
        else:
          outside[name] = x
      inside = kept
  return Selection(taken, inside, outside)


def known_names(name: str) -> bool:
  """Whether a name, with dots, is one of a PyTorch format of this package."""
  return _known(re.sub(r'\d+', '0', name))


@functools.lru_cache(maxsize=4096)
def _known(name: str) -> bool:
  return _every_name().fullmatch(name) is not None


@functools.cache
def _every_name() -> re.Pattern[str]:
  """One pattern for the names of all PyTorch formats, with 0 for numbers."""
  from vit_jax.weights import naming

  return re.compile('|'.join(sorted(naming.torch_patterns())))
