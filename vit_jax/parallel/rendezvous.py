"""The start of a job: its processes meet on the coordinator's port.

`jax.distributed` alone would abort if a process is missing, without a readable
message, and accepts every connection.
"""

import dataclasses
import queue
import socket
import time
from typing import Any

from vit_jax.parallel.connections import (
  HANDSHAKE,
  TOKEN,
  Connection,
  Door,
  Refused,
  Tunnel,
  connect,
)

_RETRY = 0.3  # seconds from one attempt to connect to the next
_REPLY = 1 << 20  # bytes of the reply, which has the name of every host


@dataclasses.dataclass
class Peers:
  """The other processes of a job.

  Attributes:
    hosts: host name of every process, in their order.
    connections: process 0 has one to every other process, by its number; the
      others have one to process 0.
    tunnel: leads to JAX's coordination service.
  """

  hosts: list[str]
  connections: dict[int, Connection]
  tunnel: Tunnel


def meet(
  coordinator: str, count: int, process_id: int, timeout: float, token: bytes
) -> Peers:
  """Waits until all processes of a job have called it.

  Args:
    coordinator: host:port of process 0.
    count: number of processes.
    process_id: number of this process.
    timeout: seconds.
    token: what only the processes of this job know.

  Raises:
    TimeoutError: names the processes that are missing.
    ConnectionError: names a process that ended in the meantime.
    ValueError: the processes disagree about their numbers.
    OSError: the port is in use.
  """
  host, _, port = coordinator.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise ValueError(f'coordinator={coordinator!r} is not host:port')
  if process_id:
    return _join((host, int(port), token), count, process_id, timeout)
  return _gather(int(port), count, timeout, token)


def _gather(port: int, count: int, timeout: float, token: bytes) -> Peers:
  """`meet` of process 0."""
  tunnel = Tunnel()
  arrivals: queue.SimpleQueue = queue.SimpleQueue()

  def welcome(connection: Connection, hello: dict[str, Any]) -> None:
    if hello.get('kind') == 'carry':
      tunnel.arrive(connection)
    else:
      arrivals.put((connection, hello))

  deadline = time.monotonic() + timeout
  try:
    door = Door(port, token, welcome)
  except OSError:
    tunnel.close()
    raise
  hosts, connections = {0: socket.gethostname()}, {}
  error: Exception | None = None
  while len(hosts) < count and error is None:
    try:
      connection, hello = arrivals.get(timeout=0.2)
    except queue.Empty:
      error = _absence(hosts, connections, count, door, deadline, timeout)
      continue
    process, error = _examine(hello, hosts, count)
    if error is not None:
      _answer(connection, error, [])
      connection.close()
    else:
      hosts[process] = str(hello.get('host'))[:255]
      connections[process] = connection
  names = [hosts.get(i, '') for i in range(count)]
  for connection in connections.values():
    _answer(connection, error, names)
  if error is not None:
    for connection in connections.values():
      connection.close()
    door.close()
    tunnel.close()
    raise error
  return Peers(names, connections, tunnel)


def _absence(
  hosts: dict[int, str],
  connections: dict[int, Connection],
  count: int,
  door: Door,
  deadline: float,
  timeout: float,
) -> Exception | None:
  """The error of a process that has ended or that does not come, if any."""
  for process, connection in connections.items():
    if connection.is_closed():
      return ConnectionError(
        f'process {process} ({hosts[process]}) ended while the job started'
      )
  if time.monotonic() < deadline:
    return None
  missing = [str(i) for i in range(count) if i not in hosts]
  strangers = ''
  if door.turned_away:
    strangers = (
      f'. {door.turned_away} connections were turned away, the last one from '
      f'{door.last_reason}; all processes need the same {TOKEN}'
    )
  return TimeoutError(
    f'process {", ".join(missing)} of {count} did not start within '
    f'{timeout:g} s; those that did: '
    + ', '.join(f'{i} ({hosts[i]})' for i in sorted(hosts))
    + strangers
  )


def _examine(
  hello: dict[str, Any], hosts: dict[int, str], count: int
) -> tuple[int, Exception | None]:
  """The number of a process that has come, and why it cannot take part."""
  process, theirs = hello.get('process'), hello.get('count')
  name = f'process {process} ({str(hello.get("host"))[:255]})'
  if theirs != count:
    return 0, ValueError(
      f'{name} says it is one of {theirs}, process 0 ({hosts[0]}) expects '
      f'{count}'
    )
  if type(process) is not int or not 0 < process < count:
    return 0, ValueError(
      f'{name} has no number among 1..{count - 1}: the numbers of the '
      f'processes are 0..{count - 1}'
    )
  if process in hosts:
    return 0, ValueError(
      f'two processes say they are process {process}: {hosts[process]} and '
      f'{str(hello.get("host"))[:255]}'
    )
  return process, None


def _answer(
  connection: Connection, error: Exception | None, hosts: list[str]
) -> None:
  try:
    connection.send(
      {
        'hosts': hosts,
        'problem': '' if error is None else str(error),
        'kind': type(error).__name__,
      }
    )
  except OSError:
    pass  # a process that is gone is seen by the watchdog


def _join(
  first: tuple[str, int, bytes], count: int, process_id: int, timeout: float
) -> Peers:
  """`meet` of the other processes; `first` is host, port and token of 0."""
  start = time.monotonic()
  deadline, address = start + timeout, f'{first[0]}:{first[1]}'
  hello = {
    'kind': 'join',
    'process': process_id,
    'count': count,
    'host': socket.gethostname(),
  }
  hint = 'is it running, and is the port open?'
  while True:
    try:
      connection = connect(*first, hello, deadline)
      break
    except (OSError, ValueError) as e:
      if isinstance(e, Refused):
        hint = f'all processes need the same {TOKEN}'
      elif isinstance(e, ValueError):
        hint = 'another program answers there'
      if time.monotonic() > deadline:
        raise TimeoutError(
          f'process 0 did not answer at {address} within '
          f'{time.monotonic() - start:.0f} s: {hint} ({e})'
        ) from e
      time.sleep(_RETRY)
  try:
    reply = connection.receive(deadline + HANDSHAKE, _REPLY)
  except TimeoutError as e:
    raise TimeoutError(
      f'process 0 at {address} has stopped answering: no reply for '
      f'{time.monotonic() - start:.0f} s'
    ) from e
  except OSError as e:
    raise ConnectionError(
      f'process 0 at {address} ended while the job started'
    ) from e
  if reply.get('problem'):
    kinds = {'TimeoutError': TimeoutError, 'ConnectionError': ConnectionError}
    raise kinds.get(str(reply.get('kind')), ValueError)(reply['problem'])
  tunnel = Tunnel()
  carry = {'kind': 'carry', 'process': process_id}
  tunnel.listen(lambda deadline: connect(*first, carry, deadline))
  return Peers(list(map(str, reply['hosts'])), {0: connection}, tunnel)
