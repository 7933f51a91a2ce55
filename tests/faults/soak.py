"""Runs that are injured again and again, held against an undisturbed one."""

from collections import Counter
import dataclasses
import json
import pathlib
import random
import shutil
import sys
import time
from typing import Any

from tests.faults import damage, recipe
from tests.faults.process import (
  FIRED,
  FULL_DISK,
  Ended,
  Fault,
  Job,
  digest,
)

_SCENARIO_FAULTS = 7  # at most, before a run may come to its end
_TRIES = 3  # to run a job to its end on a busy machine
_EVERY_NTH_HAS_TWO = 4  # of the scenarios, two processes


@dataclasses.dataclass
class Report:
  """What a soak has counted.

  Attributes:
    runs: processes that were started.
    scenarios: workdirs that were trained to their end.
    faults: by kind.
    resumes: processes that went on from a step.
    repeated: steps that were made more than once.
    wrong_examples: examples that a step lacked or had in excess, against the
      undisturbed run.
    late: jobs of two processes that Gloo ended, because one of them was 30
      seconds behind the other on a busy machine.
    problems: what must not happen; one line each.
    seconds: CPU seconds by process.
    megabytes: peak memory by process that ran to its end.
  """

  runs: int = 0
  scenarios: int = 0
  faults: Counter = dataclasses.field(default_factory=Counter)
  resumes: int = 0
  repeated: int = 0
  wrong_examples: int = 0
  late: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)
  seconds: list[float] = dataclasses.field(default_factory=list)
  megabytes: list[float] = dataclasses.field(default_factory=list)

  def lines(self) -> list[str]:
    """The table that is printed."""
    half = max(1, len(self.megabytes) // 2)
    early, late = self.megabytes[:half], self.megabytes[half:]
    mean = lambda values: sum(values) / max(1, len(values))
    return [
      f'workdirs trained to their end     {self.scenarios}',
      f'processes                         {self.runs}',
      f'faults                            {sum(self.faults.values())}',
      *(f'  {kind:<32}{n}' for kind, n in sorted(self.faults.items())),
      f'resumes                           {self.resumes}',
      f'steps repeated                    {self.repeated}',
      f'examples lost or doubled          {self.wrong_examples}',
      f'jobs ended by a late process      {self.late}',
      f'CPU seconds of a process          {mean(self.seconds):.1f}',
      'memory of a process, MB           '
      f'{mean(early):.0f} in the first half, {mean(late):.0f} in the second',
      f'problems                          {len(self.problems)}',
      *(f'  {problem}' for problem in self.problems),
    ]


@dataclasses.dataclass
class _Undisturbed:
  """What a run ends with: arrays, metrics, and examples of each process."""

  arrays: dict[str, Any]
  metrics: list[dict[str, Any]]
  examples: list[dict[int, list[list[int]]]]


class Soak:
  """Scenarios by a seed, most of one process and some of two.

  Args:
    folder: for workdirs and logs; it must be empty.
    seed: of the faults.
  """

  def __init__(self, folder: pathlib.Path, seed: int):
    self._folder, self._seed = folder, seed
    self.report = Report()
    self._undisturbed: dict[int, _Undisturbed] = {}

  def _expected(self, count: int) -> _Undisturbed:
    """The undisturbed run of so many processes, made when it is needed."""
    if count not in self._undisturbed:
      folder = self._folder / f'undisturbed_{count}'
      folder.mkdir()
      ended = self._run(folder, None, count)
      if any(e.code for e in ended):
        raise RuntimeError('\n'.join(e.log[-3000:] for e in ended))
      self._undisturbed[count] = _Undisturbed(
        digest(folder / 'run', folder),
        metrics(folder / 'run'),
        [trained(folder, i)[0] for i in range(count)],
      )
    return self._undisturbed[count]

  def scenario(self, number: int) -> None:
    """Injures one workdir several times, and lets it come to its end."""
    rng = random.Random(f'{self._seed} {number}')
    count = 2 if number % _EVERY_NTH_HAS_TWO == _EVERY_NTH_HAS_TWO - 1 else 1
    self._expected(count)
    folder = self._folder / f'{number}'
    folder.mkdir()
    before = len(self.report.problems)
    for _ in range(rng.randint(3, _SCENARIO_FAULTS)):
      fault = Fault.draw(rng, count)
      self._judge(folder, self._run(folder, fault, count), fault)
      for _ in range(rng.choice((0, 1, 1, 2))):
        kind = damage.draw(rng, folder / 'run')
        self.report.faults.update([kind] if kind else [])
    self._finish(folder, count)
    self._compare(folder, count)
    self.report.scenarios += 1
    if len(self.report.problems) == before:
      shutil.rmtree(folder)

  def _finish(self, folder: pathlib.Path, count: int) -> None:
    """Runs a workdir to its end."""
    for _ in range(_TRIES):
      ended = self._run(folder, None, count)
      if not _gave_up(ended):
        break
      self.report.late += 1
    self._judge(folder, ended, None)

  def _run(
    self, folder: pathlib.Path, fault: Fault | None, count: int
  ) -> list[Ended]:
    fired = folder / FIRED
    fired.unlink(missing_ok=True)
    ended = Job(folder / 'run', folder, fault, count).wait()
    self.report.runs += count
    self.report.seconds += [e.seconds for e in ended]
    self.report.megabytes += [e.megabytes for e in ended if e.code == 0]
    if fault and fired.exists():  # a run can end before its fault is due
      self.report.faults[f'{fault}{", of two" * (count > 1)}'] += 1
    return ended

  def _judge(
    self, folder: pathlib.Path, ended: list[Ended], fault: Fault | None
  ) -> None:
    """Whether the processes of a job ended as they may."""
    codes = [e.code for e in ended]
    wrong = ''
    if any(e.hung for e in ended):
      wrong = 'hung'
    elif fault is None and set(codes) != {0}:
      wrong = f'exit codes {codes}'
    elif _gave_up(ended):
      self.report.late += 1
    elif set(codes) not in ({0}, {3} if _can_stop(fault) else {0}):
      # The process ends by its fault, and the others with exit code 1.
      for i, (code, e) in enumerate(zip(codes, ended, strict=True)):
        hit = fault is not None and i == fault.process
        if code not in (_own_codes(fault) if hit else {1}):
          wrong = f'exit codes {codes}'
        elif not hit and fault and f'process {fault.process} ' not in e.log:
          wrong = f'process {i} does not name process {fault.process}'
    if wrong:
      last = [(e.log.splitlines() or [''])[-1] for e in ended]
      self.report.problems.append(
        f'{folder.name}: {fault or "undisturbed"}: {wrong}: {last}'
      )

  def _compare(self, folder: pathlib.Path, count: int) -> None:
    """Holds a finished workdir against the undisturbed one."""
    name, problems = folder.name, self.report.problems
    expected = self._expected(count)
    try:
      state = digest(folder / 'run', folder)
    except (OSError, ValueError) as e:
      problems.append(f'{name}: no state: {e}')
      return
    different = [k for k, v in expected.arrays.items() if state.get(k) != v]
    if different or state.keys() != expected.arrays.keys():
      problems.append(f'{name}: other arrays: {", ".join(different[:3])}')
    if metrics(folder / 'run') != expected.metrics:
      problems.append(f'{name}: other metrics')
    for i in range(count):
      examples, resumes, repeated = trained(folder, i)
      if not i:
        self.report.resumes += resumes
        self.report.repeated += repeated
      for step, once in expected.examples[i].items():
        for indices in examples.get(step, [[]]):
          wrong = Counter(once[0])
          wrong.subtract(indices)
          self.report.wrong_examples += sum(map(abs, wrong.values()))


def _gave_up(ended: list[Ended]) -> bool:
  """Whether Gloo gave up because a process was 30 seconds late."""
  return {e.code for e in ended} == {1} and any(
    'Gloo context initialization failed' in e.log for e in ended
  )


def _can_stop(fault: Fault | None) -> bool:
  """Whether all processes may stop together after saving."""
  return fault is not None and fault.kind in ('SIGTERM', 'SIGINT')


def _own_codes(fault: Fault) -> set[int]:
  """The exit codes of a process that its fault ends at once."""
  if fault.kind == 'SIGKILL':
    return {-9}
  if fault.kind == FULL_DISK:
    return {1}
  if _can_stop(fault) and fault.phase in ('start', 'restore'):
    return {-15, 130, 1}  # before it can save anything
  return set()


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl, without what depends on time."""
  timed = ('seconds', 'eta_seconds', 'input_wait', 'goodput', 'steps_repeated')
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k not in timed and not k.startswith(('img_per_sec', 'time_'))
    }
    for line in lines
  ]


def trained(
  folder: pathlib.Path, process: int
) -> tuple[dict[int, list[list[int]]], int, int]:
  """The examples by step, each time they were sent; resumes; steps repeated."""
  examples: dict[int, list[list[int]]] = {}
  resumes = 0
  path = folder / f'trained_{process}.jsonl'
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      values = json.loads(line)
    except ValueError:  # the process was killed while it wrote the line
      continue
    if 'resumed' in values:
      resumes += values['resumed'] > 0
    elif values['step'] <= recipe.STEPS:
      examples.setdefault(values['step'], []).append(values['examples'])
  repeated = sum(len(times) - 1 for times in examples.values())
  return examples, resumes, repeated


def soak(
  folder: pathlib.Path, seed: int, minutes: float, scenarios: int | None
) -> Report:
  """Scenarios until the time is over, or until so many of them are made."""
  start = time.monotonic()
  deadline = start + 60 * minutes
  runs, number = Soak(folder, seed), 0
  while time.monotonic() < deadline and number != scenarios:
    runs.scenario(number)
    number += 1
    report = runs.report
    print(
      f'{(time.monotonic() - start) / 60:.1f} min: {number} workdirs, '
      f'{sum(report.faults.values())} faults, {len(report.problems)} problems',
      file=sys.stderr,
      flush=True,
    )
  return runs.report
