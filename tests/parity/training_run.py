"""Runs recorded training steps through a recipe and the product's own step.

`RecipeRun` loads a recipe from `configs/`, replaces sizes, data and those
settings that the file records, builds it as training does, loads the recorded
initial parameters and runs the step of `recipe.build.make_step` on the recorded
batches. Random draws are replaced by the recorded ones; nothing else is.
"""

from collections.abc import Iterable
import contextlib
import dataclasses
import pathlib
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.models import volo
from vit_jax.models.registry import model_info
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe import build as recipe_build
from vit_jax.recipe.checks import check
from vit_jax.recipe.overrides import load_recipe
from vit_jax.training import mixing
from vit_jax.training.rates import parameter_rates
from vit_jax.weights import from_state_dict, to_state_dict

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# Whatever a recorded run has of sizes and data.
SIZES = (
  'data.batch_size',
  'data.image_size',
  'data.image_width',
  'data.device_resize',
  'data.erasing',
  'data.mix_groups',
  'loss.teacher_weights',
  'mesh.preset',
  *(
    f'model.{field}'
    for field in (
      'area_sizes',
      'bn_groups',
      'cls_',
      'cnn_embed',
      'depth',
      'downsamples',
      'drop_path',
      'embed_dims',
      'layers',
      'mlp_',
      'num_',
      'outlook_attention',
      'patch_size',
      'post_layers',
      'reattn',
      'scan',
      'stem_',
      'tokens_mlp_dim',
      'width',
    )
  ),
  'optim.accumulate',
  'run.epochs',
  'run.steps',
  'run.examples',
  'schedule.warmup_steps',
  'schedule.warmup_epochs',
  'schedule.warmup_examples',
  'schedule.cooldown_steps',
  'schedule.cooldown_epochs',
  'schedule.timescale',
  'schedule.shift',
)

WIDTHS = ('model.representation_size',)  # a size, unless there is none


def load(recipe: str):
  """The recipe 'name:argument' of `configs/`."""
  name, _, argument = recipe.partition(':')
  return load_recipe(str(CONFIGS / f'{name}.py')).get_config(argument or None)


def _current(config, section: str, name: str) -> Any:
  """The value of a key, or the default of a field of the model."""
  if section != 'model' or name in config.model:
    *parents, name = name.split('.')
    owner = config[section]
    for parent in parents:
      owner = owner[parent]
    return owner.get(name)
  entry = model_info(config.model.name)
  defaults = {f.name: f.default for f in dataclasses.fields(entry.module)}
  return entry.fields.get(name, defaults.get(name))


def set_keys(config, settings: dict[str, Any]) -> list[str]:
  """Sets keys of a recipe; returns those, sizes apart, that changed."""
  changed = []
  for key, value in settings.items():
    section, name = key.split('.', 1)
    before = _current(config, section, name)
    same = before == value or (before and value and key in WIDTHS)
    if not same and not key.startswith(SIZES):
      changed.append(f'{key}: {before} -> {value}')
    *parents, name = name.split('.')
    owner = config[section]
    for parent in parents:
      owner = owner[parent]
    with config.ignore_type():
      owner[name] = value
  return changed


def record(case, keys: Iterable[str], difference, tolerance: float, name: str):
  """Notes that outputs were compared, with their largest difference."""
  difference = float(difference)
  ratio = difference / tolerance if np.isfinite(difference) else np.inf
  if not ratio < case.worst or not case.compared:
    case.worst, case.difference = ratio, difference
    case.tolerance, case.worst_key = tolerance, name
  case.compared.update(keys)


class RecipeRun:
  """A recipe, built for recorded steps.

  Attributes:
    config: the recipe with the recorded settings.
    changed: settings, sizes apart, in which the recipe and the record differ.
  """

  def __init__(
    self,
    case,
    recipe: str,
    settings: dict[str, Any],
    *,
    num_classes: int,
    image_size: tuple[int, int],
    steps_per_epoch: int,
    teacher: bool = False,
  ):
    self.case = case
    self.config = config = load(recipe)
    lengths = ('run.steps', 'run.epochs', 'run.examples')
    given = [key for key in lengths if key in settings]
    self.changed = set_keys(
      config,
      {
        **({key: None for key in lengths} if given else {}),
        'data.image_size': image_size[0],
        'data.image_width': image_size[1],
        'data.device_resize': None,
        'data.erasing': 0.0,
        'data.mix_groups': 1,
        'mesh.preset': 'data',
        **({'loss.teacher_weights': 'random'} if teacher else {}),
        **settings,
      },
    )
    check(config)
    run = recipe_build.build(
      config,
      make_mesh(devices=jax.devices()[:1]),
      num_classes=num_classes,
      num_examples=steps_per_epoch * config.data.batch_size,
    )
    self.model, self.schedule = run.model, run.schedule
    variables, report = from_state_dict(self.model, case.params, image_size)
    self.format = report.format
    self.state = run.init_from(variables)
    if self._same_rates(load(recipe).optim, config.optim):
      keys = ('optim.decay_mask', 'optim.groups')
      self.changed = [c for c in self.changed if not c.startswith(keys)]
    step = recipe_build.make_step(
      run,
      teacher=(lambda _, images, batch: batch['teacher']) if teacher else None,
    )
    self._step = jax.jit(lambda *args: _with_draws(step, *args))

  def _same_rates(self, recipe, record) -> bool:
    """Whether two `optim` sections mean the same for every parameter.

    A recipe and a record may write their patterns in different ways.
    """
    recipe.weight_decay = record.weight_decay
    try:
      return parameter_rates(recipe, self.state.params) == parameter_rates(
        record, self.state.params
      )
    except ValueError:  # a pattern is of parameters that this model lacks
      return False

  def start_at(self, step: int) -> None:
    """Sets the step counters, as a resumed run has them."""
    self.state = self.state.replace(
      step=jnp.int32(step),
      opt_state=optax.tree.set(self.state.opt_state, count=jnp.int32(step)),
    )

  def step(self, batch: dict, draws: dict | None = None) -> dict[str, Any]:
    """One training step; returns its metrics, with the norm of the update."""
    before = self.state.params
    self.state, values = self._step(
      self.state, {**batch}, {'teacher': {}}, draws or {}
    )
    moved = jax.tree.map(jnp.subtract, self.state.params, before)
    return {**values, 'update_norm': optax.tree.norm(moved)}

  def targets(self, batch: dict, draws: dict | None = None) -> np.ndarray:
    """The class targets that the loss is computed with."""
    from vit_jax.training import augment, losses
    from vit_jax.training.step import make_targets

    with _recorded(draws or {}):
      _, targets = augment.prepare_train(
        jnp.asarray(batch['image']),
        make_targets(batch, self.model.num_classes),
        jax.random.key(0),
        self.config.data,
      )
    smoothing = self.config.loss.label_smoothing
    return losses.smooth(targets['label'], smoothing)

  def released(self, tree, stats=None) -> dict[str, np.ndarray]:
    """A tree of the parameters' structure under the released names."""
    stats = self.state.batch_stats if stats is None else stats
    named = to_state_dict(
      {'params': tree, 'batch_stats': stats}, self.model, self.format
    )
    return {name.removeprefix('params/'): x for name, x in named.items()}

  def moment(self, name: str):
    """The part of the optimizer state called `name`."""
    return optax.tree.get(self.state.opt_state, name)


@contextlib.contextmanager
def _recorded(draws: dict):
  """Replaces random draws by recorded ones."""
  with contextlib.ExitStack() as stack:
    if 'mixing' in draws:
      stack.enter_context(
        mock.patch.object(
          mixing, 'draw_mixing', lambda *args, **kw: draws['mixing']
        )
      )
    if 'box' in draws:
      stack.enter_context(
        mock.patch.object(volo, 'mix_box', lambda *args: tuple(draws['box']))
      )
    yield


def _with_draws(step, state, batch, extras, draws):
  with _recorded(draws):
    return step(state, batch, extras)


# ------------------------------------------------------------- comparisons


def compare_steps(case, history: list[dict], loss_groups: int = 1) -> None:
  """Compares what each step reports: loss, rate and norms.

  `loss_groups`: the record has so many losses a step, of its slices; the step
  reports their mean.
  """
  tolerance = case.meta['tolerance']
  values = {
    key: np.array([float(h[key]) for h in history], np.float64)
    for key in ('loss', 'lr', 'grad_norm', 'update_norm')
  }
  want = case.outputs['loss'].astype(np.float64)
  want = want.reshape(-1, loss_groups).mean(axis=1)
  record(
    case,
    ['loss'],
    np.max(np.abs(values['loss'] - want)),
    tolerance['loss_atol'],
    'loss',
  )
  for key, rtol in (
    ('lr', tolerance['lr_rtol']),
    ('grad_norm', tolerance['grad_norm_rtol']),
    ('update_norm', tolerance['grad_norm_rtol']),
  ):
    if key in case.outputs:
      want = case.outputs[key].astype(np.float64)
      scale = np.maximum(np.abs(want), 1e-12)
      record(case, [key], np.max(np.abs(values[key] - want) / scale), rtol, key)


def _compared(case, name: str, x: np.ndarray) -> np.ndarray:
  """The entries of a tensor that the file compares."""
  note = case.meta.get('not_compared', {}).get(name)
  if note is None:
    return x
  entries = re.match(r'entries \[(\d*):(\d*)\]', note)
  if entries is None:
    return x[:0]
  first, last = (int(e) if e else None for e in entries.groups())
  return np.delete(x, np.s_[first:last], axis=0)


def _differences(case, prefix: str, named: dict[str, np.ndarray]):
  """(key, difference, recorded) of all outputs under a prefix."""
  for key, want in case.outputs.items():
    if not key.startswith(prefix):
      continue
    name = key.removeprefix(prefix)
    if name.endswith('num_batches_tracked'):
      case.compared.add(key)
      continue
    if name not in named:
      raise ValueError(f'{key}: the model has no {name}')
    value = np.asarray(named[name], np.float64)
    squeezed = tuple(n for n in want.shape if n > 1)
    if tuple(n for n in value.shape if n > 1) != squeezed:
      raise ValueError(f'{key}: shape {value.shape}, recorded {want.shape}')
    value = value.reshape(want.shape)  # some vectors are kept as (1, 1, 1, C)
    want = want.astype(np.float64)
    yield (
      key,
      _compared(case, name, value) - _compared(case, name, want),
      _compared(case, name, want),
    )


def is_statistic(name: str) -> bool:
  """Whether a released name is of BatchNorm's running statistics."""
  return name.endswith(('running_mean', 'running_var'))


def compare_trees(case, prefix: str, named: dict, tolerance: float) -> None:
  """Compares parameters (or averages); statistics have their own tolerance."""
  for key, difference, _ in _differences(case, prefix, named):
    limit = tolerance
    if is_statistic(key):
      limit = case.meta['tolerance']['buffers_atol']
    record(case, [key], np.max(np.abs(difference), initial=0.0), limit, key)


def compare_update(case, named: dict) -> None:
  """Compares final parameters, and their difference with the movement."""
  tolerance = case.meta['tolerance']
  compare_trees(case, 'params/', named, tolerance['final_params_atol'])
  error = moved = 0.0
  for key, difference, want in _differences(case, 'params/', named):
    if not is_statistic(key):
      name = key.removeprefix('params/')
      start = _compared(case, name, case.params[name].astype(np.float64))
      error += np.sum(difference**2)
      moved += np.sum((want - start) ** 2)
  record(
    case,
    [],
    np.sqrt(error / moved),
    tolerance['update_rel_l2'],
    'relative L2 of the update',
  )


def compare_moments(case, prefix: str, named: dict) -> None:
  """Compares optimizer state, relative to each tensor's largest entry.

  Tensors of rounding noise (1e-7 of the largest entry of all, or its square in
  second moments) have no digits to compare: those of key biases, whose
  gradients are zero but for rounding. The files of Adam name them; the others
  do not.
  """
  text = case.meta['tolerance']['optimizer_state']
  rtol = float(re.search(r'<= ([\d.e-]+) \*', text)[1])
  tensors = list(_differences(case, prefix, named))
  second = prefix in ('opt/exp_avg_sq/', 'opt/nu/', 'opt/v/')
  noise = (1e-14 if second else 1e-7) * max(
    np.max(np.abs(want), initial=0.0) for *_, want in tensors
  )
  for key, difference, want in tensors:
    scale = np.max(np.abs(want), initial=0.0)
    if scale <= noise:
      scale = max(scale, noise / rtol)  # both are noise, or it is an error
    record(
      case, [key], np.max(np.abs(difference), initial=0.0) / scale, rtol, key
    )


__all__ = [
  'RecipeRun',
  'compare_moments',
  'compare_steps',
  'compare_trees',
  'compare_update',
  'record',
]
