"""Runs the variants of a recipe, and writes a table of their results.

    python -m vit_jax.ablate --config=configs/X.py:ARG --workdir=DIR --seeds=3

A recipe has variants if it has a function `sweep(arg)` that returns

    {name: {key: value, ...}, ...}    or a list of such {key: value, ...}

The keys are those of the recipe, such as 'optim.lr', and four of the variant:

    'arg'        another argument for the recipe
    'config'     another recipe: 'configs/Y.py:ARG'
    'seeds'      number of seeds of this variant, instead of --seeds
    'published'  published top-1 in per cent, or {'top-1': 91.44, 'top-5':
                 99.6, 'loss': 0.408}; the table shows it beside the results

A recipe may also have a function `measure(config, directory)`. It is called
after each run with the run's config and directory, and returns {column: value}
of what the paper measures, such as a few-shot accuracy. The table has these
columns too, and 'published' may name them.

A function `prepare(config)` of the recipe is called before each run. It makes
data that the run needs and that depends on an earlier run, such as the labels
of a teacher. It has to return at once if the data exists.

In values that are texts, '{workdir}' is replaced by --workdir and '{seed}' by
the number of the seed, so that a variant can use the files of an earlier one.
The run of seed k has the recipe's run.seed + k and is in WORKDIR/NAME/seedK.
Characters of NAME that are not allowed in a path become '_'. Keys on the
command line (--config.data.dir=DIR) apply to all variants.

When the command is started again, it skips finished runs and continues an
interrupted one. The table, with the mean and the sample standard deviation over
the seeds, is printed and written to WORKDIR/ablation.md; WORKDIR/ablation.json
has every run.

--jobs=2 does two runs at a time on a CPU. Each is a process on half of the
cores, and writes its output to WORKDIR/NAME/seedK/log.txt. A small model does
not keep all cores busy, so this is faster than one run after the other.
"""

from collections.abc import Mapping
import functools
import os
import subprocess
import sys
from typing import Any

from absl import flags

from vit_jax.recipe.command_line import run_program


def run(values: Any, overrides: dict[str, str]) -> int:
  """Does the ablation, or one of its runs; returns the exit code.

  Args:
    values: has the values of the flags below, as attributes.
    overrides: {key: text} of --config.KEY=VALUE.
  """
  from vit_jax.parallel import processes
  from vit_jax.parallel.session import session

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
    # Checked before the session, which creates the workdir and its log.
    checked_plan(recipe, workdir, values.seeds, overrides, values.variants)
    with session(workdir, orderly=(train.Preempted,)):
      results = run_variants(
        recipe,
        workdir,
        seeds=values.seeds,
        only=values.variants,
        overrides=overrides,
        jobs=values.jobs,
        start=functools.partial(_start, _words(values, overrides)),
      )
      say('\n' + table(results))
  except train.NonFinite as e:
    print(f'error: {e}', file=sys.stderr)
    return DIVERGED
  except train.Preempted as e:
    print(e, file=sys.stderr)
    return PREEMPTED
  return 0


def _words(values: Any, overrides: Mapping[str, str]) -> list[str]:
  """The command line of `python -m vit_jax.ablate` with these values."""
  words = [f'--config={values.config}', f'--workdir={values.workdir}']
  words.append(f'--seeds={values.seeds}')
  return [*words, *(f'--config.{k}={v}' for k, v in overrides.items())]


def _start(
  words: list[str], number: int, cores: list[int] | None, log
) -> subprocess.Popen:
  """Starts `python -m vit_jax.ablate` for one run of the plan."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'vit_jax.ablate', *words, f'--run={number}'],
    stdout=log,
    stderr=subprocess.STDOUT,
  )
  if cores:  # set now, before the process starts threads
    os.sched_setaffinity(process.pid, cores)
  return process


def main() -> None:
  """The command line of `python -m vit_jax.ablate`."""
  flags.DEFINE_string(
    'config',
    None,
    'Recipe with a sweep: configs/X.py or configs/X.py:ARG.',
  )
  flags.DEFINE_string('workdir', None, 'Directory for all runs and the table.')
  flags.DEFINE_integer('seeds', 3, 'Number of runs of each variant.')
  flags.DEFINE_integer(
    'jobs', 1, 'Number of runs at a time, on a CPU.', lower_bound=1
  )
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
