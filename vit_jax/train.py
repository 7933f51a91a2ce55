"""train_and_evaluate(config, workdir): the loop, from recipe to summary.json.

Resume order: the workdir's newest readable step, `run.resume`,
`run.pretrained`, fresh parameters. A killed run that is started again ends
with bit-identical parameters, because data, augmentation and dropout are
functions of (seed, step) alone.
"""

import collections
import contextlib
import signal
import threading
import time
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.prefetch import prefetch
from vit_jax.evaluation.exact import Evaluator
from vit_jax.models import flops
from vit_jax.parallel import processes, rules
from vit_jax.parallel.mesh import (
  batch_slice,
  make_mesh,
  put_batch,
  put_replicated,
)
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.build import (
  Run,
  build,
  open_eval_sets,
  open_train_source,
  run_metadata,
)
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import (
  host_shape,
  image_shape,
  in_steps,
  preprocessing,
  to_json,
)
from vit_jax.recipe.stored import adopt_earlier, check_workdir
from vit_jax.training import checkpoint, writers
from vit_jax.training import step as step_lib
from vit_jax.training.progress import Progress
from vit_jax.training.state import from_tree, init_state, to_tree
from vit_jax.weights.steps import load_tree


class Preempted(Exception):
  """The run was asked to stop, and has saved its state."""


class NonFinite(RuntimeError):
  """Loss or gradient became NaN or infinite; names the step."""


def initial_state(run: Run, checkpoints, say) -> tuple[Any, int]:
  """State and step to start from, in the documented resume order."""
  config = run.config
  tree = to_tree(run.abstract_state)
  restored = checkpoints.restore(tree)
  if restored is not None:
    tree, _, step = restored
    say(f'resumed step {step} of {checkpoints.directory.parent}')
    return from_tree(run.abstract_state, tree), step
  if config.run.resume:
    tree, _, path = load_tree(config.run.resume, tree)
    say(f'resumed {path}')
    state = from_tree(run.abstract_state, tree)
    return state, int(state.step)
  if config.run.pretrained:
    from vit_jax.weights import load_pretrained

    variables, report = load_pretrained(
      run.model, config.run.pretrained, image_shape(config)
    )
    say(f'loaded {config.run.pretrained}\n{report}')
    init = jax.jit(
      lambda v: init_state(v, run.tx, config.optim),
      out_shardings=run.shardings,
    )
    return init(variables), 0
  return run.init(), 0


class _StopSignal:
  """Turns SIGTERM into a flag that all processes see at the same step."""

  def __init__(self):
    self._flag = threading.Event()
    self._previous = None

  def __enter__(self):
    if jax.process_count() == 1 and (
      threading.current_thread() is threading.main_thread()
    ):
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._flag.set()
      )
    return self

  def __exit__(self, *_):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def reached(self, step: int) -> bool:
    if jax.process_count() > 1:
      # JAX's own service caught the signal and agrees on a step.
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._flag.is_set()


def _batches(config, source, mesh, start_step: int, label_maps=None):
  """Device batches from start_step on, prefetched."""
  index, count = batch_slice(mesh)
  host = recipe_data.train_batches(
    config,
    source,
    start_step=start_step,
    process_index=index,
    process_count=count,
    token_labels=label_maps,
  )
  return prefetch(host, lambda b: put_batch(b, mesh), config.data.prefetch)


def _cached_batches(device_cache, mesh, start_step: int, total_steps: int):
  """Only indices travel: the data set is on the devices."""
  index, count = batch_slice(mesh)
  for step in range(start_step, total_steps):
    local = device_cache.indices(step).reshape(count, -1)
    yield put_batch({'indices': local[index]}, mesh)


def train_and_evaluate(config, workdir, devices=None) -> dict[str, Any]:
  """Trains a recipe to its end, or evaluates it, and returns the summary.

  Args:
    config: a recipe, see `vit_jax.recipe.keys.default_config`.
    workdir: directory for checkpoints, metrics and the summary; a run that
      stopped goes on where it was.
    devices: those to use; by default all.

  Returns:
    The summary that is also in WORKDIR/summary.json: final metrics by eval
    set, steps, parameters, wall time, versions, device.

  Raises:
    ConfigError: a recipe that cannot work; before anything is compiled.
    NonFinite: with run.nan='stop', the loss became NaN; names the step.
    Preempted: after SIGTERM, once the state is saved.
  """
  check(config)
  adopted = adopt_earlier(config, workdir)
  if config.run.resume:
    adopted += adopt_earlier(config, config.run.resume)
  config_json = to_json(config)
  check_workdir(workdir, config_json)
  mesh = make_mesh(
    config.mesh.preset, config.mesh.fsdp, config.mesh.tensor, devices
  )
  batch_slice(mesh)  # refuses a mesh that processes cannot feed
  source = open_train_source(config)
  num_classes = config.data.num_classes or source.num_classes
  sets = open_eval_sets(config, num_classes)
  run = build(config, mesh, num_classes=num_classes, num_examples=len(source))
  batch_size, total_steps = config.data.batch_size, run.total_steps
  eval_every = in_steps(
    config, 'eval', 'every_', steps_per_epoch=run.steps_per_epoch
  )
  main = jax.process_index() == 0
  say = lambda text: print(text, flush=True) if main else None

  teacher, extras = None, {}
  if config.loss.distill != 'none':
    from vit_jax.teachers.teacher import make_teacher

    teacher, extras['teacher'] = make_teacher(
      config, mesh, num_classes, source.class_names, source.fingerprint
    )
  label_maps = None
  if config.data.labels:
    from vit_jax.data import token_labels

    label_maps = token_labels.open_for_training(
      config.data.labels,
      run.model,
      source,
      num_classes,
      image_size=image_shape(config),
      host_size=host_shape(config),
      swap_axes=config.data.labels_swap_axes,
    )
  device_cache = load_batch = None
  cached = None
  if label_maps is None:
    cached = recipe_data.make_device_cache(
      config, source, put=lambda x: put_replicated(x, mesh)
    )
  if cached is not None:
    device_cache, make_batch = cached
    extras['cache'] = device_cache.arrays
    load_batch = lambda batch, extras, key: make_batch(
      extras['cache'], batch['indices'], key
    )

  parameters = sum(x.size for x in jax.tree.leaves(run.abstract_state.params))
  macs = flops.forward_macs(run.model, *image_shape(config))
  peak = flops.peak_flops(jax.devices()[0])
  say(
    f'{config.run.name or config.model.name}: {parameters:,} parameters, '
    f'{macs / 1e9:.3g} GMACs at {image_shape(config)[0]} px; '
    f'{len(source):,} training examples of {num_classes} classes; '
    f'{total_steps:,} steps of {batch_size} '
    f'({total_steps / run.steps_per_epoch:.4g} epochs); '
    f'mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}, '
    f'{run.model.dtype}'
  )
  if adopted:
    say(f'as the version that began this run: {", ".join(adopted)}')
  if config.log.overview:
    say(rules.describe(run.abstract_state.params, run.shardings.params))

  metadata = run_metadata(config, source, num_classes, parameters)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(_StopSignal())
    checkpoints = checkpoint.Checkpoints(
      workdir,
      keep_latest=config.log.keep_latest,
      keep_best=config.log.keep_best,
      keep_every=config.log.keep_every_steps,
      metric=f'{next(iter(sets))}_top1',
    )
    stack.callback(checkpoints.close)
    state, step = initial_state(run, checkpoints, say)
    first_step = step
    writer = writers.Writer(
      workdir,
      resumed_step=step,
      tensorboard=config.log.tensorboard,
      enabled=main,
    )
    stack.callback(writer.close)
    writer.config(config_json)
    evaluator = Evaluator(
      run.model,
      mesh,
      sets,
      num_classes=num_classes,
      preprocessing=preprocessing(config),
      host_size=host_shape(config),
      jpeg_dct=config.data.jpeg_dct,
      loss=config.loss.name,
      batch_size=config.eval.batch_size or config.data.batch_size,
      threads=config.data.threads,
      max_bad_fraction=config.data.max_bad_fraction,
    )
    results = {}

    def evaluate():
      params = (
        state.ema if config.eval.ema and config.optim.ema else (state.params)
      )
      stats = state.batch_stats
      if config.eval.ema and state.ema_stats:
        stats = state.ema_stats
      found = evaluator({'params': params, 'batch_stats': stats})
      for name, values in found.items():
        writer.write(
          step, values, epoch=step / run.steps_per_epoch, prefix=f'{name}_'
        )
        say(
          f'eval {name} at step {step}: top-1 {values["top1"]:.2%}  '
          f'top-5 {values["top5"]:.2%}  loss {values["loss"]:.4f}  '
          f'({values["examples"]} examples)'
        )
      return found

    def check_finite():
      bad = int(state.bad_step)
      if bad >= 0 and config.run.nan == 'stop':
        raise NonFinite(
          f'loss or gradient is not finite at step {bad}. No checkpoint of '
          'that state was written. Lower optim.lr, raise '
          'schedule.warmup_steps, set optim.clip=1.0, or set '
          "run.nan='skip' to leave such steps out"
        )

    def save():
      check_finite()
      flat = {
        f'{name}_{k}': v
        for name, values in results.items()
        for k, v in values.items()
      }
      checkpoints.save(step, to_tree(state), metadata, flat or None)

    if config.run.eval_only:
      results = evaluate()
      summary = {'results': results, 'step': step, 'parameters': parameters}
      writer.summary(summary)
      return summary

    train_step = step_lib.compile_train_step(
      step_lib.make_train_step(
        config,
        run.model,
        run.tx,
        run.schedule,
        num_classes,
        specs=run.update_specs,
        teacher=teacher,
        load_batch=load_batch,
      ),
      run.shardings,
      mesh,
    )
    if device_cache is not None:
      batches = _cached_batches(device_cache, mesh, step, total_steps)
    else:
      batches = _batches(config, source, mesh, step, label_maps)
    stack.callback(batches.close)
    progress = Progress(
      total_steps,
      step,
      batch_size,
      flops_per_image=6.0 * macs,
      peak_flops=peak,
      devices=mesh.size,
    )
    in_flight = collections.deque()
    last_save = time.time()
    evaluated_at = saved_at = step
    profile = tuple(config.log.profile_steps)

    while step < total_steps:
      if profile and step == profile[0]:
        jax.profiler.start_trace(str(epath.Path(workdir) / 'profile'))
      state, values = train_step(state, next(batches), extras)
      step += 1
      processes.tick(step)
      # Let the host run at most two steps ahead of the devices.
      in_flight.append(values)
      if len(in_flight) > 2:
        jax.block_until_ready(in_flight.popleft())
      if step == first_step + 1:
        jax.block_until_ready(values)
        progress.start(step)  # leaves the compilation out of the speed
      if profile and step == profile[1]:
        jax.profiler.stop_trace()

      last = step == total_steps
      if step % config.log.every_steps == 0 or last or step == first_step + 1:
        check_finite()
        values = {k: np.asarray(v) for k, v in values.items()}
        speed = (
          progress.update(step)
          if step > first_step + 1
          else {'img_per_sec': 0.0, 'img_per_sec_per_device': 0.0}
        )
        epoch = step / run.steps_per_epoch
        if int(state.skipped):
          values['skipped_steps'] = np.asarray(state.skipped)
        writer.write(step, {**values, **speed}, epoch=epoch)
        say(progress.line(step, epoch, values, speed))

      with progress.paused():
        if last or (eval_every and step % eval_every == 0):
          check_finite()
          results = evaluate()
          evaluated_at = step
        minutes = config.log.checkpoint_minutes
        stopping = not last and stop.reached(step)
        due = minutes is not None and _agree(
          time.time() - last_save > 60 * minutes
        )
        if (
          last
          or stopping
          or due
          or (
            config.log.checkpoint_steps
            and step % config.log.checkpoint_steps == 0
          )
        ):
          if evaluated_at != step:
            results = {}
          save()
          saved_at, last_save = step, time.time()
      if stopping:
        checkpoints.wait()
        raise Preempted(
          f'stopped at step {step} of {total_steps}; the state '
          f'is saved in {workdir}: start the same command again'
        )

    if evaluated_at != step or not results:
      results = evaluate()  # a run that had already reached its end
    if saved_at != step:
      save()
    checkpoints.wait()
    summary = {
      'results': results,
      'step': step,
      'epochs': step / run.steps_per_epoch,
      'parameters': parameters,
      'gmacs': macs / 1e9,
      'img_per_sec': progress.img_per_sec,
      'config': config_json,
    }
    writer.summary(summary)
    return summary


def _agree(flag: bool) -> bool:
  """Process 0's answer, for decisions that depend on a clock."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(jnp.asarray(flag)))
