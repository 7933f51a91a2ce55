"""Runs the variants of a recipe one after another, and tabulates them.

    python -m vit_jax.ablate --config=configs/X.py:ARG --workdir=DIR --seeds=3

A recipe has variants if it has a function `sweep(arg)` that returns

    {name: {key: value, ...}, ...}    or a list of such {key: value, ...}

Keys are those of the recipe ('optim.lr'), and these of the variant itself:

    'arg'     another argument for the recipe
    'config'  another recipe: 'configs/Y.py:ARG'
    'seeds'   so many seeds instead of --seeds

In text values '{workdir}' is --workdir and '{seed}' the number of the seed,
so that a variant can use what an earlier one made: the run of seed k is in
WORKDIR/NAME/seedK, characters of NAME that do not suit a path as '_', with
run.seed = that of the recipe + k. Keys given on the command line
(--config.data.dir=DIR) hold for all variants.

Started again, finished runs are skipped and an interrupted one goes on. The
table (mean and sample standard deviation over the seeds) is printed, and kept
in WORKDIR/ablation.md and, with every run, ablation.json.

--jobs=2 runs two at a time on a CPU, each in a process of its own on half of
the cores, its output in WORKDIR/NAME/seedK/log.txt: small models leave cores
idle, and two of them on one core each are faster than one after the other.
"""

import os
import subprocess
import sys

from absl import app, flags, logging
from etils import epath

from vit_jax import train
from vit_jax.ablation.plan import folder, make_plan
from vit_jax.ablation.runner import DIVERGED, _say, run
from vit_jax.ablation.table import table


def _main(argv) -> None:
  from ml_collections import config_flags

  values = flags.FLAGS
  try:
    if len(argv) > 1:
      raise ValueError(
        f'unexpected argument {argv[1]!r}; all settings are '
        'flags: --config=configs/X.py --workdir=DIR --seeds=3'
      )
    if values.config is None or values.workdir is None:
      raise ValueError('--config=configs/X.py and --workdir=DIR are required')
    values.config.run  # noqa: B018  a recipe that failed to load shows here
    logging.set_verbosity(logging.WARNING)
    recipe = config_flags.get_config_filename(values['config'])
    common = config_flags.get_override_values(values['config'])
    if values.run is not None:
      name, k, config = make_plan(recipe, values.workdir, values.seeds, common)[
        values.run
      ]
      train.train_and_evaluate(
        config, epath.Path(values.workdir) / folder(name) / f'seed{k}'
      )
      return
    from vit_jax.parallel import processes
    from vit_jax.parallel.watchdog import session

    processes.initialize()
    with session(values.workdir, orderly=(train.Preempted,)):
      found = run(
        recipe,
        values.workdir,
        seeds=values.seeds,
        only=values.variants,
        common=common,
        jobs=values.jobs,
        start=_start,
      )
      _say('\n' + table(found))
  except train.NonFinite as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(DIVERGED)
  except train.Preempted as e:
    print(e, file=sys.stderr)
    sys.exit(3)
  except (ValueError, OSError, RuntimeError, AttributeError, TypeError) as e:
    logging.debug('failed', exc_info=True)
    print(f'error: {e}', file=sys.stderr)
    sys.exit(1)


def _start(number: int, cores, log) -> subprocess.Popen:
  """This command again, for one run of its plan."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'vit_jax.ablate', *sys.argv[1:], f'--run={number}'],
    stdout=log,
    stderr=subprocess.STDOUT,
  )
  if cores:  # before it has any threads
    os.sched_setaffinity(process.pid, cores)
  return process


def main() -> None:
  """The command line of `python -m vit_jax.ablate`."""
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
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
    'Do this run of the plan alone, without a table (what --jobs starts).',
  )
  flags.DEFINE_list('variants', None, 'Run only these (names, by commas).')
  app.run(_main)


if __name__ == '__main__':
  main()
