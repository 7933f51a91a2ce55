"""Keeps two runs from writing into one workdir.

`WORKDIR/lock.json` names the host and process that use a workdir and counts its
heartbeats. It works on local disks, network file systems and object stores,
and needs no clocks that agree: a run on another host is gone when its count
stands still.
"""

from collections.abc import Callable, Mapping
import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any
import uuid

from vit_jax.files import (
  as_path,
  create,
  is_remote,
  read_regular,
  write_atomically,
)
from vit_jax.parallel import processes

FILE = 'lock.json'
_LARGEST = 2**20  # bytes; the record of a run has less than a kilobyte


class WorkdirInUse(ValueError):
  """Another run uses the workdir, or has taken it over."""


class WorkdirLock:
  """A context manager that holds a workdir for this run.

  Process 0 of a job holds the lock; in the other processes it does nothing.

  Args:
    workdir: local or remote directory; it is created.
    say: prints a line.
    period: seconds from heartbeat to heartbeat.
    stale_after: seconds without a heartbeat after which a run on another host
      is taken to be gone.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    say: Callable[[str], None] = print,
    *,
    period: float = 10.0,
    stale_after: float = 60.0,
  ):
    self._workdir, self._say = workdir, say
    self._path = as_path(workdir) / FILE
    self._local = not is_remote(workdir)
    self._period, self._stale_after = period, stale_after
    self._record: dict[str, Any] = {
      'host': socket.gethostname(),
      'machine': _machine(),
      'pid': os.getpid(),
      'pid_start': _start_of(os.getpid()),
      'started': datetime.datetime.now().astimezone().isoformat('T', 'seconds'),
      'token': uuid.uuid4().hex,
      'heartbeat': 0,
    }
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> 'WorkdirLock':
    """Takes the lock.

    Raises:
      WorkdirInUse: another run has it.
    """
    if processes.is_first():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      while not self._create():
        self._remove_stale()
      self._thread = threading.Thread(target=self._beat, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    if self._thread is None:
      return
    self._stop.set()
    self._thread.join()
    self._thread = None
    if self._is_own(self._read()):
      with contextlib.suppress(OSError):
        self._path.unlink()

  def check(self) -> None:
    """Raises WorkdirInUse if another run has taken the workdir over.

    That happens to a process that was halted for longer than `stale_after`.
    """
    if self._thread is None:
      return
    other = self._read()
    if other is not None and not self._is_own(other):
      raise WorkdirInUse(
        f'{self._workdir} was taken over by {_describe(other)}, because this '
        f'process gave no sign of life for {self._stale_after:g} s. This '
        'process stops, and has written nothing since'
      )

  def _is_own(self, record: Mapping[str, Any] | None) -> bool:
    return record is not None and record.get('token') == self._record['token']

  def _read(self) -> dict[str, Any] | None:
    """The record of the lock; None without one, {} for a damaged one."""
    try:
      record = json.loads(read_regular(self._path, _LARGEST))
    except FileNotFoundError:
      return None
    except (OSError, ValueError, RecursionError):
      return {}
    return record if isinstance(record, dict) else {}

  def _create(self) -> bool:
    """Writes the lock; False if there is one."""
    return create(self._path, json.dumps(self._record))

  def _remove_stale(self) -> None:
    """Removes the lock of a run that is gone, or raises WorkdirInUse."""
    other = self._read()
    if other is None:
      return
    if self._local and self._path.is_dir():
      raise WorkdirInUse(
        f'{self._path} is a directory, where the file with the lock of a run '
        'would be: remove or rename it'
      )
    if other.get('machine') == self._record['machine']:
      start = _start_of(other.get('pid', 0))
      if start and start == other.get('pid_start'):
        self._refuse(other)
    elif not self._stands_still(other):
      self._refuse(other)
    self._say(
      f'{self._workdir} was in use by {_describe(other)}, which is gone: this '
      'run takes it over'
    )
    if not self._local:
      self._path.unlink(missing_ok=True)
      return
    # Another run may have replaced the lock meanwhile. It gets its lock back.
    taken = self._path.with_name(f'.{FILE}.{self._record["token"]}')
    with contextlib.suppress(FileNotFoundError):
      self._path.rename(taken)
      if other and taken.read_text() != json.dumps(other):
        taken.rename(self._path)
      else:
        taken.unlink()

  def _refuse(self, other: Mapping[str, Any]) -> None:
    raise WorkdirInUse(
      f'{self._workdir} is in use by {_describe(other)}. Two runs in one '
      'workdir would overwrite each other: wait until that one has ended, stop '
      'it, or take another workdir'
    )

  def _stands_still(self, other: Mapping[str, Any]) -> bool:
    """Whether a run on another host gives no sign of life."""
    self._say(
      f'{self._workdir} is locked by {_describe(other)}; waiting up to '
      f'{self._stale_after:g} s for a sign of life'
    )
    deadline = time.monotonic() + self._stale_after
    while time.monotonic() < deadline:
      time.sleep(min(1.0, self._period, self._stale_after / 5))
      if self._read() != other:
        return self._read() is None
    return True

  def _beat(self) -> None:
    while not self._stop.wait(self._period):
      if self._is_own(self._read() or self._record):
        self._record['heartbeat'] += 1
        # A full disk or a network that fails ends no run; the next save will
        # say so.
        with contextlib.suppress(OSError):
          write_atomically(self._path, json.dumps(self._record))


def _describe(record: Mapping[str, Any]) -> str:
  if not record:
    return 'a run whose lock is damaged'
  return (
    f'process {record.get("pid")} on {record.get("host")}, started '
    f'{record.get("started")}'
  )


def _machine() -> str:
  """Names what process ids belong to: a boot of a machine, and a container."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{socket.gethostname()} {boot} {os.readlink("/proc/self/ns/pid")}'
  return socket.gethostname()


def _start_of(pid: int) -> str:
  """When a process of this machine started, in its own unit; '' if it is gone.

  It tells a process from a later one with the same number.
  """
  try:
    stat = pathlib.Path(f'/proc/{int(pid)}/stat').read_text()
    state, *rest = stat.rpartition(')')[2].split()
    return '' if state == 'Z' else rest[18]
  except (OSError, ValueError, TypeError, IndexError, OverflowError):
    pass
  if pathlib.Path('/proc/self/stat').exists():
    return ''
  try:  # a system without /proc
    os.kill(pid, 0)
    return 'running'
  except (OSError, TypeError, OverflowError):
    return ''
