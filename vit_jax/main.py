"""Trains and evaluates a recipe.

    python -m vit_jax.main --config=configs/X.py[:ARG] --workdir=DIR

--config.KEY=VALUE sets a key of the recipe, such as --config.optim.lr=3e-4. A
stopped run continues when the same command is started again. Exit codes: 0 for
a finished run, 1 for an error (its message is the last line), 3 for a run that
was preempted and has saved its state.
"""

import sys
from typing import Any

from absl import flags

from vit_jax.recipe.command_line import run_program


def run(values: Any, overrides: dict[str, str]) -> int:
  """Checks the recipe, joins the job and trains; returns the exit code.

  Args:
    values: has the values of the flags below, as attributes.
    overrides: {key: text} of --config.KEY=VALUE.
  """
  from vit_jax.recipe.checks import check
  from vit_jax.recipe.overrides import load_config

  config = load_config(values.config, overrides)
  check(config)
  show_batch = getattr(values, 'show_batch', None) or ''

  from vit_jax.parallel import processes
  from vit_jax.parallel.session import session

  processes.initialize(
    values.coordinator, values.num_processes, values.process_id
  )
  if getattr(values, 'dry_run', False):
    from vit_jax.preview import preview

    words = preview(config, values.workdir, show_batch=show_batch)
    if processes.is_first():
      print(words)
    return 0
  from vit_jax import train

  try:
    with session(values.workdir, orderly=(train.Preempted,)):
      train.train_and_evaluate(config, values.workdir, show_batch=show_batch)
  except train.Preempted as e:
    print(e, file=sys.stderr)
    return 3
  return 0


def main() -> None:
  """The command line of `python -m vit_jax.main`."""
  flags.DEFINE_string(
    'config', None, 'Recipe: configs/X.py or configs/X.py:ARG.'
  )
  flags.DEFINE_string(
    'workdir', None, 'Directory for checkpoints, metrics and the summary.'
  )
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, if it is not detected.'
  )
  flags.DEFINE_integer(
    'num_processes', None, 'Number of processes, if it is not detected.'
  )
  flags.DEFINE_integer(
    'process_id', None, 'Number of this process, from 0, if not detected.'
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Say what the run would do, and train nothing.'
  )
  flags.DEFINE_string(
    'show_batch', None, 'Picture of the first training batch, .png or .jpg.'
  )
  run_program(run, '--config=configs/X.py --workdir=DIR')


if __name__ == '__main__':
  main()
