"""Training processes, forked, in one of which a fault happens.

The harness imports everything once and forks the processes of every run, which
costs a fraction of starting Python again. Nothing of JAX runs before the fork.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import resource
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any

from absl import flags, logging
import jax
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
from vit_jax.training.writers import Writer

PHASES = ('start', 'step', 'log', 'save', 'evaluation', 'restore')
FULL_DISK = 'full disk'
SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGINT', 'SIGSTOP')
FIRED = 'fired'  # the file that a process leaves when its fault happens
LIMIT = 900.0  # seconds after which a run counts as hanging
_ROOM = 20_000  # bytes that a file may have on a full disk


@dataclasses.dataclass(frozen=True)
class Fault:
  """What happens to a process.

  Attributes:
    kind: the name of a signal that it gets, or FULL_DISK.
    phase: of PHASES; what the process has begun.
    number: the how manieth time that it begins it, from 1.
    delay: seconds after it has begun.
    process: its number in its job.
  """

  kind: str
  phase: str
  number: int
  delay: float
  process: int

  @classmethod
  def draw(cls, rng: random.Random, count: int) -> 'Fault':
    """A fault of a job of so many processes."""
    process = rng.randrange(count)
    if rng.random() < 0.1:
      return cls(FULL_DISK, 'save', rng.randint(1, 2), 0.0, process)
    phase = rng.choice(PHASES)
    # Small numbers leave steps for the faults that follow.
    most = {'step': 8, 'log': 8, 'save': 3, 'evaluation': 2}
    return cls(
      rng.choice(SIGNALS),
      phase,
      rng.randint(1, most.get(phase, 1)),
      rng.random() * (2.0 if phase == 'start' else 0.05),
      process,
    )

  def __str__(self) -> str:
    return f'{self.kind} at {self.phase}'


@dataclasses.dataclass
class Ended:
  """How a process ended.

  Attributes:
    code: exit code; negative for a signal.
    hung: it had to be killed.
    seconds: of CPU.
    megabytes: largest resident memory.
    log: what it printed.
  """

  code: int
  hung: bool
  seconds: float
  megabytes: float
  log: str = ''


class Job:
  """Forked training processes of one run.

  Args:
    workdir: of the run.
    folder: for the logs and the records of what was trained on.
    fault: what happens to one of them; None for nothing.
    count: number of processes.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    fault: Fault | None,
    count: int,
  ):
    self._logs = [
      [folder / f'log_{i}.txt', workdir / f'logs/process_{i}.txt']
      for i in range(count)
    ]
    self._printed = [
      [path.stat().st_size if path.exists() else 0 for path in logs]
      for logs in self._logs
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self._pids = []
    for i in range(count):
      pid = os.fork()
      if not pid:
        own = fault if fault and fault.process == i else None
        where = (f'127.0.0.1:{port}', count, i) if count > 1 else (None,) * 3
        _leave(
          lambda: _train(workdir, folder, own, *where),
          folder / f'log_{i}.txt',
        )
      self._pids.append(pid)

  def wait(self) -> list[Ended]:
    """Waits for their ends; a process that was halted goes on after a while."""
    deadline = time.monotonic() + LIMIT
    hung, ended = False, {}
    while len(ended) < len(self._pids):
      for i, process in enumerate(self._pids):
        if i in ended:
          continue
        pid, status, usage = os.wait4(process, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
          time.sleep(0.3)
          os.kill(pid, signal.SIGCONT)
        elif pid:
          ended[i] = Ended(
            os.waitstatus_to_exitcode(status),
            hung,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss / 1024,
            self._log(i),
          )
        elif time.monotonic() > deadline and not hung:
          hung = True
          for other in set(self._pids) - {self._pids[j] for j in ended}:
            os.kill(other, signal.SIGKILL)
      time.sleep(0.01)
    return [ended[i] for i in range(len(self._pids))]

  def _log(self, i: int) -> str:
    texts = []
    for path, size in zip(self._logs[i], self._printed[i], strict=True):
      if path.exists():
        texts.append(path.read_bytes()[size:].decode(errors='replace'))
    return '\n'.join(texts).strip()


def digest(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
  """{array: its bytes in short} of a workdir's newest step."""
  path = folder / 'digest.json'
  path.unlink(missing_ok=True)
  sys.stdout.flush()
  pid = os.fork()
  if not pid:
    _leave(lambda: _digest(workdir, path), folder / 'log_0.txt')
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
    job = processes.current_job()
    if job is not None:  # as Python's own exit does it
      job.watch.leave()
      jax.distributed.shutdown()
    os._exit(code)


def _train(
  workdir: pathlib.Path,
  folder: pathlib.Path,
  fault: Fault | None,
  coordinator: str | None,
  count: int | None,
  process: int | None,
) -> int:
  logging.set_verbosity(logging.WARNING)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  _record(folder / f'trained_{process or 0}.jsonl')
  if fault is not None:
    _arrange(fault, folder / FIRED)
  values = types.SimpleNamespace(
    config=recipe.__file__,
    workdir=str(workdir),
    coordinator=coordinator,
    num_processes=count,
    process_id=process,
    show_batch=None,
    more_epochs=None,
    dry_run=False,
    json=False,
  )
  return vit_main.run(values, {})


def _arrange(fault: Fault, fired: pathlib.Path) -> None:
  """Sends the signal when the phase has begun for the right time."""
  count = 0

  def send():
    fired.touch()
    if fault.kind == FULL_DISK:
      _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, hard))
    else:
      os.kill(os.getpid(), signal.Signals[fault.kind])

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
  elif fault.phase == 'log':
    before(Writer, 'write')
  else:
    before(Checkpoints, fault.phase)


def _record(path: pathlib.Path) -> None:
  """Writes which examples go to the device for which step."""
  restore, put = Checkpoints.restore, inputs.put_batch
  step = 0

  def recorded_restore(self, abstract):
    nonlocal step
    restored = restore(self, abstract)
    if restored:  # otherwise the first batch may have been sent already
      step = restored[2]
    resumed = restored[2] if restored else 0
    with path.open('a') as file:
      file.write(json.dumps({'resumed': resumed}) + '\n')
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
