"""train_and_evaluate(config, workdir): the training loop.

A resumed run ends with the same bits as an uninterrupted one, because data,
augmentation and dropout depend only on (seed, step).
"""

from collections.abc import Sequence
import contextlib
import os
from typing import Any, NamedTuple

from clu import parameter_overview
import jax

from vit_jax.data.sources.source import Source
from vit_jax.files import as_path
from vit_jax.models import flops
from vit_jax.models.patches import unseen_pixels
from vit_jax.parallel import processes
from vit_jax.parallel.agreement import require_agreement
from vit_jax.parallel.workdir_lock import WorkdirLock
from vit_jax.recipe import extension, first_batch
from vit_jax.recipe.build import (
  Run,
  compile_step,
  describe,
  run_metadata,
)
from vit_jax.recipe.ending import ending
from vit_jax.recipe.first_step import FirstStep
from vit_jax.recipe.inputs import make_evaluator, make_probe
from vit_jax.recipe.keys import ConfigError, in_steps, preprocessing, to_json
from vit_jax.recipe.opening import checked, open_run
from vit_jax.recipe.sections import Config
from vit_jax.recipe.start import initial_state
from vit_jax.recipe.stored import changed_keys, flatten
from vit_jax.teachers.inputs import input_with_teacher
from vit_jax.text import is_quiet
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.goodput import Goodput
from vit_jax.training.periodic import (
  Evaluation,
  Log,
  NonFinite,
  Profile,
  Saving,
  Throttle,
  check_finite,
  skipped_steps,
)
from vit_jax.training.preemption import Preempted, StopSignal
from vit_jax.training.progress import LiveLine, Progress
from vit_jax.training.writers import Writer

__all__ = ['NonFinite', 'Preempted', 'train_and_evaluate']

# Floating-point operations of a training step for each multiply-accumulate of
# the forward pass: 2 in the forward pass and 4 in the backward pass.
_FLOPS_PER_MAC = 6.0


def train_and_evaluate(
  config: Config,
  workdir: str | os.PathLike,
  devices: Sequence[Any] | None = None,
  *,
  show_batch: str = '',
) -> dict[str, Any]:
  """Trains a recipe to its end, or evaluates it, and returns the summary.

  Args:
    config: a recipe, see `vit_jax.recipe.keys.default_config`.
    workdir: directory for checkpoints, metrics and the summary. If it has a
      stopped run of this recipe, the run continues.
    devices: the devices to use; None for all.
    show_batch: where to write a picture of the first batch as the model gets
      it, .png or .jpg; '' for none.

  Returns:
    The summary: final metrics by eval set, steps, parameters and speed.
    WORKDIR/summary.json also has wall time, versions and device.

  Raises:
    ConfigError: the recipe cannot work; raised before anything is compiled.
    CheckpointError: a checkpoint cannot be read or written.
    NonFinite: the loss or a gradient is not finite, with run.nan='stop'.
    Preempted: after SIGTERM or Ctrl-C, when the state has been saved.
    ProcessesDiffer: the processes of a job differ in recipe, data or version.
    WorkdirInUse: another run uses the workdir.
  """
  goodput = Goodput()
  if show_batch:
    first_batch.check_format(show_batch)
  config, notes = checked(config, workdir)
  run, source, eval_sets, new_head = open_run(config, workdir, devices, _say)
  inputs, reading = input_with_teacher(run, source)
  _announce(run, len(source), notes)

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(run.mesh))
    stop = stack.enter_context(StopSignal())
    lock = stack.enter_context(WorkdirLock(workdir, _say))
    checkpoints = _checkpoints(config, workdir, eval_sets)
    stack.callback(checkpoints.close)
    train_step = compile_step(run, **reading)
    first = FirstStep(run, inputs, train_step)
    stack.callback(first.close)
    first.begin(checkpoints)
    state, first_step = initial_state(run, checkpoints, _say, new_head)
    _check_length(run, first_step)
    require_agreement({'step': first_step}, 'after the restore')
    writer = _writer(config, workdir, first_step)
    stack.callback(writer.close)
    goodput.resume(writer.kept, writer.last, first_step)
    progress = _progress(run, first_step)
    clocks = progress, goodput
    log, evaluate, save = _actions(
      run, source, eval_sets, writer, clocks, checkpoints, lock, first_step
    )
    summary: dict[str, Any] = {'step': first_step, 'parameters': run.parameters}
    if config.run.eval_only:
      summary['results'] = evaluate.evaluate(first_step, state)
      writer.summary(summary)
      return summary

    profile = Profile(as_path(workdir) / 'profile', config.log.profile_steps)
    stack.callback(profile.close)
    show_first = first_batch.shower(
      run, inputs.extras, reading, source, writer.image, show_batch, _say
    )
    batches = first.batches(first_step)
    throttle, step = Throttle(), first_step
    stack.callback(_BAR.clear)
    goodput.was('time_start')
    if step in checkpoints.steps() and step < run.total_steps:
      evaluate.make_up(step, state)
    _begin_compilation(progress, step, run.total_steps)
    while step < run.total_steps:
      profile.before(step)
      batch = goodput.wait_for(batches)
      if step == first_step:
        train_step = first.compile(state, batch)
      state, values = train_step(state, batch, inputs.extras)
      step += 1
      processes.tick(step)
      throttle(values)
      if step == first_step + 1:
        jax.block_until_ready(values)
        _say(f'compiled in {first.done():.1f} s')
        # The first step does not wait for this picture.
        show_first(first_step, batch)
        progress.start(step)
        goodput.was('time_compilation')
      profile.after(step, values)
      log(step, state, values)
      _show_bar(progress, run, step, log)
      with progress.paused():
        stopping = step < run.total_steps and stop.reached(step)
        # Before the evaluation, which may fail or take long.
        save(step, state, now=stopping)
        if stopping:
          raise Preempted(
            f'stopped at step {step} of {run.total_steps}; the state is saved '
            f'in {workdir}: start the same command again'
          )
        evaluate(step, state)

    # A finished run that is started again has not been evaluated yet.
    save.wait()
    summary.update(
      results=evaluate.at(step) or evaluate.evaluate(step, state),
      step=step,
      epochs=run.epochs(step),
      gmacs=run.macs / 1e9,
      img_per_sec=progress.img_per_sec,
      config=to_json(config),
      goodput=goodput.totals(),
      **skipped_steps(state, step),
    )
    _end(config, writer, summary, goodput)
    return summary


def _announce(run: Run, num_examples: int, notes: Sequence[str]) -> None:
  """Prints model, data and length of the run."""
  _say(describe(run, num_examples))
  unseen = unseen_pixels(run.model, preprocessing(run.config).size)
  for note in [*notes, unseen] if unseen else notes:
    _say(note)
  if run.config.log.overview:
    _say(
      parameter_overview.get_parameter_overview(
        run.abstract_state.params, include_stats='sharding'
      )
    )


def _checkpoints(
  config: Config, workdir: str | os.PathLike, eval_sets: dict[str, Source]
) -> Checkpoints:
  """The steps of a workdir, of which the first eval set tells the best."""
  return Checkpoints(
    workdir,
    keep_latest=config.log.keep_latest,
    keep_best=config.log.keep_best,
    keep_every=config.log.keep_every_steps,
    metric=f'{next(iter(eval_sets), "")}_top1',
  )


def _writer(
  config: Config, workdir: str | os.PathLike, first_step: int
) -> Writer:
  """Writes the metrics of process 0, after those of the finished steps."""
  recipe = to_json(config)
  keys = dict(flatten(recipe))
  writer = Writer(
    workdir,
    resumed_step=first_step,
    tensorboard=config.log.tensorboard,
    enabled=processes.is_first(),
    trackers=config.log.writers,
    name=config.run.name or as_path(workdir).name,
    recipe=keys,
    compared=list(changed_keys(keys)),
  )
  writer.config(recipe)
  return writer


def _progress(run: Run, first_step: int) -> Progress:
  """Measures the speed of a run."""
  return Progress(
    run.total_steps,
    first_step,
    run.config.data.batch_size,
    flops_per_image=_FLOPS_PER_MAC * run.macs,
    peak_flops=flops.peak_flops(run.mesh.devices.flat[0]),
    devices=run.mesh.size,
  )


class _Actions(NamedTuple):
  """The work that a run does at some of its steps."""

  log: Log
  evaluate: Evaluation
  save: Saving


def _actions(
  run: Run,
  source: Source,
  eval_sets: dict[str, Source],
  writer: Writer,
  clocks: tuple[Progress, Goodput],
  checkpoints: Checkpoints,
  lock: WorkdirLock,
  first_step: int,
) -> _Actions:
  """Logging, evaluation and saving, as often as the recipe says."""
  config, per_epoch = run.config, run.steps_per_epoch
  epochs = {
    'steps_per_epoch': per_epoch,
    'extra_steps': run.length.extra_steps,
  }

  def before_save():
    lock.check()
    writer.flush()  # a run that goes on from this step has its metrics

  check = _ignore if config.run.nan == 'skip' else check_finite
  log = Log(
    writer,
    *clocks,
    _say,
    every_steps=config.log.every_steps,
    first_step=first_step,
    total_steps=run.total_steps,
    **epochs,
    check=check,
  )
  evaluator = make_evaluator(run, eval_sets)

  def evaluate_sets(variables):
    _BAR.clear()  # the evaluation has a bar of its own
    return evaluator(variables)

  evaluate = Evaluation(
    evaluate_sets,
    writer,
    clocks[1],
    _say,
    every_steps=in_steps(config, 'eval', 'every_', steps_per_epoch=per_epoch),
    total_steps=run.total_steps,
    **epochs,
    average=config.eval.ema,
    whole=config.mesh.preset == 'zero',
    check=check,
    score=checkpoints.score,
    probe=make_probe(run),
  )
  save = Saving(
    checkpoints,
    run_metadata(run, source),
    clocks[1],
    every_steps=config.log.checkpoint_steps,
    every_minutes=config.log.checkpoint_minutes,
    ask_every_steps=config.log.every_steps,
    total_steps=run.total_steps,
    check=check,
    guard=before_save,
  )
  return _Actions(log, evaluate, save)


def _check_length(run: Run, first_step: int) -> None:
  """Says how a run goes on that is extended.

  Raises:
    ConfigError: the run has more steps already than its recipe says.
  """
  config = run.config
  if config.run.eval_only:
    return
  if first_step > run.total_steps and (config.run.extend or config.run.resume):
    raise ConfigError(
      f'the run has {first_step:,} steps already, and this recipe has '
      f'{run.total_steps:,}: lengthen it (run.steps, epochs or examples), or '
      'let it go on for N epochs by run.extend=N'
    )
  if first_step >= run.total_steps:
    _say(
      f'all {run.total_steps:,} steps are done: nothing is trained, and the '
      'model is evaluated again. --more-epochs N (run.extend=N) goes on'
    )
  elif config.run.extend:
    _say(extension.in_words(run.length, run.steps_per_epoch, first_step))
  elif first_step:
    rate = float(run.schedule(first_step))
    _say(
      f'going on at step {first_step:,} of {run.total_steps:,} with the '
      f'learning rate {rate:.3g}'
    )


def _ignore(state: Any) -> None:
  """Instead of `check_finite`, for a run with run.nan='skip'."""


def _begin_compilation(progress: Progress, step: int, total_steps: int) -> None:
  """Starts the clock, and says why the first step takes long."""
  progress.start(step)
  if step < total_steps:
    _say('compiling the training step ...')


def _end(
  config: Config, writer: Writer, summary: dict[str, Any], goodput: Goodput
) -> None:
  """Writes the summary, and prints what the run has reached."""
  _say(goodput.line())
  writer.summary(summary)
  if processes.is_first():
    _BAR.clear()
    print(ending(config, writer.workdir, summary, writer.best), flush=True)


_BAR = LiveLine()


def _show_bar(progress: Progress, run: Run, step: int, log: Log) -> None:
  """Shows how far the run is at the bottom of the terminal of process 0."""
  if processes.is_first():
    _BAR.show(lambda: progress.bar(step, log.line, run.epochs(step)))


def _say(text: str) -> None:
  """Prints a line in process 0."""
  if processes.is_first() and not is_quiet():
    _BAR.clear()
    print(text, flush=True)
