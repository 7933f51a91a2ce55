"""Released arrays <-> a model's variables, by the rules of `maps/`.

Loading: the tree that the model expects at an image size comes from
`jax.eval_shape`; the format is the rule set that explains the file's names
best; every parameter is taken from its released name; what the head, the
position tables and `pre_logits` allow is adapted, and anything else that does
not fit is an error. Saving runs the same rules backwards. Stacked (scanned)
blocks are taken apart first and put together last, on either side.
"""

import functools
import importlib
import math
import pkgutil
import re

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.weights.report import Report
from vit_jax.weights.resize import resize_grid, resize_table
from vit_jax.weights.rules import Rule, ShapeMismatch

# Formats whose position tables Google's code resizes; others are PyTorch's.
LINEAR_FORMATS = ('npz', 'big_vision', 'legacy')
# Names with their collection: Flax as it is, and big_vision's files.
COLLECTION_FORMATS = ('flax', 'big_vision')
FLAX = [Rule('params/(.*)', r'\1'), Rule('(batch_stats/.*)', r'\1')]
HEAD = re.compile(r'params/\w*head\w*/(kernel|bias)')
TABLE = re.compile(r'(?:.*/)?(?:pos|row|col)_embedding')
# What a file may have and a model may lack, with a note and no error.
_OPTIONAL = tuple(
    f'params/{module}/{leaf}'
    for module in ('head', 'head_dist', 'aux_head', 'pre_logits')
    for leaf in ('kernel', 'bias'))
_WRAPPERS = ('opt/target/', 'optimizer/target/', 'params/')
_TORCH_WRAPPERS = ('module.', '_orig_mod.', 'model.')


class WeightsError(ValueError):
  """Weights that cannot be read or do not fit the model."""


# ---------------------------------------------------------------- rule sets


@functools.cache
def _modules():
  from vit_jax.weights import maps
  return [importlib.import_module(f'{maps.__name__}.{m.name}')
          for m in pkgutil.iter_modules(maps.__path__)]


def _map_module(model):
  """The map module of a model's class and the class's name there."""
  for cls in type(model).__mro__:
    for module in _modules():
      if cls.__name__ in module.MAPS:
        return module, cls.__name__
  return None, type(model).__name__


def formats(model) -> dict[str, list[Rule]]:
  """The rule sets a model can be loaded from and saved in, by format name."""
  module, name = _map_module(model)
  sets = {} if module is None else {
      fmt: rules(model) if callable(rules) else list(rules)
      for fmt, rules in module.MAPS[name].items()}
  return {**sets, 'flax': FLAX}


def _rules(model, fmt: str) -> list[Rule]:
  known = formats(model)
  if fmt not in known:
    raise WeightsError(f'format {fmt!r} is not known for '
                       f'{type(model).__name__}; allowed: {", ".join(known)}')
  return known[fmt]


def _assign(rules, paths) -> dict[str, tuple[Rule, str]]:
  """Flax path -> its first matching rule and released name."""
  assigned = {}
  for path in paths:
    for rule in rules:
      name = rule.match(path)
      if name is not None:
        assigned[path] = rule, name
        break
  return assigned


# ------------------------------------------------------------ expected tree


def _shapes(model, image_size) -> tuple[dict[str, tuple[int, ...]], tuple]:
  """Flat {path: shape} of a model's variables and the (h, w) of its tokens."""
  height, width = (image_size,) * 2 if np.ndim(image_size) == 0 else (
      int(s) for s in image_size)
  (_, out), variables = jax.eval_shape(
      functools.partial(model.init_with_output, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
  stem = out.get('stem')
  grid = stem.shape[1:3] if stem is not None and stem.ndim == 4 else None
  return {path: tuple(x.shape) for path, x in
          flatten_dict(variables, sep='/').items()}, grid


def _unrolled(model):
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def _any_image_size(model) -> tuple[int, int]:
  """A size every stem accepts, where only the names of the tree matter."""
  patch = getattr(model, 'patch_size', 16)
  patch = (patch, patch) if np.ndim(patch) == 0 else patch
  return tuple(math.lcm(32 * int(p), 224) for p in patch)


# ------------------------------------------------------------ stacked blocks


def _stacks(names) -> dict[str, list[str]]:
  """Stacked name -> members: 'a/block/x' -> ['a/block_0/x', 'a/block_1/x']."""
  stacks = {}
  for name in names:
    parts = name.split('/')
    for i, part in enumerate(parts):
      m = re.fullmatch(r'(.+)_(\d+)', part)
      if m:
        stacked = '/'.join([*parts[:i], m[1], *parts[i + 1:]])
        stacks.setdefault(stacked, []).append((int(m[2]), name))
  return {stacked: [name for _, name in sorted(members)]
          for stacked, members in stacks.items()}


def unstack_blocks(flat: dict, names) -> dict:
  """Takes scanned stacks apart where `names` has the blocks one by one.

  Args:
    flat: {name: array}; a stack is '.../block/...' with a leading depth axis.
    names: wanted names, such as '.../block_0/...'.
  """
  names = set(names)
  stacks = _stacks(names - set(flat))
  out = {}
  for name, x in flat.items():
    members = stacks.get(name, ())
    if name not in names and members and len(members) == x.shape[0]:
      out |= {member: x[i] for i, member in enumerate(members)}
    else:
      out[name] = x
  return out


def stack_blocks(flat: dict, names) -> dict:
  """Stacks blocks along a leading axis where `names` has them as one."""
  names = set(names)
  out = {name: x for name, x in flat.items() if name in names}
  stacks = _stacks(set(flat) - names)
  for name in names - set(flat):
    if name in stacks:
      out[name] = np.stack([flat[member] for member in stacks[name]])
  return out


# ------------------------------------------------------------------ loading


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
  module, _ = _map_module(model)
  candidates = formats(model) if fmt is None else {fmt: _rules(model, fmt)}
  best, best_score = None, None
  for name, rules in candidates.items():
    assigned = _assign(rules, paths)
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
      for n in sorted(names)[:3])
  return (f'{source} is not a file of {type(model).__name__}: it has {known} '
          f'of the {len(expected)} tensors of the nearest known naming '
          f'({fmt}).\n  in the file: '
          f'{sample(arrays.keys() - set(expected)) or "nothing else"}\n'
          f'  expected: {sample(set(expected) - arrays.keys())}\n'
          'Name the model that the file is for (vit-jax models).')


def from_state_dict(model, arrays, image_size, *, strict: bool = True,
                    fmt: str | None = None, key=None, source='the state dict',
                    source_image_size=None):
  """Loads released arrays into a model's variables.

  Args:
    model: a Linen module of this project.
    arrays: {released name: array}. Formats: those of `formats(model)`, such
      as 'npz' (published Google files), 'big_vision', 'timm', 'official',
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
  plain = _unrolled(model)
  shapes, grid = _shapes(plain, image_size)
  arrays, outside = _unwrap(dict(arrays))
  fmt, assigned, arrays = _detect(plain, shapes, arrays, fmt)
  expected = [name for _, name in assigned.values()]
  if 2 * sum(name in arrays for name in expected) < len(expected):
    raise WeightsError(_not_this_model(source, model, fmt, expected, arrays))

  report = Report(source=str(source), format=fmt)
  for name, x in outside.items():
    report.add('dropped', name, '', x.shape, 'not of the model')
  loading = _Loading(plain, fmt, shapes, grid, assigned, arrays, report,
                     source_image_size)
  flat = loading.run(strict)
  if loading.problems:
    raise WeightsError(
        f'{source} does not fit {type(model).__name__} at image size '
        f'{image_size} (format {fmt}):{_list(loading.problems)}')
  if loading.fresh:
    flat |= _initial(plain, loading.fresh, shapes, image_size, key,
                     strict)
  if plain is not model:
    flat = stack_blocks(flat, _shapes(model, image_size)[0])
  return unflatten_dict(flat, sep='/'), report


class _Loading:
  """One pass over the expected parameters; see `from_state_dict`."""

  def __init__(self, model, fmt, shapes, grid, assigned, arrays, report,
               source_image_size):
    self.model, self.fmt, self.shapes, self.grid = model, fmt, shapes, grid
    self.assigned, self.arrays, self.report = assigned, arrays, report
    self.source_image_size = source_image_size
    self.problems: list[str] = []
    self.fresh: list[str] = []  # paths that keep their initialisation
    self._rules = _rules(model, fmt)

  def run(self, strict: bool) -> dict[str, np.ndarray]:
    optional = _assign(self._rules, [
        p for p in _OPTIONAL if p not in self.shapes])
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
        self.report.add('reset', name, path, shape, heads[path])
      elif name not in self.arrays:
        if strict:
          self.problems.append(
              f'missing {name}, expected {self._released(path)}')
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
        name in self.arrays for name, path in lacking.items()
        if '/pre_logits/' in path)
    reasons = {}
    for path, shape in self.shapes.items():
      if not HEAD.fullmatch(path) or path not in self.assigned:
        continue
      name = self.assigned[path][1]
      module = path.rpartition('/')[0]
      if name not in self.arrays:
        reasons.setdefault(module, 'the file has no head')
      elif path.endswith('/bias') and (
          found := math.prod(self.arrays[name].shape)) != shape[0]:
        reasons[module] = f'{found} classes in the file, {shape[0]} here'
      elif no_pre_logits:
        reasons.setdefault(
            module, "the file's head is on top of its pre_logits")
    return {path: reasons[path.rpartition('/')[0]] for path in self.shapes
            if HEAD.fullmatch(path) and path.rpartition('/')[0] in reasons}

  def _released(self, path) -> tuple[int, ...]:
    """Shape that the file should have for a parameter."""
    rule, name = self.assigned[path]
    shape = rule.to_released(_abstract(self.shapes[path]), path, name).shape
    parts = rule.part[1] if rule.part else 1
    return (parts * shape[0], *shape[1:])

  def _load(self, rule, name, path, shape):
    released, note = self.arrays[name], ''
    try:
      if TABLE.fullmatch(path):
        released, note = self._fit_table(np.asarray(released), path, shape)
      value = rule.to_flax(released, shape)
    except ShapeMismatch as e:
      self.problems.append(
          f'{name} is {tuple(self.arrays[name].shape)}, expected '
          f'{self._released(path)}{f" ({e})" if str(e) else ""}')
      return None
    self.report.add('resized' if note else 'loaded', name, path, shape, note)
    return np.asarray(value, np.float32)

  def _fit_table(self, table, path, shape):
    """A position table on the model's grid, and a note if it had to change."""
    if table.ndim != len(shape) or table.shape[-1] != shape[-1]:
      raise ShapeMismatch
    google = self.fmt in LINEAR_FORMATS or (
        self.fmt == 'flax' and 'npz' in formats(self.model))
    method = 'linear' if google else 'bicubic'
    if table.ndim == 4:
      if table.shape == shape:
        return table, ''
      return (resize_grid(table, shape[1:3], method),
              f'{_by(table.shape[1:3])} -> {_by(shape[1:3])}, {method}')
    rows, grid = shape[1], self.grid
    if grid is None or not 0 <= rows - math.prod(grid) <= 2:
      grid = _square(rows, range(3))
      if grid is None:
        raise ShapeMismatch('the grid of the model is not known')
    prefix = rows - math.prod(grid)
    old, old_prefix = self._source_grid(table.shape[1], grid, prefix)
    notes = []
    if old != grid:
      table = resize_table(table, old, grid, method)
      notes.append(f'{_by(old)} -> {_by(grid)}, {method}')
    if old_prefix < prefix:
      # The file adds its table to the patches only: whatever stands for the
      # position of the leading tokens is part of them already.
      table = np.pad(table, ((0, 0), (prefix - old_prefix, 0), (0, 0)))
      notes.append('zero row for the class token')
    elif old_prefix > prefix:
      table = table[:, old_prefix - prefix:]
      notes.append("without the class token's row")
    return table, ', '.join(notes)

  def _source_grid(self, rows, grid, prefix):
    """Grid and leading rows of a file's position table."""
    if self.source_image_size is not None:
      old = _shapes(self.model, self.source_image_size)[1]
      if old is not None and 0 <= rows - math.prod(old) <= 2:
        return tuple(old), rows - math.prod(old)
    tokens = sum(f'params/{t}' in self.assigned
                 and self.assigned[f'params/{t}'][1] in self.arrays
                 for t in ('cls', 'dist_token'))
    prefixes = [0] if self.fmt == 'big_vision' else [prefix, 0, tokens]
    for p in prefixes:
      if rows - p == math.prod(grid):
        return grid, p
      if square := _square(rows, [p]):
        return square, p
    raise ShapeMismatch(
        f'{rows} rows are no square grid after {prefixes[0]} leading rows: '
        'say the image size of the file, source_image_size=(height, width)')

  def _left_over(self, used, lacking, strict):
    module, _ = _map_module(self.model)
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
        self.report.add('dropped', name, '', shape,
                        'the model has no representation layer')
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


def _abstract(shape) -> np.ndarray:
  """An array of this shape without memory of its own."""
  return np.broadcast_to(np.float32(0), shape)


def _initial(model, paths, shapes, image_size, key, strict):
  """Initial values of some parameters."""
  if key is None and strict:  # heads only
    bias = getattr(model, 'head_bias', 0.0)
    return {path: np.full(shapes[path],
                          bias if path.endswith('/bias') else 0.0, np.float32)
            for path in paths}
  height, width = (image_size,) * 2 if np.ndim(image_size) == 0 else image_size

  @jax.jit
  def init(key):
    images = jnp.zeros((1, height, width, 3), jnp.float32)
    flat = flatten_dict(model.init(key, images, train=False), sep='/')
    return {path: flat[path] for path in paths}

  key = jax.random.key(0) if key is None else key
  return {path: np.asarray(x) for path, x in init(key).items()}


# ------------------------------------------------------------------- saving


def to_state_dict(variables, model, fmt: str) -> dict[str, np.ndarray]:
  """A model's variables as {released name: array} of a format.

  Args:
    variables: {'params': ..., 'batch_stats': ...}.
    model: the module they belong to; stacked blocks are taken apart.
    fmt: a key of `formats(model)`.

  Raises:
    WeightsError: unknown format, or a parameter it has no name for.
  """
  flat = flatten_dict(jax.tree.map(np.asarray, dict(variables)), sep='/')
  plain = _unrolled(model)
  if plain is not model:
    flat = unstack_blocks(flat, _shapes(plain, _any_image_size(plain))[0])
  if fmt == 'big_vision':
    flat = _fold_class_row(flat)
  pieces = _pieces(flat, plain, fmt)
  return {name: np.concatenate([parts[j] for j in sorted(parts)])
          if len(parts) > 1 else np.ascontiguousarray(parts[0])
          for name, parts in pieces.items()}


def released_shapes(model, image_size, fmt: str) -> dict[str, tuple]:
  """{released name: shape} of a model's file in a format, without arrays."""
  flat = {path: _abstract(shape) for path, shape in
          _shapes(_unrolled(model), image_size)[0].items()}
  if fmt == 'big_vision':
    flat = _fold_class_row(flat)
  return {name: (sum(x.shape[0] for x in parts.values()),
                 *parts[0].shape[1:]) if parts[0].ndim else ()
          for name, parts in _pieces(flat, _unrolled(model), fmt).items()}


def _pieces(flat, model, fmt) -> dict[str, dict[int, np.ndarray]]:
  """Released name -> {number of the part: array}."""
  assigned = _assign(_rules(model, fmt), flat)
  lost = [path for path in flat if path not in assigned]
  if lost:
    raise WeightsError(f'format {fmt} of {type(model).__name__} has no name '
                       f'for:{_list(lost)}\nSave as flat Flax names instead '
                       "(fmt='flax').")
  pieces = {}
  for path, (rule, name) in assigned.items():
    part, count = rule.part or (0, 1)
    if fmt in COLLECTION_FORMATS and not name.startswith('batch_stats/'):
      name = f'params/{name}'
    parts = pieces.setdefault(name, {})
    if part in parts:
      raise WeightsError(f'format {fmt} of {type(model).__name__} gives two '
                         f'parameters the name {name}')
    parts[part] = rule.to_released(flat[path], path, name)
  return pieces


def _fold_class_row(flat: dict) -> dict:
  """big_vision adds its table before the class token: row 0 goes into it."""
  table = 'params/Transformer/posembed_input/pos_embedding'
  if 'params/cls' not in flat or table not in flat:
    return flat
  rows = flat[table]
  return {**flat, 'params/cls': flat['params/cls'] + rows[:, :1],
          table: rows[:, 1:]}
