"""Joins the processes of a job, with barriers and broadcasts.

There is one process on every host of a TPU slice, or for every GPU.
`initialize` joins them, and from then on a job of which a process is lost ends
as a whole, see `watchdog.Watch`. Barriers and broadcasts use the key-value
store of JAX's coordination service, which process 0 hosts. With a single
process, all functions return at once.
"""

import atexit
import dataclasses
import json
import os
import signal
import threading
from typing import Any
import uuid

import jax

from vit_jax.files import as_path
from vit_jax.parallel.connections import Tunnel, job_token
from vit_jax.parallel.rendezvous import meet
from vit_jax.parallel.watchdog import Watch

# Clusters, by JAX's names, in which JAX detects the processes of a job.
CLUSTERS = ('slurm', 'ompi', 'gcetpu', 'gketpu')
_PREFIX = 'vit_jax'
# Seconds without a heartbeat after which JAX would abort without naming the
# process that is gone. The watchdog ends the job long before.
_JAX_HEARTBEAT = 24 * 3600


@dataclasses.dataclass
class _Job:
  """This process's view of a job of several processes."""

  process_id: int
  hosts: list[str]  # host name of every process
  watch: Watch
  calls: int = 0  # number of barriers and broadcasts, for unique names

  @property
  def client(self) -> Any:
    """The client of JAX's coordination service."""
    from jax._src import distributed

    return distributed.global_state.client

  def name(self, process_id: int) -> str:
    return f'process {process_id} ({self.hosts[process_id]})'

  def names(self, process_ids) -> str:
    return ', '.join(map(self.name, process_ids))

  def present(self, folder: str) -> set[int]:
    """The processes that have written FOLDER/I."""
    entries = self.client.key_value_dir_get(f'{_PREFIX}/{folder}')
    return {int(key.rsplit('/', 1)[1]) for key, _ in entries}

  def put(self, key: str, value: str) -> None:
    self.client.key_value_set(f'{_PREFIX}/{key}', value, allow_overwrite=True)


_job: _Job | None = None


def current_job() -> _Job | None:
  """The job that this process has joined; None for a single process."""
  return _job


def job_process() -> int:
  """The number of this process in its job; 0 for a single process."""
  return _job.process_id if _job is not None else 0


def detect(timeout: float = 300) -> tuple[str, int, int] | None:
  """Detects the job of a TPU slice, GKE, SLURM or MPI.

  Args:
    timeout: seconds to wait for the address of the coordinator.

  Returns:
    (coordinator's host:port, number of processes, number of this process); None
    on a plain machine, and for a job of one process.
  """
  from jax._src import clusters

  for cluster in clusters.ClusterEnv._cluster_types:
    if cluster.name in CLUSTERS and cluster.is_env_present():
      count = cluster.get_process_count()
      if count == 1:
        return None
      address = cluster.get_coordinator_address(
        timeout_secs=int(timeout),
        override_coordinator_port=os.environ.get('JAX_COORDINATOR_PORT'),
      )
      return address, count, cluster.get_process_id()
  return None


def _incomplete(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> str:
  """The message about settings of a job of which one or two are given."""
  given = {
    'coordinator=': coordinator,
    'num_processes=': num_processes,
    'process_id=': process_id,
  }
  words = ', '.join(f'{k}{v}' for k, v in given.items() if v is not None)
  missing = ' and '.join(f'{k}...' for k, v in given.items() if v is None)
  return f'{words}: give {missing} too, or none of them to have them detected'


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = 300,
  *,
  lost_after: float = 60,
  stuck_after: float = 1800,
) -> None:
  """Joins the processes of a job; call it before any other function of JAX.

  The three settings come from the arguments, else from JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, else from the cluster (TPU slice, GKE,
  SLURM, MPI). On a plain machine without them it does nothing. The processes
  prove to each other that they know the text of VIT_JAX_JOB_TOKEN, which must
  be the same in all of them.

  Args:
    coordinator: host:port of process 0.
    num_processes: number of processes of the job.
    process_id: number of this process, from 0.
    timeout: seconds to wait until all processes have started.
    lost_after: seconds without a heartbeat after which a process counts as
      gone.
    stuck_after: seconds without a `tick` of any process after which the job
      ends.

  Raises:
    ValueError: only some of the settings are given, or they disagree.
    TimeoutError: not all processes have started; the message names the missing
      ones.
    ConnectionError: a process ended while the job started.
    OSError: process 0 cannot listen on the coordinator's port.
  """
  global _job
  if coordinator is None:
    coordinator = os.environ.get('JAX_COORDINATOR_ADDRESS')
  if num_processes is None:
    num_processes = _int_of('JAX_NUM_PROCESSES')
  if process_id is None:
    process_id = _int_of('JAX_PROCESS_ID')
  detected = coordinator is num_processes is process_id is None
  if detected:
    settings = detect(timeout)
    if settings is None:
      return
    coordinator, num_processes, process_id = settings
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(_incomplete(coordinator, num_processes, process_id))
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'process_id={process_id} is not among 0..'
      f'{num_processes - 1} (num_processes={num_processes})'
    )
  if num_processes == 1:
    return
  peers = meet(coordinator, num_processes, process_id, timeout, job_token())
  others = peers.connections
  watch = Watch(process_id, peers.hosts, others, lost_after, stuck_after)
  watch.start()
  jax.config.update('jax_enable_preemption_service', False)  # see JointStop
  # JAX still detects the cluster, to choose the local devices: on SLURM it
  # gives each task one of them.
  jax.distributed.initialize(
    peers.tunnel.address,
    num_processes,
    process_id,
    cluster_detection_method=None if detected else 'deactivate',
    coordinator_bind_address=peers.tunnel.address,
    initialization_timeout=max(1, int(timeout)),
    heartbeat_timeout_seconds=_JAX_HEARTBEAT,
  )
  _prepare_end(watch, peers.tunnel)
  _job = _Job(process_id, peers.hosts, watch)


def _prepare_end(watch: Watch, tunnel: Tunnel) -> None:
  """Lets SIGTERM stop all processes after a step, and each end in order.

  Before the first step SIGTERM must not end this process, because that would
  end the others with an error.
  """
  # Python sets handlers in the main thread only.
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, lambda *_: watch.stop.tell())
  # Functions of atexit run in reverse order, so JAX leaves after this one.
  atexit.register(tunnel.close)
  atexit.register(watch.leave)


def _int_of(variable: str) -> int | None:
  """The number in an environment variable; None if it is unset or empty."""
  value = os.environ.get(variable)
  try:
    return int(value) if value else None
  except ValueError as e:
    raise ValueError(f'{variable}={value!r} is not a whole number') from e


def is_first() -> bool:
  """Whether this is process 0, which writes the files of the run."""
  return jax.process_index() == 0


def barrier(name: str, timeout: float = 600) -> None:
  """Waits until all processes have called it.

  Args:
    name: what is waited for, for the message.
    timeout: seconds to wait.

  Raises:
    TimeoutError: names the processes that have not called it in time.
  """
  if _job is None:
    return
  _job.calls += 1
  folder = f'barrier/{_job.calls}'
  _job.put(f'{folder}/{_job.process_id}', name)
  try:
    _job.client.wait_at_barrier(f'{_PREFIX}/{folder}', int(1000 * timeout))
  except jax.errors.JaxRuntimeError as e:
    missing = set(range(len(_job.hosts))) - _job.present(folder)
    if not missing:
      raise
    raise TimeoutError(
      f'{_job.names(sorted(missing))} did not reach {name!r} '
      f'within {timeout:g} s'
    ) from e


def broadcast_from_first(value: Any, timeout: float = 600) -> Any:
  """Returns the value of process 0 in every process.

  Args:
    value: plain JSON values; ignored in the other processes.
    timeout: seconds to wait for process 0.

  Raises:
    TimeoutError: process 0 has not called it in time.
  """
  if _job is None:
    return value
  _job.calls += 1
  key = f'broadcast/{_job.calls}'
  if _job.process_id == 0:
    _job.put(key, json.dumps(value))
    return value
  try:
    return json.loads(
      _job.client.blocking_key_value_get(
        f'{_PREFIX}/{key}', int(1000 * timeout)
      )
    )
  except jax.errors.JaxRuntimeError as e:
    raise TimeoutError(
      f'{_job.name(0)} sent nothing within {timeout:g} s'
    ) from e


def gather(value: Any, timeout: float = 600) -> list[Any]:
  """The values of all processes, in their order; plain JSON values.

  Raises:
    TimeoutError: names the processes that did not send theirs.
  """
  if _job is None:
    return [value]
  _job.calls += 1
  folder = f'gather/{_job.calls}'
  _job.put(f'{folder}/{_job.process_id}', json.dumps(value))
  barrier(f'the exchange {_job.calls}', timeout)
  values = [
    json.loads(
      _job.client.blocking_key_value_get(
        f'{_PREFIX}/{folder}/{i}', int(1000 * timeout)
      )
    )
    for i in range(len(_job.hosts))
  ]
  # Process 0 keeps all keys in its memory, so those of every save would add up.
  barrier('the end of an exchange', timeout)
  if _job.process_id == 0:
    _job.client.key_value_delete(f'{_PREFIX}/{folder}/')
  return values


def check_shared_workdir(workdir: str | os.PathLike) -> None:
  """Raises ValueError if a process does not see what process 0 writes there."""
  if _job is None:
    return
  folder = as_path(workdir)
  token = broadcast_from_first(f'.shared_{uuid.uuid4().hex}')
  if _job.process_id == 0:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / token).write_text(token)
  barrier(f'writing to {workdir}')
  if not (folder / token).exists():
    _job.put(f'unshared/{token}/{_job.process_id}', '')
  barrier(f'reading from {workdir}')
  blind = sorted(_job.present(f'unshared/{token}'))
  barrier(f'the check of {workdir}')
  if _job.process_id == 0:
    (folder / token).unlink()
  if blind:
    raise ValueError(
      f'workdir {str(workdir)!r} is not shared: {_job.names(blind)} cannot '
      f'see what {_job.name(0)} writes there. Use a directory that all '
      'processes share: a bucket (gs://...) or a network file system'
    )


def tick(step: int) -> None:
  """Reports the step that training has reached; see `initialize`."""
  if _job is not None:
    _job.watch.step = step
