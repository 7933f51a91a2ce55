"""Trains and evaluates a recipe.

    python -m vit_jax.main --config=configs/X.py[:ARG] --workdir=DIR

--config.KEY=VALUE sets a key of the recipe, such as --config.optim.lr=3e-4. A
stopped run continues when the same command is started again. Exit codes: 0 for
a finished run, 1 for an error (its message is the last line), 3 for a run that
was preempted and has saved its state.
"""

import json
import sys
from typing import Any

from absl import flags

from vit_jax.recipe.command_line import run_program
from vit_jax.text import result_lines


def run(values: Any, overrides: dict[str, str]) -> int:
  """Checks the recipe, joins the job and trains; returns the exit code.

  Args:
    values: has the values of the flags below, as attributes.
    overrides: {key: text} of --config.KEY=VALUE.
  """
  from vit_jax.recipe.checks import check
  from vit_jax.recipe.overrides import load_config

  if values.more_epochs is not None:
    overrides = {**overrides, 'run.extend': str(values.more_epochs)}
  config = load_config(values.config, overrides)
  check(config)
  from vit_jax.parallel import processes
  from vit_jax.parallel.session import session

  processes.initialize(
    values.coordinator, values.num_processes, values.process_id
  )
  from vit_jax.recipe import kept_step

  kept_step.begin(config)
  show_batch = values.show_batch or ''
  lines = result_lines(values.json)
  if values.dry_run:
    from vit_jax import preview

    with session(None), lines:
      facts = preview.preview(config, values.workdir, show_batch=show_batch)
    if processes.is_first():
      print(
        json.dumps(facts, indent=2) if values.json else preview.in_words(facts)
      )
    return 0
  from vit_jax import train
  from vit_jax.files import as_path

  try:
    with lines, session(values.workdir, orderly=(train.Preempted,)):
      train.train_and_evaluate(config, values.workdir, show_batch=show_batch)
  except train.Preempted as e:
    print(e, file=sys.stderr)
    return 3
  if values.json and processes.is_first():
    print((as_path(values.workdir) / 'summary.json').read_text(), end='')
  return 0


def main() -> None:
  """The command line of `python -m vit_jax.main`."""
  for name, words in (
    ('config', 'Recipe: configs/X.py or configs/X.py:ARG.'),
    ('workdir', 'Directory for checkpoints, metrics and the summary.'),
    ('coordinator', 'host:port of process 0, if it is not detected.'),
    ('show_batch', 'Picture of the first training batch, .png or .jpg.'),
  ):
    flags.DEFINE_string(name, None, words)
  for name, words in (
    ('num_processes', 'Number of processes, if it is not detected.'),
    ('process_id', 'Number of this process, from 0, if not detected.'),
  ):
    flags.DEFINE_integer(name, None, words)
  flags.DEFINE_float('more_epochs', None, 'Go on with the run for N epochs.')
  for name, words in (
    ('dry_run', 'Say what the run would do, and train nothing.'),
    ('json', 'Print the results as JSON.'),
  ):
    flags.DEFINE_bool(name, False, words)
  run_program(run, '--config=configs/X.py --workdir=DIR')


if __name__ == '__main__':
  main()
