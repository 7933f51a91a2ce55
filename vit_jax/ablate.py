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

from collections.abc import Callable, Mapping
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
import time
from typing import Any

from absl import app, flags, logging
from etils import epath
import jax
import numpy as np

from vit_jax import train, writers
from vit_jax.config import ConfigError, to_json

OWN = ('arg', 'config', 'seeds')  # keys of a variant, not of the recipe
DIVERGED = 4  # exit code of a single run whose loss became NaN


def load_recipe(path: str):
  """The module of a recipe file; ConfigError if there is none."""
  if not pathlib.Path(path).is_file():
    raise ConfigError(f'{path}: there is no such recipe')
  spec = importlib.util.spec_from_file_location(
      f'recipe_{pathlib.Path(path).stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def variants(recipe: str) -> dict[str, dict[str, Any]]:
  """The variants of 'configs/X.py:ARG', by name.

  Raises:
    ConfigError: the recipe has no `sweep`, or two names give one directory.
  """
  path, _, arg = recipe.partition(':')
  module = load_recipe(path)
  if not hasattr(module, 'sweep'):
    raise ConfigError(
        f'{path} has no variants: give it a function sweep(arg) that returns '
        "{name: {'optim.lr': 1e-3, ...}, ...}")
  found = module.sweep(arg or None)
  if not isinstance(found, Mapping):
    found = {', '.join(f'{k}={v}' for k, v in x.items()): x for x in found}
  folders = [folder(name) for name in found]
  if len(set(folders)) < len(folders) or not folders:
    raise ConfigError(f'{path}: sweep() must give variants of different names; '
                      f'got {", ".join(folders) or "none"}')
  return {name: dict(overrides) for name, overrides in found.items()}


def folder(name: str) -> str:
  """A variant's name as that of its directory."""
  return re.sub(r'[^\w.=+-]+', '_', name)


def set_key(config, key: str, value):
  """config.a.b = value of 'a.b'; ConfigError if the recipe has no such key."""
  *parents, last = key.split('.')
  try:
    for part in parents:
      config = config[part]
    config[last] = value
  except (KeyError, AttributeError, TypeError) as e:
    raise ConfigError(f'{key}={value!r} does not fit the recipe: {e}') from e


def variant_config(recipe: str, overrides: Mapping[str, Any], workdir,
                   seed: int, common: Mapping[str, Any]):
  """The config of one run: recipe, then variant, then the command line."""
  path, _, arg = str(overrides.get('config', recipe)).partition(':')
  arg = overrides.get('arg', arg)
  config = load_recipe(path).get_config(arg or None)
  config.run.seed += seed
  for key, value in [*overrides.items(), *common.items()]:
    if key in OWN:
      continue
    if isinstance(value, str):
      value = value.replace('{workdir}', str(workdir)).replace(
          '{seed}', str(seed))
    set_key(config, key, value)
  return config


def make_plan(recipe: str, workdir, seeds: int, common: Mapping[str, Any]
              ) -> list[tuple[str, int, Any]]:
  """(variant, seed, config) of all runs, in order."""
  return [(name, k, variant_config(recipe, overrides, workdir, k, common))
          for name, overrides in variants(recipe).items()
          for k in range(overrides.get('seeds', seeds))]


def run(recipe: str, workdir, *, seeds: int = 3,
        common: Mapping[str, Any] | None = None,
        only: list[str] | None = None,
        run_one: Callable = train.train_and_evaluate,
        start: Callable | None = None, jobs: int = 1) -> dict[str, Any]:
  """Runs all variants of a recipe that are not finished.

  Args:
    recipe: 'configs/X.py:ARG'.
    workdir: of the whole; each run gets a directory in it.
    seeds: runs of each variant.
    common: {key: value} for all variants, stronger than theirs.
    only: names of the variants to run; all are in the table.
    run_one: (config, workdir) -> summary.
    start: (number in the plan, cores or None, log file) -> a started
      `subprocess.Popen` that does one run; for jobs > 1.
    jobs: runs at a time.

  Returns:
    {name: {'overrides', 'runs': [{'seed', 'workdir', 'results' or 'error'}],
    'mean', 'std'}}; means and deviations are of '{set} top-1'.

  Raises:
    ConfigError: no such variant, or one that does not fit the recipe; all are
      looked at before the first run.
    Preempted: as `train_and_evaluate`.
  """
  workdir = epath.Path(workdir)
  if seeds < 1:
    raise ConfigError(f'seeds={seeds}: must be at least 1')
  every = variants(recipe)
  unknown = sorted(set(only or ()) - set(every))
  if unknown:
    raise ConfigError(f'no variant {unknown[0]!r}; there are '
                      f'{", ".join(every)}')
  plan = make_plan(recipe, workdir, seeds, common or {})
  found = {name: {'overrides': overrides, 'runs': []}
           for name, overrides in every.items()}
  place = lambda name, k: workdir / folder(name) / f'seed{k}'
  todo = []
  for number, (name, k, config) in enumerate(plan):
    summary = finished(place(name, k), config)
    if summary is not None:
      _record(found, name, k, place(name, k), summary)
    elif not only or name in only:
      todo.append(number)
  if jobs == 1:
    for number in todo:
      name, k, config = plan[number]
      _say(f'--- run {number + 1} of {len(plan)}: {name}, seed {k}')
      try:
        summary = run_one(config, place(name, k))
      except train.NonFinite as e:
        _say(f'{name}, seed {k}: {e}')
        summary = {'error': str(e)}
      jax.clear_caches()
      _record(found, name, k, place(name, k), summary)
      _write(workdir, found)
  else:
    for number, summary in _side_by_side(plan, todo, every, place, start, jobs):
      name, k, _ = plan[number]
      _record(found, name, k, place(name, k), summary)
      _write(workdir, found)
  if not todo:  # nothing was written on the way
    _write(workdir, found)
  return found


def _side_by_side(plan, todo, every, place, start, jobs: int):
  """Yields (number, summary) of the runs in `todo` as they end.

  A run waits for those of the variants whose directory its values name.
  """
  if jax.default_backend() != 'cpu':
    raise ConfigError(f'jobs={jobs}: only on a CPU; every run takes all of '
                      f'the {jax.device_count()} {jax.default_backend()} '
                      'devices. Take jobs=1.')
  cores = sorted(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity') else []
  shares = queue.SimpleQueue()
  for i in range(jobs):
    shares.put(cores[i::jobs] or None)
  ended, processes = {}, {}
  starting, stopped = threading.Lock(), threading.Event()

  def needed(name):
    text = json.dumps(every[name], default=str)
    return [ended[n] for n in todo if '{workdir}/%s/' % folder(  # noqa: UP031
        plan[n][0]) in text and n in ended]

  def one(number, before):
    for other in before:
      other.result()  # raises its error
    name, k, _ = plan[number]
    directory = place(name, k)
    directory.mkdir(parents=True, exist_ok=True)
    share, began = shares.get(), time.time()
    try:
      with (directory / 'log.txt').open('a') as log:
        with starting:
          if stopped.is_set():
            raise concurrent.futures.CancelledError
          _say(f'--- run {number + 1} of {len(plan)}: {name}, seed {k} '
               f'({directory}/log.txt)')
          processes[number] = start(number, share, log)
        code = processes[number].wait()
    finally:
      shares.put(share)
    log = (directory / 'log.txt').read_text().strip().splitlines() or ['']
    if code == DIVERGED:
      summary = {'error': log[-1]}
    elif code == 3:
      raise train.Preempted(f'{name}, seed {k}: {log[-1]}')
    elif code:
      raise RuntimeError(f'{name}, seed {k}, ended with exit code {code}: '
                         f'{log[-1]}')
    else:
      summary = json.loads((directory / 'summary.json').read_text())
    scores = '  '.join(f'{s} {v["top1"]:.2%}' for s, v in summary.get(
        'results', {}).items())
    _say(f'    run {number + 1} ended after '
         f'{writers.duration(time.time() - began)}: '
         f'{scores or summary["error"]}')
    return number, summary

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for number in todo:
      ended[number] = pool.submit(one, number, needed(plan[number][0]))
    try:
      for future in concurrent.futures.as_completed(ended.values()):
        yield future.result()
    except BaseException:
      with starting:
        stopped.set()
      for future in ended.values():
        future.cancel()
      for process in processes.values():
        process.terminate()  # they save, and go on next time
      raise


def _record(found, name: str, k: int, directory, summary):
  runs = found[name]['runs']
  runs.append({'seed': k, 'workdir': str(directory), **{
      x: summary[x] for x in ('results', 'error', 'seconds', 'parameters',
                              'gmacs', 'img_per_sec') if summary.get(x)}})
  runs.sort(key=lambda r: r['seed'])
  _summarise(found[name])


def finished(directory, config) -> dict[str, Any] | None:
  """The summary of a run that is done; ConfigError if of another recipe."""
  path = epath.Path(directory) / 'summary.json'
  if not path.exists():
    return None
  train.check_workdir(directory, to_json(config))
  return json.loads(path.read_text())


def _summarise(variant: dict[str, Any]):
  """Adds mean and spread of the test scores over the runs."""
  scores = {}
  for one in variant['runs']:
    for name, values in one.get('results', {}).items():
      scores.setdefault(f'{name} top-1', []).append(values['top1'])
  variant['mean'] = {k: float(np.mean(v)) for k, v in scores.items()}
  variant['std'] = {k: float(np.std(v, ddof=1)) for k, v in scores.items()
                    if len(v) > 1}
  for key in ('parameters', 'gmacs', 'img_per_sec'):
    values = [r[key] for r in variant['runs'] if key in r]
    if values:
      variant[key] = float(np.mean(values))


def table(found: Mapping[str, Any]) -> str:
  """Markdown: a row a variant; mean and spread in per cent, runs, costs.

  GFLOPs are multiply-adds of a forward pass, as papers count them; img/s are
  of training.
  """
  columns = list(dict.fromkeys(
      c for v in found.values() for c in v.get('mean', ())))
  costs = {'parameters': ('parameters', ',.0f'), 'GFLOPs': ('gmacs', '.3g'),
           'img/s': ('img_per_sec', ',.0f')}
  costs = {k: v for k, v in costs.items()
           if any(v[0] in x for x in found.values())}
  rows = [['variant', *columns, 'runs', *costs]]
  for name, variant in found.items():
    cells = []
    for column in columns:
      mean = variant.get('mean', {}).get(column)
      std = variant.get('std', {}).get(column)
      cells.append('' if mean is None else f'{100 * mean:.2f}' + (
          '' if std is None else f' ± {100 * std:.2f}'))
    failed = sum('error' in r for r in variant['runs'])
    cells.append(str(len(variant['runs']) - failed)
                 + f' ({failed} diverged)' * bool(failed))
    cells += [format(variant[key], form) if key in variant else ''
              for key, form in costs.values()]
    rows.append([name, *cells])
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  line = lambda row: '| ' + ' | '.join(
      c.ljust(w) if i == 0 else c.rjust(w)
      for i, (c, w) in enumerate(zip(row, widths))) + ' |'
  rule = '|' + '|'.join('-' * (w + 2) if i == 0 else '-' * (w + 1) + ':'
                        for i, w in enumerate(widths)) + '|'
  return '\n'.join([line(rows[0]), rule, *map(line, rows[1:])])


def _write(workdir, found):
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'ablation.json').write_text(json.dumps(found, indent=2) + '\n')
    (workdir / 'ablation.md').write_text(table(found) + '\n')


def _say(text: str):
  if jax.process_index() == 0:
    print(text, flush=True)


def _main(argv) -> None:
  from ml_collections import config_flags
  values = flags.FLAGS
  try:
    if len(argv) > 1:
      raise ValueError(f'unexpected argument {argv[1]!r}; all settings are '
                       'flags: --config=configs/X.py --workdir=DIR --seeds=3')
    if values.config is None or values.workdir is None:
      raise ValueError('--config=configs/X.py and --workdir=DIR are required')
    values.config.run  # noqa: B018  a recipe that failed to load shows here
    logging.set_verbosity(logging.WARNING)
    recipe = config_flags.get_config_filename(values['config'])
    common = config_flags.get_override_values(values['config'])
    if values.run is not None:
      name, k, config = make_plan(
          recipe, values.workdir, values.seeds, common)[values.run]
      train.train_and_evaluate(
          config, epath.Path(values.workdir) / folder(name) / f'seed{k}')
      return
    from vit_jax import distributed
    distributed.initialize()
    with distributed.session(values.workdir, orderly=(train.Preempted,)):
      found = run(recipe, values.workdir, seeds=values.seeds,
                  only=values.variants, common=common, jobs=values.jobs,
                  start=_start)
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
      [sys.executable, '-m', 'vit_jax.ablate', *sys.argv[1:],
       f'--run={number}'], stdout=log, stderr=subprocess.STDOUT)
  if cores:  # before it has any threads
    os.sched_setaffinity(process.pid, cores)
  return process


def main() -> None:
  """The command line of `python -m vit_jax.ablate`."""
  from ml_collections import config_flags
  config_flags.DEFINE_config_file(
      'config', None, 'Recipe with a sweep: configs/X.py, with an argument '
      'after a colon.')
  flags.DEFINE_string('workdir', None, 'Directory of all runs and the table.')
  flags.DEFINE_integer('seeds', 3, 'Runs of each variant.')
  flags.DEFINE_integer('jobs', 1, 'Runs at a time, on a CPU.', lower_bound=1)
  flags.DEFINE_integer('run', None, 'Do this run of the plan alone, without '
                       'a table (what --jobs starts).')
  flags.DEFINE_list('variants', None, 'Run only these (names, by commas).')
  app.run(_main)


if __name__ == '__main__':
  main()
