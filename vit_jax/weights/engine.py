"""Released arrays -> a model's variables, by the rules of `maps/`.

The tree that the model expects at an image size comes from `jax.eval_shape`;
the format is the rule set that explains the file's names best; every parameter
is taken from its released name. Heads, position tables and `pre_logits` are
adapted as the source's own fine-tuning code does it, and anything else that
does not fit is an error that names it. Stacked (scanned) blocks are taken
apart first and put together last.
"""

import math
import re

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.weights import naming
from vit_jax.weights.blocks import stack_blocks, unstack_blocks
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.report import Report
from vit_jax.weights.resize import resize_grid, resize_table
from vit_jax.weights.rules import ShapeMismatch

# Formats whose position tables Google's code resizes; others are PyTorch's.
LINEAR_FORMATS = ('npz', 'big_vision')
HEAD = re.compile(r'params/\w*head\w*/(kernel|bias)')
TABLE = re.compile(r'(?:.*/)?(?:pos|row|col)_embedding')
# What a file may have and a model may lack, with a note and no error.
_OPTIONAL = tuple(
  f'params/{module}/{leaf}'
  for module in ('head', 'head_dist', 'aux_head', 'pre_logits')
  for leaf in ('kernel', 'bias')
)
_WRAPPERS = ('opt/target/', 'optimizer/target/', 'params/')
_TORCH_WRAPPERS = ('module.', '_orig_mod.', 'model.')


def load_pretrained(
  model,
  source,
  image_size,
  *,
  strict: bool = True,
  fmt: str | None = None,
  key=None,
  source_image_size=None,
  average: bool = False,
):
  """Loads a weight file into a model's variables.

  Args:
    model: a Linen module of this project.
    source: local or remote .npz, .pth, .bin, .pth.tar or .safetensors file, a
      vit_jax workdir or step, or 'hf:ORG/NAME'.
    image_size, strict, fmt, key: as in `from_state_dict`.
    source_image_size: the same; without it, what the file itself says.
    average: of a workdir or step, the moving average of the parameters.

  Returns:
    Variables of float32 numpy arrays and a Report, whose `metadata` is the
    file's own, with its class names under 'classes' if it has any.

  Raises:
    WeightsError: unreadable or not fitting; the message names the file.
  """
  from vit_jax.weights import formats

  arrays, metadata = formats.read(source, average=average)
  variables, report = from_state_dict(
    model,
    arrays,
    image_size,
    strict=strict,
    fmt=fmt,
    key=key,
    source=source,
    source_image_size=source_image_size or metadata.get('image_size'),
  )
  report.metadata = metadata
  return variables, report


def from_state_dict(
  model,
  arrays,
  image_size,
  *,
  strict: bool = True,
  fmt: str | None = None,
  key=None,
  source='the state dict',
  source_image_size=None,
):
  """Loads released arrays into a model's variables.

  Args:
    model: a Linen module of this project.
    arrays: {released name: array}. Formats: those of `known_formats(model)`:
      'npz' (published Google files), 'big_vision', 'timm', 'official',
      'flax'; blocks may be stacked; wrappers such as 'params/' or 'module.'
      are ignored.
    image_size: int or (height, width) that the model is to be used at.
      Position tables are resized to it: Google formats linearly with aligned
      corners, PyTorch formats by bicubic interpolation.
    strict: with False, parameters that the arrays lack keep the model's own
      initialisation, and arrays without a parameter are only reported.
    fmt: name of the format; None finds it.
    key: PRNG key for what is initialised (a head of another class count);
      without it, its kernel is zero and its bias `model.head_bias` or zero.
    source: what error messages call the arrays.
    source_image_size: image size of the arrays' position tables; without it
      their grid is taken as square.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays, and a Report.

  Raises:
    WeightsError: missing, left-over or misshapen tensors, all of them named
      with the expected and found shapes. There is no partial result.
  """
  plain = naming.unrolled(model)
  shapes, grid = naming.model_shapes(plain, image_size)
  arrays, outside = _unwrap(dict(arrays))
  fmt, assigned, arrays = _detect(plain, shapes, arrays, fmt)
  expected = [name for _, name in assigned.values()]
  if 2 * sum(name in arrays for name in expected) < len(expected):
    raise WeightsError(_not_this_model(source, model, fmt, expected, arrays))

  report = Report(str(source), fmt, naming.as_pair(image_size))
  for name, x in outside.items():
    report.add('dropped', name, '', x.shape, 'not of the model')
  loading = _Loading(
    plain, fmt, shapes, grid, assigned, arrays, report, source_image_size
  )
  flat = loading.run(strict)
  if loading.problems:
    raise WeightsError(
      f'{source} does not fit {type(model).__name__} at image size '
      f'{image_size} (format {fmt}):{_list(loading.problems)}'
    )
  if loading.fresh:
    flat |= _initial(plain, loading.fresh, shapes, image_size, key)
  if plain is not model:
    flat = stack_blocks(flat, naming.model_shapes(model, image_size)[0])
  return unflatten_dict(flat, sep='/'), report


def _unwrap(arrays: dict) -> tuple[dict, dict]:
  """Strips wrappers off names; also returns what lies outside of them."""
  outside = {}
  for prefix in _WRAPPERS:
    if any(name.startswith(prefix) for name in arrays):
      inside = {}
      for name, x in arrays.items():
        if name.startswith(prefix) or name.startswith('batch_stats/'):
          inside[name.removeprefix(prefix)] = x
        else:
          outside[name] = x
      arrays = inside
  for prefix in _TORCH_WRAPPERS:
    if arrays and all(name.startswith(prefix) for name in arrays):
      arrays = {name.removeprefix(prefix): x for name, x in arrays.items()}
  return arrays, outside


def _rename(arrays: dict, expected: set[str], module) -> dict:
  """Applies a map's ALIASES to unexpected names, and takes stacks apart."""
  for pattern, name in getattr(module, 'ALIASES', ()):
    renamed = {}
    for old, x in arrays.items():
      new = old if old in expected else re.sub(pattern, name, old)
      renamed[new if new not in arrays else old] = x
    arrays = renamed
  return unstack_blocks(arrays, expected)


def _detect(model, paths, arrays, fmt: str | None):
  """The format that explains most names: (fmt, assignment, renamed arrays)."""
  module = naming.map_module(model)
  candidates = (
    naming.known_formats(model)
    if fmt is None
    else {fmt: naming.rules_of(model, fmt)}
  )
  best, best_score = None, None
  for name, rules in candidates.items():
    assigned = naming.assign(rules, paths)
    expected = {released for _, released in assigned.values()}
    renamed = _rename(arrays, expected, module)
    score = (len(expected & renamed.keys()), -len(renamed.keys() - expected))
    if best is None or score > best_score:
      best, best_score = (name, assigned, renamed), score
  return best


def _list(lines, limit: int = 8) -> str:
  shown = [f'\n  {line}' for line in lines[:limit]]
  if len(lines) > limit:
    shown.append(f'\n  and {len(lines) - limit} more')
  return ''.join(shown)


def _not_this_model(source, model, fmt, expected, arrays) -> str:
  known = sum(name in arrays for name in expected)
  sample = lambda names: ', '.join(
    f'{n} {tuple(arrays[n].shape)}' if n in arrays else n
    for n in sorted(names)[:3]
  )
  return (
    f'{source} is not a file of {type(model).__name__}: it has {known} '
    f'of the {len(expected)} tensors of the nearest known naming '
    f'({fmt}).\n  in the file: '
    f'{sample(arrays.keys() - set(expected)) or "nothing else"}\n'
    f'  expected: {sample(set(expected) - arrays.keys())}\n'
    'Name the model that the file is for (vit-jax models).'
  )


class _Loading:
  """One pass over the expected parameters; see `from_state_dict`."""

  def __init__(
    self, model, fmt, shapes, grid, assigned, arrays, report, source_image_size
  ):
    self.model, self.fmt, self.shapes, self.grid = model, fmt, shapes, grid
    self.assigned, self.arrays, self.report = assigned, arrays, report
    self.source_image_size = source_image_size
    self.problems: list[str] = []
    self.fresh: list[str] = []  # paths that keep their initialisation
    self._rules = naming.rules_of(model, fmt)

  def run(self, strict: bool) -> dict[str, np.ndarray]:
    optional = naming.assign(
      self._rules, [p for p in _OPTIONAL if p not in self.shapes]
    )
    lacking = {name: path for path, (_, name) in optional.items()}
    heads = self._heads_to_reset(lacking)
    flat, used = {}, set()
    for path, shape in self.shapes.items():
      if path not in self.assigned:
        self.problems.append(f'{path} has no name in format {self.fmt}')
        continue
      rule, name = self.assigned[path]
      used.add(name)
      if path in heads:
        self.fresh.append(path)
        self.report.add(
          'reset',
          name,
          path,
          shape,
          heads[path],
          file_classes=self._file_classes(path),
          classes=shape[-1],
        )
      elif name not in self.arrays:
        if strict:
          self.problems.append(
            f'missing {name}, expected {self._released(path)}'
          )
        else:
          self.fresh.append(path)
          self.report.add('reset', name, path, shape, 'not in the file')
      else:
        flat[path] = self._load(rule, name, path, shape)
    self._left_over(used, lacking, strict)
    return flat

  def _heads_to_reset(self, lacking) -> dict[str, str]:
    """Paths of heads that cannot be kept, with the reason."""
    no_pre_logits = any(
      name in self.arrays
      for name, path in lacking.items()
      if '/pre_logits/' in path
    )
    reasons = {}
    for path, shape in self.shapes.items():
      if not HEAD.fullmatch(path) or path not in self.assigned:
        continue
      name = self.assigned[path][1]
      module = path.rpartition('/')[0]
      if name not in self.arrays:
        reasons.setdefault(module, 'the file has no head')
      elif (
        path.endswith('/bias')
        and (found := math.prod(self.arrays[name].shape)) != shape[0]
      ):
        reasons[module] = f'{found} classes in the file, {shape[0]} here'
      elif no_pre_logits:
        reasons.setdefault(
          module, "the file's head is on top of its pre_logits"
        )
    return {
      path: reasons[path.rpartition('/')[0]]
      for path in self.shapes
      if HEAD.fullmatch(path) and path.rpartition('/')[0] in reasons
    }

  def _file_classes(self, path) -> int | None:
    """Number of classes of a head in the file, None if it has none."""
    _, name = self.assigned[f'{path.rpartition("/")[0]}/bias']
    return math.prod(self.arrays[name].shape) if name in self.arrays else None

  def _released(self, path) -> tuple[int, ...]:
    """Shape that the file should have for a parameter."""
    rule, name = self.assigned[path]
    like = naming.abstract(self.shapes[path])
    shape = rule.to_released(like, path, name).shape
    parts = rule.part[1] if rule.part else 1
    return (parts * shape[0], *shape[1:])

  def _load(self, rule, name, path, shape):
    released, action, note, grids = self.arrays[name], 'loaded', '', {}
    try:
      if TABLE.fullmatch(path):
        released, note, grids = self._fit_table(np.asarray(released), shape)
        if grids and grids['file_grid'] != grids['grid']:
          action = 'resized'
      value = rule.to_flax(released, shape)
    except ShapeMismatch as e:
      self.problems.append(
        f'{name} is {tuple(self.arrays[name].shape)}, expected '
        f'{self._released(path)}{f" ({e})" if str(e) else ""}'
      )
      return None
    self.report.add(action, name, path, shape, note, **grids)
    return np.asarray(value, np.float32)

  def _fit_table(self, table, shape):
    """A position table on the model's grid, a note, both grids."""
    if table.ndim != len(shape) or table.shape[-1] != shape[-1]:
      raise ShapeMismatch
    google = self.fmt in LINEAR_FORMATS or (
      self.fmt == 'flax' and 'npz' in naming.known_formats(self.model)
    )
    method = 'linear' if google else 'bicubic'
    if table.ndim == 4:
      old, new = table.shape[1:3], shape[1:3]
      grids = {'file_grid': tuple(old), 'grid': tuple(new)}
      if old == new:
        return table, '', grids
      note = f'{_by(old)} -> {_by(new)}, {method}'
      return resize_grid(table, new, method), note, grids
    rows, grid = shape[1], self.grid
    if grid is None or not 0 <= rows - math.prod(grid) <= 2:
      grid = _square(rows, range(3))
      if grid is None:
        raise ShapeMismatch('the grid of the model is not known')
    prefix = rows - math.prod(grid)
    old, old_prefix = self._source_grid(table.shape[1], tuple(grid), prefix)
    notes = []
    if old != tuple(grid):
      table = resize_table(table, old, grid, method)
      notes.append(f'{_by(old)} -> {_by(grid)}, {method}')
    leading = table[:, : min(prefix, old_prefix)]
    if old_prefix < prefix:
      # The file adds its table to the patches only: whatever stands for the
      # position of the leading tokens is part of them already.
      zeros = np.zeros((1, prefix - old_prefix, shape[-1]), table.dtype)
      leading = np.concatenate([leading, zeros], axis=1)
      notes.append('zero row for the class token')
    elif old_prefix > prefix:
      notes.append(f'{old_prefix - prefix} leading rows left out')
    if old_prefix != prefix:
      table = np.concatenate([leading, table[:, old_prefix:]], axis=1)
    return table, ', '.join(notes), {'file_grid': old, 'grid': tuple(grid)}

  def _source_grid(self, rows, grid, prefix):
    """Grid and leading rows of a file's position table."""
    if self.source_image_size is not None:
      old = naming.model_shapes(self.model, self.source_image_size)[1]
      if old is not None and 0 <= rows - math.prod(old) <= 2:
        return tuple(old), rows - math.prod(old)
    tokens = sum(
      any(name in self.arrays for name in names)
      for names in (('cls', 'cls_token'), ('dist_token',))
    )
    if self.fmt == 'big_vision':
      prefixes = [0]
    else:
      prefixes = [prefix] + [tokens] * (tokens > prefix)
    for p in prefixes:
      if rows - p == math.prod(grid):
        return grid, p
      if square := _square(rows, [p]):
        return square, p
    if rows == math.prod(grid):  # DeiT III: the table is of the patches only
      return grid, 0
    raise ShapeMismatch(
      f'{rows} rows are no square grid after {prefixes[0]} leading rows: '
      'say the image size of the file, source_image_size=(height, width)'
    )

  def _left_over(self, used, lacking, strict):
    module = naming.map_module(self.model)
    ignored = [*getattr(module, 'IGNORED', ()), r'.*num_batches_tracked']
    has_head = any(HEAD.fullmatch(path) for path in self.shapes)
    for name, x in self.arrays.items():
      if name in used:
        continue
      path = lacking.get(name, '')
      shape = tuple(x.shape)
      if any(re.fullmatch(pattern, name) for pattern in ignored):
        self.report.add('dropped', name, '', shape, 'of training only')
      elif '/pre_logits/' in path:
        self.report.add(
          'dropped', name, '', shape, 'the model has no representation layer'
        )
      elif path and not has_head:
        self.report.add('dropped', name, '', shape, 'the model has no head')
      elif strict:
        self.problems.append(f'left over {name} {shape}')
      else:
        self.report.add('left_over', name, '', shape, '')


def _by(grid) -> str:
  return 'x'.join(str(n) for n in grid)


def _square(rows: int, prefixes) -> tuple[int, int] | None:
  for prefix in prefixes:
    side = math.isqrt(max(rows - prefix, 0))
    if side and side * side == rows - prefix:
      return side, side
  return None


def _initial(model, paths, shapes, image_size, key):
  """Initial values of some parameters; without a key, heads are plain."""
  bias = getattr(model, 'head_bias', 0.0)
  flat = {
    path: np.full(
      shapes[path], bias if path.endswith('/bias') else 0.0, np.float32
    )
    for path in paths
    if key is None and HEAD.fullmatch(path)
  }
  paths = [path for path in paths if path not in flat]
  if not paths:
    return flat

  @jax.jit
  def init(key):
    images = jnp.zeros((1, *naming.as_pair(image_size), 3), jnp.float32)
    values = flatten_dict(model.init(key, images, train=False), sep='/')
    return {path: values[path] for path in paths}

  key = jax.random.key(0) if key is None else key
  return flat | {path: np.asarray(x) for path, x in init(key).items()}
