"""What a run would do, found out without writing into its workdir.

    print(preview(config, workdir, show_batch='batch.png'))

The recipe is checked and its data and weights are read as a run does it, the
training step is compiled, and a few steps are made to measure their time.
"""

from collections.abc import Sequence
import contextlib
import itertools
import os
import textwrap
import time
from typing import Any

import jax
import numpy as np

from vit_jax import text
from vit_jax.analysis.comparison import free_memory
from vit_jax.data.sources.source import Source
from vit_jax.models import flops
from vit_jax.models.patches import unseen_pixels
from vit_jax.recipe import extension, first_batch
from vit_jax.recipe.build import Run, compile_step, describe
from vit_jax.recipe.keys import in_steps, preprocessing
from vit_jax.recipe.opening import checked, open_run
from vit_jax.recipe.sections import Config
from vit_jax.recipe.start import fresh_state
from vit_jax.teachers.inputs import input_with_teacher
from vit_jax.training.memory import peak_bytes
from vit_jax.weights.steps import FOLDER, absolute, list_steps

_MOST_STEPS, _MOST_SECONDS = 5, 30.0  # that are measured
_MOST_CLASSES = 10  # that are listed
_INDENT = 12


def preview(
  config: Config,
  workdir: str | os.PathLike | None = None,
  *,
  devices: Sequence[Any] | None = None,
  show_batch: str = '',
) -> str:
  """Describes a run: data, length, memory and time. Nothing is trained.

  Args:
    config: a recipe, see `vit_jax.recipe.keys.default_config`.
    workdir: of the run, which is only read; None for a run without a workdir.
    devices: the devices to use; None for all.
    show_batch: where to write the picture of the first batch, .png or .jpg; ''
      for none.

  Returns:
    Lines for the terminal.

  Raises:
    ConfigError, WeightsError, ValueError: what the run itself would raise
      before its first step.
  """
  if show_batch:
    first_batch.check_format(show_batch)
  notes: list[str] = []
  config, changes = checked(config, workdir)
  opened = open_run(config, workdir or '', devices, notes.append)
  run, source = opened.run, opened.source
  inputs, reading = input_with_teacher(run, source)
  with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
    first_step = _saved_step(workdir)
    state = fresh_state(run, notes.append, opened.new_head)
    batches = inputs.batches(0)
    stack.callback(batches.close)
    batch = next(batches)
    if show_batch:
      shown = first_batch.first_batch(
        run, 0, batch, inputs.extras, source.class_names, **reading
      )
      first_batch.save(shown, show_batch)
    step = compile_step(run, **reading)
    program = step.lower(state, batch, inputs.extras).compile()
    memory = peak_bytes(program.memory_analysis())
    seconds, measured = _measured(
      program, state, itertools.chain([batch], batches), inputs.extras
    )
  macs = flops.forward_macs(run.model, *preprocessing(config).size)
  unseen = unseen_pixels(run.model, preprocessing(config).size)
  rows = [
    ('model', describe(run, len(source), macs)),
    *(('note', note) for note in [*changes, *notes, unseen] if note),
    ('training', _data(source)),
    *(('evaluation', f'{k}: {_data(s)}') for k, s in opened.eval_sets.items()),
    ('length', _length(run)),
    ('rate', _rate(run)),
    ('memory', _memory(memory)),
    ('time', _time(run, opened.eval_sets, seconds, measured, first_step)),
    ('workdir', _workdir(workdir, first_step, run)),
  ]
  if show_batch:
    rows.append(('picture', f'{show_batch} shows the first batch'))
  return '\n'.join(
    textwrap.fill(
      f'{label:<{_INDENT}}{words}',
      text.line_width(),
      subsequent_indent=' ' * _INDENT,
      break_on_hyphens=False,
      break_long_words=False,
    )
    for label, block in rows
    for label, words in zip(
      itertools.chain([label], itertools.repeat('')),
      block.splitlines(),
      strict=False,
    )
  )


def _saved_step(workdir: str | os.PathLike | None) -> int | None:
  """The newest saved step of a workdir; None for a new run."""
  if workdir is None:
    return None
  steps = list_steps(absolute(workdir) / FOLDER)
  return int(steps[-1].name) if steps else None


def _measured(
  program: Any, state: Any, batches: Any, extras: Any
) -> tuple[float, int]:
  """Seconds of a step, with its input, and how many were measured."""
  state, values = program(state, next(batches), extras)
  jax.block_until_ready(values)
  begin, count = time.monotonic(), 0
  for batch in batches:
    state, values = program(state, batch, extras)
    jax.block_until_ready(values)
    count += 1
    passed = time.monotonic() - begin
    if count == _MOST_STEPS or passed > _MOST_SECONDS:
      return passed / count, count
  return (time.monotonic() - begin) / max(1, count), count


def _data(source: Source) -> str:
  """Name and length of a source, and how many images each class has."""
  words = f'{len(source):,} images of {source.num_classes} classes: '
  words += source.summary.strip() or source.name
  labels = source.labels()
  if labels is None:
    return words
  counts = np.bincount(labels, minlength=source.num_classes)
  names = source.class_names or [f'class {i}' for i in range(len(counts))]
  if len(counts) <= _MOST_CLASSES:
    listed = [f'{name}: {n:,}' for name, n in zip(names, counts, strict=True)]
    return f'{words}\n{", ".join(listed)}'
  least, largest = counts.argmin(), counts.argmax()
  words += (
    f'\nfrom {counts[least]:,} images ({names[least]}) to '
    f'{counts[largest]:,} ({names[largest]}) a class'
  )
  empty = [name for name, n in zip(names, counts, strict=True) if not n]
  if empty:
    words += f'; without images: {text.shortened(", ".join(empty))}'
  return words


def _length(run: Run) -> str:
  """Steps and epochs, and what happens how often."""
  config, per_epoch = run.config, run.steps_per_epoch
  every = in_steps(config, 'eval', 'every_', steps_per_epoch=per_epoch)
  saved = config.log.checkpoint_steps
  saves = f'every {saved:,} steps' if saved else 'at the end'
  if config.log.checkpoint_minutes:
    saves = f'every {config.log.checkpoint_minutes:g} minutes'
  return (
    f'{run.total_steps:,} steps of {config.data.batch_size:,} images = '
    f'{run.epochs(run.total_steps):.4g} epochs of {per_epoch:.6g} steps; '
    f'evaluated {f"every {every:,} steps" if every else "at the end"}, saved '
    f'{saves}'
  )


def _rate(run: Run) -> str:
  """The learning rate in words."""
  config, steps = run.config, max(1, run.total_steps)
  rates = np.asarray(
    jax.vmap(run.schedule)(np.unique(np.linspace(0, steps - 1, 200, dtype=int)))
  )
  if config.run.extend:
    return extension.in_words(run.length, run.steps_per_epoch, 0)
  return (
    f'{config.optim.name}, {config.schedule.name} schedule: from '
    f'{rates[0]:.3g} at the first step over {rates.max():.3g} at most to '
    f'{rates[-1]:.3g} at the last'
  )


def _memory(needed: int) -> str:
  """What a step needs, and what there is."""
  device = jax.devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  size = f'{needed / 2**30:.2f} GiB'
  if needed < 2**30:
    size = f'{needed / 2**20:.0f} MiB'
  words = f'{size} for a step on each device'
  if limit:
    words += f', of {limit / 2**30:.0f}'
  elif free := free_memory():
    words += f'; {free / 2**30:.1f} GiB of the machine are free'
  return words


def _time(
  run: Run,
  eval_sets: dict[str, Source],
  seconds: float,
  measured: int,
  first_step: int | None,
) -> str:
  """How long the rest of the run takes at the measured speed."""
  if not measured:
    return 'not measured: the run has a single step'
  config = run.config
  left = run.total_steps - (first_step or 0)
  every = in_steps(
    config, 'eval', 'every_', steps_per_epoch=run.steps_per_epoch
  )
  times = -(-left // every) if every else 1
  # A training step computes forward, and twice as much backward.
  evaluated = sum(map(len, eval_sets.values())) * times / 3
  evaluation = seconds * evaluated / config.data.batch_size
  return (
    f'about {text.duration(left * seconds)} for {left:,} steps at '
    f'{seconds:.3g} s ({config.data.batch_size / seconds:.3g} img/s, from '
    f'{measured} steps), and {text.duration(evaluation)} for evaluating '
    f'{times} times; compilation and saving come on top'
  )


def _workdir(
  workdir: str | os.PathLike | None, first_step: int | None, run: Run
) -> str:
  if workdir is None:
    return 'none was given; nothing was written'
  if first_step is None:
    return f'{workdir} has no saved step: a new run. Nothing was written'
  if first_step >= run.total_steps:
    return (
      f'{workdir} has a finished run of {first_step:,} steps, which would only '
      'be evaluated. Nothing was written'
    )
  return f'{workdir}: goes on from step {first_step:,}. Nothing was written'
