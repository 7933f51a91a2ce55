"""Measures candidates that take turns, each in a process of its own.

The speed of a shared machine changes from one second to the next. So every
candidate is prepared in its own process, and then each one makes one run after
the other (A B C A B C ...). A ratio compares two runs of the same round, and
the median over the rounds is printed with its quartiles. CPU seconds are those
of all threads; another program changes them less than the wall time.

A candidate is a function of a module: `prepare(settings)` returns a function
without arguments, of which every call is one run and blocks until it is done. A
pair of this function and a dictionary says more of it, such as the memory of
its program. Its values are functions, which are called after the first run and
return a number. A name that begins with _ is no column of a table. If the
function has a method `begin`, it is called before each run and not measured.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine

_PAUSE = 0.2  # seconds between runs, in which the threads of a run fall asleep
_SHORTEST = 0.5  # seconds; shorter runs are repeated within their turn
# Seconds of runs that are not measured, at the beginning of a turn of shorter
# runs. The runs of the first 60 ms after a pause take half as long again.
_WARM_UP = 0.2
DEVICES = 'cpu', 'gpu'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What is measured.

  Attributes:
    name: of its row.
    prepare: 'module:function'.
    settings: the argument of the function, plain JSON values.
    amount: how much a run does, such as a number of images.
    env: environment variables of its process.
  """

  name: str
  prepare: str
  settings: Mapping[str, Any]
  amount: float = 1.0
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
  """Runs of a candidate, in the order of the rounds.

  Attributes:
    candidate: what was measured.
    error: why it could not be measured, or ''.
    first: wall seconds from the start of its process to the end of its first
      run.
    wall, cpu: seconds of each run.
    megabytes: largest resident memory of its process.
    facts: what else `prepare` has said, by name.
  """

  candidate: Candidate
  error: str = ''
  first: float = 0.0
  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)
  megabytes: float = 0.0
  facts: dict[str, float] = dataclasses.field(default_factory=dict)


class _Process:
  """A candidate's process, which makes a run for every line that it gets."""

  def __init__(self, candidate: Candidate):
    self.result = Measured(candidate)
    start = time.perf_counter()
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'benchmarks.turns',
        candidate.prepare,
        json.dumps(candidate.settings),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parent.parent,
      env={**os.environ, **candidate.env},
    )
    ready = self._answer()
    self.result.first = time.perf_counter() - start
    facts = self._answer() if ready else None
    if facts is not None:
      self.result.facts = facts['facts']

  def _answer(self) -> dict[str, Any] | None:
    """What the process says; None if it has failed."""
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith('{"'):
        answer = json.loads(line)
        self.result.error = answer.get('error', '')
        return None if self.result.error else answer
    self.result.error = f'exit code {self._process.wait()}'
    return None

  def run(self) -> None:
    if self.result.error:
      return
    assert self._process.stdin is not None
    self._process.stdin.write('run\n')
    self._process.stdin.flush()
    answer = self._answer()
    if answer is not None:
      self.result.wall.append(answer['wall'])
      self.result.cpu.append(answer['cpu'])
      self.result.megabytes = answer['megabytes']

  def end(self) -> None:
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()


def measure(
  candidates: Sequence[Candidate],
  rounds: int,
  say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> list[Measured]:
  """Prepares all candidates one by one, and lets them take turns.

  Args:
    candidates: what is measured.
    rounds: number of runs of each.
    say: prints how far it is.
  """
  processes = []
  for candidate in candidates:
    process = _Process(candidate)
    processes.append(process)
    say(
      f'{candidate.name}: '
      + (process.result.error or f'ready after {process.result.first:.1f} s')
    )
  try:
    for _ in range(rounds):
      for process in processes:
        time.sleep(_PAUSE)
        process.run()
  finally:
    for process in processes:
      process.end()
  return [process.result for process in processes]


def table(measured: Sequence[Measured], baseline: str, unit: str) -> str:
  """A Markdown table with the ratios of all candidates to one of them.

  Args:
    measured: the results of `measure`.
    baseline: name of the candidate whose speed is 1.
    unit: of the amount, such as 'img'.
  """
  base = next((m for m in measured if m.candidate.name == baseline), None)
  facts = dict.fromkeys(
    name for m in measured for name in m.facts if not name.startswith('_')
  )
  columns = [
    *('', f'{unit}/s', f'{unit}/CPU s', 'speed (quartiles)', 'by CPU', 'MB'),
    *('first', *facts),
  ]
  rows = ['| ' + ' | '.join(columns) + ' |', '|---' * len(columns) + '|']
  for m in measured:
    if m.error or not m.wall:
      empty = ' |' * (len(columns) - 2)
      rows.append(f'| {m.candidate.name} | {m.error} |{empty}')
      continue
    amount = m.candidate.amount
    ratios = ['', '']
    if base is not None and base.wall:
      ratios = [
        _spread(_ratios(base, m, 'wall')),
        f'{speed(base, m, "cpu"):.2f}',
      ]
    rows.append(
      f'| {m.candidate.name} | {amount / statistics.median(m.wall):.3g} '
      f'| {amount / statistics.median(m.cpu):.3g} | {ratios[0]} | {ratios[1]} '
      f'| {m.megabytes:.0f} | {m.first:.1f} |'
      + ''.join(
        f' {m.facts[name]:.0f} |' if name in m.facts else ' |' for name in facts
      )
    )
  return '\n'.join(rows)


def seconds_table(measured: Sequence[Measured]) -> str:
  """A Markdown table of medians in seconds, without ratios."""
  rows = ['| | wall s | CPU s |', '|---|---|---|']
  for m in measured:
    if m.error or not m.wall:
      rows.append(f'| {m.candidate.name} | {m.error} | |')
    else:
      wall, cpu = statistics.median(m.wall), statistics.median(m.cpu)
      rows.append(f'| {m.candidate.name} | {wall:.2f} | {cpu:.2f} |')
  return '\n'.join(rows)


def best_rate(measured: Sequence[Measured]) -> float:
  """The largest amount per second of some candidates; 0 if none has run."""
  rates = [
    m.candidate.amount / statistics.median(m.wall) for m in measured if m.wall
  ]
  return max(rates, default=0.0)


def on_device(device: str) -> dict[str, str]:
  """Environment variables of a candidate in JAX, for one of DEVICES.

  On a GPU it takes no more memory than it needs, because candidates share it.
  """
  if device == 'cpu':
    return {'JAX_PLATFORMS': 'cpu'}
  return {
    'JAX_PLATFORMS': 'cuda,cpu',
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  }


def with_cache(folder: str) -> dict[str, str]:
  """The environment with JAX's cache of compiled programs in a folder."""
  return {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': folder,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def speed(base: Measured, other: Measured, clock: str) -> float:
  """The median over the rounds of how much faster `other` is than `base`.

  Args:
    base, other: two candidates that have taken turns.
    clock: 'wall' or 'cpu'.
  """
  return statistics.median(_ratios(base, other, clock))


def _ratios(base: Measured, other: Measured, clock: str) -> list[float]:
  scale = other.candidate.amount / base.candidate.amount
  pairs = zip(getattr(base, clock), getattr(other, clock), strict=True)
  return [scale * a / b for a, b in pairs]


def _spread(ratios: list[float]) -> str:
  if len(ratios) < 2:
    return f'{ratios[0]:.2f}'
  low, middle, high = statistics.quantiles(ratios, n=4)
  return f'{middle:.2f} ({low:.2f}-{high:.2f})'


def write_json(
  path: str | os.PathLike, groups: Mapping[str, Sequence[Measured]]
) -> None:
  """Writes all runs, with the machine and the versions.

  Args:
    path: of the file.
    groups: the results of `measure` by the title of their table.
  """
  result = {
    'environment': machine.environment(),
    'groups': {
      title: [dataclasses.asdict(m) for m in measured]
      for title, measured in groups.items()
    },
  }
  pathlib.Path(path).write_text(json.dumps(result, indent=1) + '\n')


def read_json(
  path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, list[Measured]]]:
  """What `write_json` has written: the environment, and the groups."""
  result = json.loads(pathlib.Path(path).read_text())
  groups = {
    title: [
      Measured(**{**m, 'candidate': Candidate(**m['candidate'])})
      for m in measured
    ]
    for title, measured in result['groups'].items()
  }
  return result['environment'], groups


def _cpu_seconds() -> float:
  """CPU seconds of this process and of all that it has started."""
  times = os.times()
  return (
    time.process_time()
    + times.children_user
    + times.children_system
    + sum(map(_seconds_of, _workers(os.getpid())))
  )


def _workers(process: int) -> list[int]:
  """The living processes that a process has started, and theirs (Linux)."""
  started = []
  for file in pathlib.Path(f'/proc/{process}/task').glob('*/children'):
    for child in map(int, file.read_text().split()):
      started += [child, *_workers(child)]
  return started


def _seconds_of(process: int) -> float:
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text()
  except OSError:  # it has ended meanwhile
    return 0.0
  ticks = stat.rpartition(')')[2].split()[11:15]  # with those it waited for
  return sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')


def _serve(prepare: str, settings: dict[str, Any]) -> None:
  """The candidate's side of `_Process`."""
  module, function = prepare.split(':')
  try:
    run = getattr(importlib.import_module(module), function)(settings)
    run, facts = run if isinstance(run, tuple) else (run, {})
    run()
  except Exception as e:
    text = (str(e).strip().splitlines() or [''])[0][:200]
    print(json.dumps({'error': f'{type(e).__name__}: {text}'}), flush=True)
    return
  print(json.dumps({'ready': True}), flush=True)
  facts = {name: value() for name, value in facts.items()}
  print(json.dumps({'facts': facts}), flush=True)
  one = 0.0  # wall seconds of a run, in the last turn
  begin = getattr(run, 'begin', lambda: None)
  for _ in sys.stdin:
    begin()
    if one < _SHORTEST:
      _repeat(run, _WARM_UP)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    repeats = _repeat(run, _SHORTEST)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    one = wall / repeats
    answer = {'wall': one, 'cpu': cpu / repeats, 'megabytes': _megabytes()}
    print(json.dumps(answer), flush=True)


def _megabytes() -> float:
  """The largest resident memory of this process until now.

  On Linux, `getrusage` would count the memory that the parent had when it
  started this process.
  """
  status = pathlib.Path('/proc/self/status')
  for line in status.read_text().splitlines() if status.exists() else ():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _repeat(run: Callable[[], object], seconds: float) -> int:
  """Makes runs until some time is over, and says how many."""
  start, count = time.perf_counter(), 0
  while not count or time.perf_counter() - start < seconds:
    run()
    count += 1
  return count


if __name__ == '__main__':
  _serve(sys.argv[1], json.loads(sys.argv[2]))
