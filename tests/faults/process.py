"""One training process, forked, in which a fault happens.

The harness imports everything once and forks a process for every run, which
costs a fraction of starting Python again. Nothing of JAX runs before the fork.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback
import types
from typing import Any

from absl import flags, logging
import numpy as np
import sklearn.datasets  # noqa: F401  # imported once, before the forks

from tests.faults import recipe
from tests.helpers import saved_state
from vit_jax import main as vit_main
from vit_jax import train  # noqa: F401  # imported once, before the forks
from vit_jax.evaluation.exact import Evaluator
from vit_jax.parallel import processes
from vit_jax.recipe import inputs
from vit_jax.training.checkpoint import Checkpoints

PHASES = ('start', 'step', 'save', 'evaluation', 'restore')
SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGINT', 'SIGSTOP')
FIRED = 'fired'  # the file that a process leaves when its fault happens
LIMIT = 900.0  # seconds after which a run counts as hanging


@dataclasses.dataclass(frozen=True)
class Fault:
  """A signal that a process gets.

  Attributes:
    signal: its name.
    phase: of PHASES; what the process has begun.
    number: the how manieth time that it begins it, from 1.
    delay: seconds after it has begun.
  """

  signal: str
  phase: str
  number: int
  delay: float

  @classmethod
  def draw(cls, rng: random.Random) -> 'Fault':
    phase = rng.choice(PHASES)
    return cls(
      rng.choice(SIGNALS),
      phase,
      rng.randint(1, {'step': 20, 'save': 6, 'evaluation': 4}.get(phase, 1)),
      rng.random() * (2.0 if phase == 'start' else 0.05),
    )

  def __str__(self) -> str:
    return f'{self.signal} at {self.phase}'


@dataclasses.dataclass
class Ended:
  """How a process ended.

  Attributes:
    code: exit code; negative for a signal.
    hung: it had to be killed.
    seconds: of CPU.
    megabytes: largest resident memory.
  """

  code: int
  hung: bool
  seconds: float
  megabytes: float


class Process:
  """A forked training process.

  Args:
    workdir: of the run.
    folder: for the log and the records of what was trained on.
    fault: what happens to it; None for nothing.
  """

  def __init__(
    self, workdir: pathlib.Path, folder: pathlib.Path, fault: Fault | None
  ):
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if not self.pid:
      _leave(lambda: _train(workdir, folder, fault), folder / 'log.txt')

  def wait(self) -> Ended:
    """Waits for its end; a process that was halted goes on after a while."""
    deadline = time.monotonic() + LIMIT
    hung = False
    while True:
      pid, status, usage = os.wait4(self.pid, os.WNOHANG | os.WUNTRACED)
      if pid and os.WIFSTOPPED(status):
        time.sleep(0.3)
        os.kill(self.pid, signal.SIGCONT)
      elif pid:
        return Ended(
          os.waitstatus_to_exitcode(status),
          hung,
          usage.ru_utime + usage.ru_stime,
          usage.ru_maxrss / 1024,
        )
      elif time.monotonic() > deadline and not hung:
        hung = True
        os.kill(self.pid, signal.SIGKILL)
      else:
        time.sleep(0.01)


def digest(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
  """{array: its bytes in short} of a workdir's newest step."""
  path = folder / 'digest.json'
  path.unlink(missing_ok=True)
  sys.stdout.flush()
  pid = os.fork()
  if not pid:
    _leave(lambda: _digest(workdir, path), folder / 'log.txt')
  os.waitpid(pid, 0)
  return json.loads(path.read_text())


def _digest(workdir: pathlib.Path, path: pathlib.Path) -> int:
  state = saved_state(workdir)
  path.write_text(
    json.dumps({k: _short(np.asarray(x)) for k, x in state.items()})
  )
  return 0


def _short(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


def _leave(work, log: pathlib.Path) -> None:
  """Runs `work` in a forked process and ends it with its exit code."""
  code = 1
  try:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = work()
  except KeyboardInterrupt:
    code = 130
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(
  workdir: pathlib.Path, folder: pathlib.Path, fault: Fault | None
) -> int:
  logging.set_verbosity(logging.WARNING)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  _record(folder / 'trained.jsonl')
  if fault is not None:
    _arrange(fault, folder / FIRED)
  values = types.SimpleNamespace(
    config=recipe.__file__,
    workdir=str(workdir),
    coordinator=None,
    num_processes=None,
    process_id=None,
  )
  return vit_main.run(values, {})


def _arrange(fault: Fault, fired: pathlib.Path) -> None:
  """Sends the signal when the phase has begun for the right time."""
  count = 0

  def send():
    fired.touch()
    os.kill(os.getpid(), signal.Signals[fault.signal])

  def begin():
    nonlocal count
    count += 1
    if count == fault.number:
      timer = threading.Timer(fault.delay, send)
      timer.daemon = True
      timer.start()

  def before(owner, name):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
      begin()
      return real(*args, **kwargs)

    setattr(owner, name, wrapped)

  if fault.phase == 'start':
    begin()
  elif fault.phase == 'step':
    before(processes, 'tick')
  elif fault.phase == 'evaluation':
    before(Evaluator, '__call__')
  else:
    before(Checkpoints, fault.phase)


def _record(path: pathlib.Path) -> None:
  """Writes which examples go to the device for which step."""
  restore, put = Checkpoints.restore, inputs.put_batch
  step = 0

  def recorded_restore(self, abstract):
    nonlocal step
    restored = restore(self, abstract)
    step = restored[2] if restored else 0
    with path.open('a') as file:
      file.write(json.dumps({'resumed': step}) + '\n')
    return restored

  def recorded_put(batch, mesh):
    nonlocal step
    if 'index' in batch:
      step += 1
      line = {'step': step, 'examples': np.asarray(batch['index']).tolist()}
      with path.open('a') as file:
        file.write(json.dumps(line) + '\n')
    return put(batch, mesh)

  Checkpoints.restore, inputs.put_batch = recorded_restore, recorded_put
