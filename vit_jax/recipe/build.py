"""Turns a checked recipe and a mesh into everything that a run needs."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from vit_jax.data.sources.source import Source
from vit_jax.models import flops, onednn
from vit_jax.models.registry import (
  check_outputs,
  create_model,
  model_info,
)
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import batch_shards
from vit_jax.recipe.extension import Lengthened, lengthened
from vit_jax.recipe.keys import (
  ConfigError,
  in_steps,
  load_model_module,
  model_fields,
  preprocessing,
  to_json,
)
from vit_jax.recipe.sections import Config
from vit_jax.text import counted
from vit_jax.training import augment, losses, optimizers
from vit_jax.training.ema import ema_update
from vit_jax.training.schedules import Schedule, make_schedule
from vit_jax.training.shared_programs import make_init
from vit_jax.training.state import (
  TrainState,
  init_state,
  init_variables,
  variables,
)
from vit_jax.training.step import (
  TrainStep,
  compile_train_step,
  make_example_function,
  make_train_step,
)
from vit_jax.weights.metadata import WeightsMetadata

# A training of at least so many floating-point operations uses oneDNN on a CPU.
# Two cores take five to ten minutes for them. The program with oneDNN cannot be
# kept, so every start takes up to 10 seconds longer, which a shorter training
# does not gain back. The number depends on the recipe alone, because a resumed
# run must compute with the same products.
_LONG_TRAINING = 1e14


@dataclasses.dataclass(frozen=True)
class Run:
  """What a recipe becomes on a mesh, before any array exists.

  Attributes:
    config: the recipe.
    mesh: the devices of the run.
    model: Linen module, with its compute dtype.
    num_classes: number of classes of the head.
    steps_per_epoch: optimizer steps in one pass over the training images.
    total_steps: length of the run in optimizer steps.
    schedule: step -> learning rate.
    length: the length and the schedule, with `run.extend`.
    tx: the optimizer.
    abstract_state: shapes, dtypes and shardings of the state.
    shardings: NamedSharding of every array of the state.
    init: () -> fresh state; creates every array in its shards.
    init_from: variables -> state at step 0 with these variables; jitted.
  """

  config: Config
  mesh: Mesh
  model: nn.Module
  num_classes: int
  steps_per_epoch: float
  total_steps: int
  schedule: Schedule
  length: Lengthened
  tx: optax.GradientTransformation
  abstract_state: TrainState
  shardings: TrainState
  init: Callable[[], TrainState]
  init_from: Callable[[Any], TrainState]

  def epochs(self, step: int) -> float:
    """Passes over the training images after so many steps."""
    return (step + self.length.extra_steps) / self.steps_per_epoch

  @property
  def parameters(self) -> int:
    """Number of parameters of the model."""
    return sum(x.size for x in jax.tree.leaves(self.abstract_state.params))

  @functools.cached_property
  def macs(self) -> int:
    """Multiply-accumulates of the forward pass of one image."""
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      variables(self.abstract_state),
    )
    size = preprocessing(self.config).size
    return flops.forward_macs(self.model, *size, shapes)


def resolve_dtype(config: Config, platform: str) -> str:
  """The compute dtype: 'auto' is float32 on a CPU, else bfloat16."""
  if config.run.dtype != 'auto':
    return config.run.dtype
  return 'float32' if platform == 'cpu' else 'bfloat16'


def build(
  config: Config, mesh: Mesh, *, num_classes: int, num_examples: int
) -> Run:
  """Makes model, optimizer, schedule and shardings; allocates no arrays.

  Args:
    config: a checked recipe.
    mesh: devices of this machine, or of a TPU topology that is only described.
    num_classes: number of classes of the data.
    num_examples: number of images of the training split.

  Raises:
    ConfigError: the mesh does not fit the batch or the model.
  """
  _check_batch(config, mesh, num_examples)
  model = _make_model(config, num_classes, mesh.devices.flat[0].platform)
  # Repeated augmentation does not lengthen an epoch: with data.repeats=3 an
  # epoch has a third of the images, each of them three times, as in DeiT.
  steps_per_epoch = num_examples / config.data.batch_size
  if not config.run.fractional_epochs:
    steps_per_epoch = max(1, math.floor(steps_per_epoch))
  # A run that only evaluates may have no length; it makes 0 steps.
  steps = in_steps(config, 'run', '', steps_per_epoch=steps_per_epoch) or 0
  length = lengthened(
    config,
    steps,
    steps_per_epoch,
    lambda total: make_schedule(
      config.schedule,
      config.optim,
      total_steps=total,
      steps_per_epoch=steps_per_epoch,
      batch_size=config.data.batch_size,
    ),
  )
  schedule = length.schedule
  size = preprocessing(config).size
  # `jit` keeps what it has traced, and `inline` leaves the program as it is.
  fresh = jax.jit(
    lambda: init_variables(model, size, config.run.seed), inline=True
  )
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    shapes = jax.eval_shape(fresh)
    tx = optimizers.make_optimizer(config.optim, schedule, shapes['params'])
    as_state = lambda variables: init_state(
      variables,
      tx,
      average=bool(config.optim.ema),
      average_stats=config.optim.ema_stats,
    )
    state = jax.eval_shape(as_state, shapes)
  shardings = rules.state_shardings(
    state, mesh, config.mesh.preset, config.mesh.rules
  )
  return Run(
    config=config,
    mesh=mesh,
    model=model,
    num_classes=num_classes,
    steps_per_epoch=steps_per_epoch,
    total_steps=length.total_steps,
    schedule=schedule,
    length=length,
    tx=tx,
    abstract_state=jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state,
      shardings,
    ),
    shardings=shardings,
    init=make_init(fresh, as_state, shardings, mesh),
    init_from=jax.jit(as_state, out_shardings=shardings),
  )


def _check_batch(config: Config, mesh: Mesh, num_examples: int) -> None:
  batch_size = config.data.batch_size
  shards = batch_shards(mesh) * config.optim.accumulate
  if batch_size % shards:
    raise ConfigError(
      f'data.batch_size={batch_size} is not divisible by {shards} = '
      f'{batch_shards(mesh)} devices on the data and fsdp axes x '
      f'optim.accumulate={config.optim.accumulate}; the nearest that works is '
      f'{max(1, round(batch_size / shards)) * shards}'
    )
  if not config.run.eval_only and num_examples < batch_size:
    raise ConfigError(
      f'data.batch_size={batch_size} is larger than the training split of '
      f'{num_examples} examples: take a batch of at most {num_examples}'
    )


def _make_model(config: Config, num_classes: int, platform: str) -> nn.Module:
  load_model_module(config)
  fields = model_fields(config)
  if 'dtype' in model_info(config.model.name).module.__dataclass_fields__:
    fields.setdefault('dtype', resolve_dtype(config, platform))
  if config.loss.cosine_reg:
    fields['return_attention'] = True
  model = create_model(config.model.name, num_classes, **fields)
  if config.model.get('module'):
    try:
      check_outputs(model, preprocessing(config).size)
    except ValueError as e:
      raise ConfigError(f'model.name={config.model.name!r}: {e}') from e
  return model


def _dtype(model: nn.Module) -> jnp.dtype:
  """The compute dtype of a model; float32 for models without the field."""
  return jnp.dtype(getattr(model, 'dtype', jnp.float32))


def make_step(
  run: Run,
  *,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
) -> TrainStep:
  """The training step of a run, not yet jitted.

  Args:
    run: what `build` returned.
    teacher, load_batch: see `vit_jax.training.step.make_train_step`.
  """
  config = run.config
  decay, ramp = config.optim.ema, config.optim.ema_ramp

  def loss(logits, out, targets, teacher_logits):
    return losses.total_loss(config.loss, logits, out, targets, teacher_logits)

  def average(ema, new, step):
    return ema_update(ema, new, decay, step if ramp else None)

  return make_train_step(
    run.model,
    run.tx,
    num_classes=run.num_classes,
    seed=config.run.seed,
    schedule=run.schedule,
    prepare=_make_prepare(run),
    loss=loss,
    average=average if decay else None,
    accumulate=config.optim.accumulate,
    skip_nonfinite=config.run.nan == 'skip',
    shardings=run.shardings.params,
    whole=config.mesh.preset == 'zero',
    teacher=teacher,
    load_batch=load_batch,
    train_mode=config.run.train_mode,
  )


def _make_prepare(run: Run) -> Callable:
  """The augmentation on the device: (images, targets, key) -> the same."""
  config, dtype = run.config, _dtype(run.model)

  def prepare(images, targets, key):
    return augment.prepare_train(
      images,
      targets,
      key,
      config.data,
      dtype,
      slices=config.optim.accumulate,
    )

  return prepare


def make_examples(
  run: Run,
  *,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
) -> Callable:
  """The first half of `make_step`: what the model and the loss get.

  Args:
    run: what `build` returned.
    teacher, load_batch: see `vit_jax.training.step.make_train_step`.

  Returns:
    See `vit_jax.training.step.make_example_function`.
  """
  return make_example_function(
    num_classes=run.num_classes,
    seed=run.config.run.seed,
    prepare=_make_prepare(run),
    teacher=teacher,
    load_batch=load_batch,
  )


def compile_step(
  run: Run,
  *,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
) -> Any:
  """The jitted training step of a run; its state is donated.

  The run's mesh must be set (`jax.set_mesh`) when the step is called or
  lowered.
  """
  step = make_step(run, teacher=teacher, load_batch=load_batch)
  use_onednn = _is_long(run) or None

  def train_step(state, batch, extras):
    with onednn.asked(use_onednn):
      return step(state, batch, extras)

  return compile_train_step(train_step, run.shardings, run.mesh)


def _is_long(run: Run) -> bool:
  """Whether a run on a CPU trains for so long that it uses oneDNN."""
  if run.mesh.devices.flat[0].platform != 'cpu':
    return False
  # The backward pass has twice the multiply-accumulates of the forward pass.
  operations = 2 * 3 * run.macs * run.config.data.batch_size * run.total_steps
  return operations >= _LONG_TRAINING


def describe(run: Run, num_examples: int) -> str:
  """Describes model, data, length and devices of a run in one line of the log.

  Args:
    run: what `build` returned.
    num_examples: number of images of the training split.
  """
  config, (height, width) = run.config, preprocessing(run.config).size
  return (
    f'{config.run.name or config.model.name}: {run.parameters:,} parameters, '
    f'{run.macs / 1e9:.3g} GMACs at {height}'
    f'{"" if width == height else f"x{width}"} px; '
    f'{num_examples:,} training examples of {run.num_classes} classes; '
    f'{run.total_steps:,} steps of {config.data.batch_size} '
    f'({counted(float(run.epochs(run.total_steps)), "epoch")}); '
    f'mesh {dict(run.mesh.shape)} of {run.mesh.devices.flat[0].device_kind}, '
    f'{_dtype(run.model)}'
  )


def run_metadata(run: Run, source: Source) -> WeightsMetadata:
  """The metadata that every checkpoint of a run holds.

  Args:
    run: what `build` returned.
    source: the training data.
  """
  recipe = to_json(run.config)
  return WeightsMetadata(
    model=run.config.model.name,
    module=run.config.model.get('module', ''),
    fields={
      k: v for k, v in recipe['model'].items() if k not in ('name', 'module')
    },
    num_classes=run.num_classes,
    classes=tuple(source.class_names) if source.class_names else None,
    preprocessing=preprocessing(run.config),
    loss=run.config.loss.name,
    average=bool(run.config.eval.ema and run.config.optim.ema),
    data=source.fingerprint,
    parameters=run.parameters,
    recipe=recipe,
  )
