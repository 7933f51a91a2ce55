"""From a checked recipe and a mesh to everything a run needs."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source
from vit_jax.models.registry import create_model, model_info
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import batch_shards
from vit_jax.recipe.keys import (
  ConfigError,
  image_shape,
  in_steps,
  load_model_module,
  model_fields,
  preprocessing,
  to_json,
)
from vit_jax.recipe.sections import Config
from vit_jax.training import optimizers
from vit_jax.training import state as state_lib
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import TrainState, init_state
from vit_jax.weights.metadata import WeightsMetadata


@dataclasses.dataclass
class Run:
  """What a recipe becomes on a mesh, before any array exists."""

  config: Any
  mesh: jax.sharding.Mesh
  model: Any
  num_classes: int
  steps_per_epoch: int
  total_steps: int
  schedule: Callable
  tx: Any
  abstract_state: TrainState  # shapes with shardings
  shardings: TrainState
  update_specs: Any  # of the gradients, `sharding.update_specs`
  init: Callable  # () -> TrainState, jitted, already sharded


def resolve_dtype(config, platform: str) -> str:
  """'auto' is bfloat16 on accelerators and float32 on a CPU."""
  if config.run.dtype != 'auto':
    return config.run.dtype
  return 'float32' if platform == 'cpu' else 'bfloat16'


def build(config, mesh, *, num_classes: int, num_examples: int) -> Run:
  """Model, optimizer, schedule and shardings of a recipe; allocates nothing.

  Args:
    config: a checked recipe.
    mesh: real devices, or those of a described topology.
    num_classes: of the data.
    num_examples: of the training split.

  Raises:
    ConfigError: the mesh does not fit the batch or the model.
  """
  batch_size = config.data.batch_size
  shards = batch_shards(mesh) * config.optim.accumulate
  if batch_size % shards:
    raise ConfigError(
      f'data.batch_size={batch_size} is not divisible by {shards} = '
      f'{batch_shards(mesh)} devices on the data and fsdp axes x '
      f'optim.accumulate={config.optim.accumulate}; nearest that works: '
      f'{max(1, round(batch_size / shards)) * shards}'
    )
  if not config.run.eval_only and num_examples < batch_size:
    raise ConfigError(
      f'data.batch_size={batch_size} is larger than the training split of '
      f'{num_examples} examples: take a batch of at most {num_examples}'
    )
  load_model_module(config)
  fields = model_fields(config)
  if 'dtype' in model_info(config.model.name).module.__dataclass_fields__:
    fields.setdefault(
      'dtype', resolve_dtype(config, mesh.devices.flat[0].platform)
    )
  if config.loss.cosine_reg:
    fields['return_attention'] = True
  model = create_model(config.model.name, num_classes, **fields)

  # Repeated augmentation does not lengthen the epoch: it then sees 1 / repeats
  # of the images, each so many times, as DeiT counts.
  steps_per_epoch = max(1, num_examples // batch_size)
  total_steps = in_steps(
    config, 'run', '', steps_per_epoch=steps_per_epoch, default=0
  )
  schedule = make_schedule(
    config.schedule,
    config.optim,
    total_steps=max(1, total_steps),
    steps_per_epoch=steps_per_epoch,
    batch_size=batch_size,
  )
  init_variables = lambda: state_lib.init_variables(
    model, image_shape(config), config.run.seed
  )
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    variables = jax.eval_shape(init_variables)
  tx = optimizers.make_optimizer(config.optim, schedule, variables['params'])
  fresh = lambda: init_state(init_variables(), tx, config.optim)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    state = jax.eval_shape(fresh)
  shardings = rules.state_shardings(
    state, mesh, config.mesh.preset, config.mesh.rules
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )
  update_specs = rules.update_specs(state, shardings, config.mesh.preset)
  return Run(
    config,
    mesh,
    model,
    num_classes,
    steps_per_epoch,
    total_steps,
    schedule,
    tx,
    abstract,
    shardings,
    update_specs,
    jax.jit(fresh, out_shardings=shardings),
  )


def run_metadata(
  config: Config, source: Source, num_classes: int, parameters: int
) -> WeightsMetadata:
  """The record that every checkpoint step of a run holds."""
  recipe = to_json(config)
  return WeightsMetadata(
    model=config.model.name,
    module=config.model.module,
    fields={
      k: v for k, v in recipe['model'].items() if k not in ('name', 'module')
    },
    num_classes=num_classes,
    classes=source.class_names and tuple(source.class_names),
    preprocessing=preprocessing(config),
    loss=config.loss.name,
    average=bool(config.eval.ema and config.optim.ema),
    data=source.fingerprint,
    parameters=parameters,
    recipe=recipe,
  )


def open_train_source(config) -> Source:
  data = config.data
  return open_source(
    data.source,
    split=data.split,
    data_dir=data.dir,
    holdout=data.holdout,
    num_classes=data.num_classes,
    num_examples=data.num_examples,
    image_size=image_shape(config),
  )


TEST_SPLITS = ('test', 'validation', 'val')


def open_eval_sets(config, num_classes: int) -> dict[str, Source]:
  """The recipe's eval sets by name; else the test split of the train source.

  ConfigError if there is none, or if its class count is not the model's.
  """
  data = config.data
  found = {}
  for name, spec in config.eval.sets.items():
    unknown = set(spec) - {'source', 'dir', 'split'}
    if unknown:
      raise ConfigError(
        f'eval.sets.{name}: unknown key {sorted(unknown)[0]!r};'
        ' allowed: source, dir, split'
      )
    found[name] = open_source(
      spec.get('source', data.source),
      split=spec.get('split', 'test'),
      data_dir=spec.get('dir', data.dir),
      holdout=data.holdout,
      num_classes=data.num_classes,
      num_examples=data.num_examples,
      image_size=image_shape(config),
    )
  if not found:
    errors = []
    for split in TEST_SPLITS:
      try:
        found['test'] = open_source(
          data.source,
          split=split,
          data_dir=data.dir,
          holdout=data.holdout,
          num_classes=data.num_classes,
          num_examples=data.num_examples,
          image_size=image_shape(config),
        )
        break
      except ValueError as e:
        errors.append(str(e))
    else:
      raise ConfigError(
        f'data.source={data.source!r} has none of the splits '
        f'{", ".join(TEST_SPLITS)}; name eval.sets. ({errors[0]})'
      )
  for name, source in found.items():
    if source.num_classes != num_classes:
      raise ConfigError(
        f'eval set {name!r} has {source.num_classes} classes, the model '
        f'{num_classes}: they must be the same classes'
      )
  return found
