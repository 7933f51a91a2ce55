"""Runs that are injured again and again, held against an undisturbed one."""

from collections import Counter
import dataclasses
import json
import pathlib
import random
import shutil
import time
from typing import Any

from tests.faults import damage, recipe
from tests.faults.process import FIRED, Ended, Fault, Process, digest

_SCENARIO_FAULTS = 5  # at most, before a run may come to its end


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
      f'CPU seconds of a process          {mean(self.seconds):.1f}',
      'memory of a process, MB           '
      f'{mean(early):.0f} in the first half, {mean(late):.0f} in the second',
      f'problems                          {len(self.problems)}',
      *(f'  {problem}' for problem in self.problems),
    ]


class Soak:
  """Scenarios by a seed.

  Args:
    folder: for workdirs and logs; it must be empty.
    seed: of the faults.
  """

  def __init__(self, folder: pathlib.Path, seed: int):
    self._folder, self._seed = folder, seed
    self.report = Report()
    reference = folder / 'undisturbed'
    reference.mkdir()
    ended = self._run(reference, None)
    if ended.code:
      raise RuntimeError((reference / 'log.txt').read_text()[-3000:])
    self._expected = digest(reference / 'run', reference)
    self._metrics = metrics(reference / 'run')
    self._examples, _, _ = trained(reference)

  def scenario(self, number: int) -> None:
    """Injures one workdir several times, and lets it come to its end."""
    rng = random.Random(f'{self._seed} {number}')
    folder = self._folder / f'{number}'
    folder.mkdir()
    before = len(self.report.problems)
    for _ in range(rng.randint(2, _SCENARIO_FAULTS)):
      fault = Fault.draw(rng)
      ended = self._run(folder, fault)
      self._judge(folder, ended, fault)
      if rng.random() < 0.6:
        kind = damage.draw(rng, folder / 'run')
        self.report.faults.update([kind] if kind else [])
    self._judge(folder, self._run(folder, None), None)
    self._compare(folder)
    self.report.scenarios += 1
    if len(self.report.problems) == before:
      shutil.rmtree(folder)

  def _run(self, folder: pathlib.Path, fault: Fault | None) -> Ended:
    fired = folder / FIRED
    fired.unlink(missing_ok=True)
    ended = Process(folder / 'run', folder, fault).wait()
    self.report.runs += 1
    self.report.seconds.append(ended.seconds)
    if ended.code == 0:
      self.report.megabytes.append(ended.megabytes)
    if fault and fired.exists():  # a run can end before its fault is due
      self.report.faults[str(fault)] += 1
    return ended

  def _judge(
    self, folder: pathlib.Path, ended: Ended, fault: Fault | None
  ) -> None:
    """Whether a process ended as it may."""
    allowed = {0}
    if fault and fault.signal == 'SIGKILL':
      allowed |= {-9}
    if fault and fault.signal in ('SIGTERM', 'SIGINT'):
      allowed |= {3}
      if fault.phase in ('start', 'restore'):  # before it can save anything
        allowed |= {-15, 130}
    if ended.hung or ended.code not in allowed:
      log = (folder / 'log.txt').read_text().strip().splitlines()
      self.report.problems.append(
        f'{folder.name}: {fault or "undisturbed"}: '
        f'{"hung" if ended.hung else f"exit code {ended.code}"}: '
        f'{log[-1] if log else ""}'
      )

  def _compare(self, folder: pathlib.Path) -> None:
    """Holds a finished workdir against the undisturbed one."""
    name, problems = folder.name, self.report.problems
    try:
      state = digest(folder / 'run', folder)
    except (OSError, ValueError) as e:
      problems.append(f'{name}: no state: {e}')
      return
    different = [k for k, v in self._expected.items() if state.get(k) != v]
    if different or state.keys() != self._expected.keys():
      problems.append(f'{name}: other arrays: {", ".join(different[:3])}')
    if metrics(folder / 'run') != self._metrics:
      problems.append(f'{name}: other metrics')
    examples, resumes, repeated = trained(folder)
    self.report.resumes += resumes
    self.report.repeated += repeated
    for step, expected in self._examples.items():
      for indices in examples.get(step, [[]]):
        wrong = Counter(expected[0])
        wrong.subtract(indices)
        self.report.wrong_examples += sum(map(abs, wrong.values()))


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl, without what depends on time."""
  timed = ('seconds', 'eta_seconds', 'goodput', 'steps_repeated')
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
  folder: pathlib.Path,
) -> tuple[dict[int, list[list[int]]], int, int]:
  """The examples by step, each time they were sent; resumes; steps repeated."""
  examples: dict[int, list[list[int]]] = {}
  resumes = 0
  path = folder / 'trained.jsonl'
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
  deadline = time.monotonic() + 60 * minutes
  runs, number = Soak(folder, seed), 0
  while time.monotonic() < deadline and number != scenarios:
    runs.scenario(number)
    number += 1
  return runs.report
