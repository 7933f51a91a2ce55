"""Runs the variants of a recipe one after another, and tabulates them.

    python -m vit_jax.ablate --config=configs/X.py:ARG --workdir=DIR --seeds=3

A recipe has variants if it has a function `sweep(arg)` that returns

    {name: {key: value, ...}, ...}    or a list of such {key: value, ...}

Keys are those of the recipe ('optim.lr'), and these of the variant itself:

    'arg'        another argument for the recipe
    'config'     another recipe: 'configs/Y.py:ARG'
    'seeds'      the number of seeds of this variant, instead of --seeds
    'published'  the published top-1 in per cent, or {'top-1': 91.44, 'top-5':
                 99.6, 'loss': 0.408}, to be shown beside the results

A recipe may also have a function `measure(config, directory)`, which is called
after each run with the run's config and directory and returns {column: value}:
what the paper measures of the trained model, such as a few-shot accuracy. The
table has these columns too, and 'published' may name them.

In text values '{workdir}' is replaced by --workdir and '{seed}' by the number
of the seed, so that a variant can use what an earlier one made. The run of
seed k is in WORKDIR/NAME/seedK, with '_' for characters of NAME that do not
suit a path, and has run.seed = that of the recipe + k. Keys given on the
command line (--config.data.dir=DIR) hold for all variants.

When the command is started again, finished runs are skipped and an interrupted
one continues. The table (mean and sample standard deviation over the seeds) is
printed and kept in WORKDIR/ablation.md, and every run in WORKDIR/ablation.json.

--jobs=2 runs two at a time on a CPU, each in a process of its own on half of
the cores, with its output in WORKDIR/NAME/seedK/log.txt. Small models leave
cores idle, so two of them on one core each are faster than one after the other.
"""

import os
import subprocess
import sys
from typing import Any

from absl import flags

from vit_jax.recipe.command_line import run_program


def run(values: Any, overrides: Any) -> int:
  """Runs the ablation, or one of its runs; returns the exit code."""
  from vit_jax.parallel import processes
  from vit_jax.parallel.watchdog import session

  if values.run is None:
    processes.initialize()
  from vit_jax import train
  from vit_jax.ablation.plan import make_plan
  from vit_jax.ablation.processes import DIVERGED, PREEMPTED
  from vit_jax.ablation.runner import checked_plan, do_run, run_variants, say
  from vit_jax.ablation.table import table

  recipe, workdir = values.config, values.workdir
  try:
    if values.run is not None:
      plan = make_plan(recipe, workdir, values.seeds, overrides)
      do_run(plan[values.run])
      return 0
    # Before the session, which opens a log in the workdir.
    checked_plan(recipe, workdir, values.seeds, overrides, values.variants)
    with session(workdir, orderly=(train.Preempted,)):
      results = run_variants(
        recipe,
        workdir,
        seeds=values.seeds,
        only=values.variants,
        overrides=overrides,
        jobs=values.jobs,
        start=_start,
      )
      say('\n' + table(results))
  except train.NonFinite as e:
    print(f'error: {e}', file=sys.stderr)
    return DIVERGED
  except train.Preempted as e:
    print(e, file=sys.stderr)
    return PREEMPTED
  return 0


def _start(number: int, cores: list[int] | None, log) -> subprocess.Popen:
  """Starts this same command for one run of its plan."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'vit_jax.ablate', *sys.argv[1:], f'--run={number}'],
    stdout=log,
    stderr=subprocess.STDOUT,
  )
  if cores:  # set at once, before the process has started any threads
    os.sched_setaffinity(process.pid, cores)
  return process


def main() -> None:
  """The command line of `python -m vit_jax.ablate`."""
  flags.DEFINE_string(
    'config',
    None,
    'Recipe with a sweep: configs/X.py, with an argument after a colon.',
  )
  flags.DEFINE_string('workdir', None, 'Directory of all runs and the table.')
  flags.DEFINE_integer('seeds', 3, 'Runs of each variant.')
  flags.DEFINE_integer('jobs', 1, 'Runs at a time, on a CPU.', lower_bound=1)
  flags.DEFINE_integer(
    'run',
    None,
    'Do only this run of the plan, without a table (--jobs starts these).',
  )
  flags.DEFINE_list(
    'variants', None, 'Run only these variants: names, separated by commas.'
  )
  run_program(run, '--config=configs/X.py --workdir=DIR --seeds=3')


if __name__ == '__main__':
  main()
