"""What a run would do, found out without writing into its workdir.

    print(in_words(preview(config, workdir, show_batch='batch.png')))

The recipe is checked and its data and weights are read as a run does it, the
training step is compiled, and a few steps are made to measure their time.
"""

from collections.abc import Mapping, Sequence
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
from vit_jax.models.patches import unseen_pixels
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import compile_together
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
_NO_BREAK = '\N{NO-BREAK SPACE}'  # a class and its number stay on one line


def preview(
  config: Config,
  workdir: str | os.PathLike | None = None,
  *,
  devices: Sequence[Any] | None = None,
  show_batch: str = '',
) -> dict[str, Any]:
  """Finds out about a run: data, length, memory and time. Nothing is trained.

  Args:
    config: a recipe, see `vit_jax.recipe.keys.default_config`.
    workdir: of the run, which is only read; None for a run without a workdir.
    devices: the devices to use; None for all.
    show_batch: where to write the picture of the first batch, .png or .jpg; ''
      for none.

  Returns:
    Plain values, which `in_words` tells in lines: 'run', a line about model,
    data, length and devices; 'notes'; 'training' and, for each eval set,
    'evaluation', with the number of 'images' and of the 'images_of_classes';
    'length' in steps and epochs; 'learning_rate'; 'memory' in bytes for each
    device; 'time' in seconds; 'workdir', with its newest 'step'; 'picture'.

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
    state = fresh_state(run, notes.append, opened.new_head)
    batches = inputs.batches(0)
    stack.callback(batches.close)
    batch = next(batches)
    if show_batch:
      shown = first_batch.first_batch(
        run, 0, batch, inputs.extras, source.class_names, **reading
      )
      if processes.is_first():
        first_batch.save(shown, show_batch)
    step = compile_step(run, **reading)
    compile_together(step, state, batch, inputs.extras)
    program = step.lower(state, batch, inputs.extras).compile()
    memory = peak_bytes(program.memory_analysis())
    seconds = _measured(
      program, state, itertools.chain([batch], batches), inputs.extras
    )
  unseen = unseen_pixels(run.model, preprocessing(config).size)
  saved = _saved_step(workdir)
  return {
    'run': describe(run, len(source)),
    'notes': [note for note in [*changes, *notes, unseen] if note],
    'training': _data(source),
    'evaluation': {k: _data(s) for k, s in opened.eval_sets.items()},
    'length': _length(run),
    'learning_rate': _rate(run),
    'memory': _memory(memory),
    'time': _time(run, opened.eval_sets, seconds, saved),
    'workdir': None
    if workdir is None
    else {'path': os.fspath(workdir), 'step': saved},
    'picture': show_batch or None,
  }


def in_words(facts: Mapping[str, Any]) -> str:
  """What `preview` has found out, in lines for the terminal."""
  rows = [
    ('model', facts['run']),
    *(('note', note) for note in facts['notes']),
    ('training', _data_in_words(facts['training'])),
    *(
      ('evaluation', f'{name}: {_data_in_words(data)}')
      for name, data in facts['evaluation'].items()
    ),
    ('length', _length_in_words(facts['length'])),
    ('rate', _rate_in_words(facts['learning_rate'])),
    ('memory', _memory_in_words(facts['memory'])),
    ('time', _time_in_words(facts['time'], facts['length']['batch_size'])),
    ('workdir', _workdir_in_words(facts['workdir'], facts['length']['steps'])),
  ]
  if facts['picture']:
    rows.append(('picture', f'{facts["picture"]} shows the first batch'))
  return '\n'.join(
    textwrap.fill(
      f'{label:<{_INDENT}}{words}',
      text.line_width(),
      subsequent_indent=' ' * _INDENT,
      break_on_hyphens=False,
      break_long_words=False,
    ).replace(_NO_BREAK, ' ')
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
) -> list[float]:
  """Seconds of some steps, each with its input; all processes make them."""
  state, values = program(state, next(batches), extras)  # the slower first one
  jax.block_until_ready(values)
  seconds: list[float] = []
  most = _MOST_STEPS
  while len(seconds) < most:
    begin = time.monotonic()
    batch = next(batches, None)
    if batch is None:
      break
    state, values = program(state, batch, extras)
    jax.block_until_ready(values)
    seconds.append(time.monotonic() - begin)
    if len(seconds) == 1:
      # The same number in all processes, which compute a step together.
      fit = 1 + int(_MOST_SECONDS / max(1e-6, seconds[0]))
      most = min(most, processes.broadcast_from_first(fit))
  return seconds


def _data(source: Source) -> dict[str, Any]:
  """Name and length of a source, and how many images each class has."""
  labels = source.labels()
  counts = None
  if labels is not None:
    numbers = np.bincount(labels, minlength=source.num_classes).tolist()
    names = source.class_names or [f'class {i}' for i in range(len(numbers))]
    counts = dict(zip(names, numbers, strict=True))
  return {
    'data': source.summary.strip() or source.name,
    'images': len(source),
    'classes': source.num_classes,
    'images_of_classes': counts,
  }


def _data_in_words(data: Mapping[str, Any]) -> str:
  words = (
    f'{text.counted(data["images"], "image")} of '
    f'{text.counted(data["classes"], "class")}: {data["data"]}'
  )
  counts = data['images_of_classes']
  if counts is None:
    return words
  if len(counts) <= _MOST_CLASSES:
    listed = [f'{name}:{_NO_BREAK}{n:,}' for name, n in counts.items()]
    return f'{words}\n{", ".join(listed)}'
  least, most = min(counts, key=counts.get), max(counts, key=counts.get)
  words += (
    f'\nfrom {text.counted(counts[least], "image")} ({least}) to '
    f'{counts[most]:,} ({most}) a class'
  )
  empty = [name for name, n in counts.items() if not n]
  if empty:
    words += f'; without images: {text.shortened(", ".join(empty))}'
  return words


def _length(run: Run) -> dict[str, Any]:
  """Steps and epochs, and what happens how often."""
  config, per_epoch = run.config, run.steps_per_epoch
  every = in_steps(config, 'eval', 'every_', steps_per_epoch=per_epoch)
  return {
    'steps': run.total_steps,
    'batch_size': config.data.batch_size,
    'epochs': float(run.epochs(run.total_steps)),
    'steps_per_epoch': float(per_epoch),
    'eval_every_steps': every or run.total_steps,
    'checkpoint_steps': config.log.checkpoint_steps or run.total_steps,
    'checkpoint_minutes': config.log.checkpoint_minutes or None,
  }


def _length_in_words(length: Mapping[str, Any]) -> str:
  def often(steps: int) -> str:
    if steps >= length['steps']:
      return 'at the end'
    return f'every {steps:,} steps' if steps > 1 else 'at every step'

  saved = often(length['checkpoint_steps'])
  if length['checkpoint_minutes']:
    saved = f'every {length["checkpoint_minutes"]:g} minutes'
  return (
    f'{text.counted(length["steps"], "step")} of '
    f'{text.counted(length["batch_size"], "image")} = '
    f'{text.counted(length["epochs"], "epoch")} of '
    f'{text.counted(length["steps_per_epoch"], "step")}; evaluated '
    f'{often(length["eval_every_steps"])}, saved {saved}'
  )


def _rate(run: Run) -> dict[str, Any]:
  """The learning rate where the run begins and ends, and its peak."""
  config, steps = run.config, max(1, run.total_steps)
  rates = np.asarray(
    jax.vmap(run.schedule)(np.unique(np.linspace(0, steps - 1, 200, dtype=int)))
  )
  extended = ''
  if config.run.extend:
    extended = extension.in_words(run.length, run.steps_per_epoch, 0)
  return {
    'optimizer': config.optim.name,
    'schedule': config.schedule.name,
    'first': float(rates[0]),
    'peak': float(rates.max()),
    'last': float(rates[-1]),
    'extension': extended or None,
  }


def _rate_in_words(rate: Mapping[str, Any]) -> str:
  return rate['extension'] or (
    f'{rate["optimizer"]}, {rate["schedule"]} schedule: from '
    f'{rate["first"]:.3g} at the first step over {rate["peak"]:.3g} at most to '
    f'{rate["last"]:.3g} at the last'
  )


def _memory(needed: int) -> dict[str, int | None]:
  """What a step needs, and what there is, in bytes."""
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  return {
    'step': needed,
    'device': limit,
    'machine_free': None if limit else free_memory(),
  }


def _memory_in_words(memory: Mapping[str, int | None]) -> str:
  needed = memory['step'] or 0
  size = f'{needed / 2**30:.2f} GiB'
  if needed < 2**30:
    size = f'{needed / 2**20:.3g} MiB'
  words = f'{size} for a step on each device'
  if memory['device']:
    words += f', of {memory["device"] / 2**30:.0f} GiB'
  elif memory['machine_free']:
    words += (
      f'; {memory["machine_free"] / 2**30:.1f} GiB of the machine are free'
    )
  return words


def _time(
  run: Run,
  eval_sets: dict[str, Source],
  seconds: list[float],
  saved: int | None,
) -> dict[str, Any]:
  """How long the rest of the run takes at the measured speed, in seconds."""
  config, left = run.config, max(0, run.total_steps - (saved or 0))
  every = in_steps(
    config, 'eval', 'every_', steps_per_epoch=run.steps_per_epoch
  )
  evaluations = -(-left // every) if every else 1
  # A training step computes forward, and twice as much backward.
  images = sum(map(len, eval_sets.values())) * evaluations / 3
  step = sum(seconds) / len(seconds) if seconds else None
  return {
    'step': step,
    'measured_steps': len(seconds),
    'steps': left,
    'training': None if step is None else left * step,
    'evaluations': evaluations if eval_sets else 0,
    'evaluation': None
    if step is None
    else step * images / config.data.batch_size,
  }


def _time_in_words(times: Mapping[str, Any], batch_size: int) -> str:
  if times['step'] is None:
    return 'not measured: the run has a single step'
  words = (
    f'about {text.duration(times["training"])} for '
    f'{text.counted(times["steps"], "step")} at {times["step"]:.3g} s '
    f'({batch_size / times["step"]:.3g} img/s, from '
    f'{text.counted(times["measured_steps"], "step")})'
  )
  if times['evaluations']:
    words += (
      f', and {text.duration(times["evaluation"])} for '
      f'{text.counted(times["evaluations"], "evaluation")}'
    )
  return f'{words}; compilation and saving come on top'


def _workdir_in_words(workdir: Mapping[str, Any] | None, steps: int) -> str:
  if workdir is None:
    return 'none was given; nothing was written'
  path, step = workdir['path'], workdir['step']
  if step is None:
    return f'{path} has no saved step: a new run. Nothing was written'
  if step >= steps:
    return (
      f'{path} has a finished run of {step:,} steps, which would only be '
      'evaluated. Nothing was written'
    )
  return f'{path}: goes on from step {step:,}. Nothing was written'
