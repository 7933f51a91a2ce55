"""Connects the processes of a job over TCP.

Process 0 listens on the coordinator's port. A connection begins with a
handshake: each side sends a random number and proves with an HMAC (RFC 2104) of
the other side's number that it knows the token of the job. Whoever does not
complete it within seconds, and with short lines, is disconnected, so port
scans, health checks and other jobs cannot disturb a job.

There are two kinds of connections. Every process keeps one for messages, JSON
objects of one line each, see `watchdog.Watch`. The others carry the traffic of
JAX's coordination service. That service listens on a Unix socket that only
process 0 can reach, and the other processes have a Unix socket each, because
JAX aborts a process, without naming another one, at the moment when its
connection to the service breaks. The Unix socket stays open in that case, and
the watchdog ends the process.
"""

from collections.abc import Callable
import contextlib
import hashlib
import hmac
import json
import math
import os
import secrets
import select
import socket
import tempfile
import threading
import time
from typing import Any

TOKEN = 'VIT_JAX_JOB_TOKEN'
# Variables in which a cluster names a job.
_JOB_NAMES = ('SLURM_JOB_ID', 'JOBSET_NAME', 'OMPI_MCA_ess_base_jobid')
HANDSHAKE = 10.0  # seconds that a handshake may take
# Connections that have not completed their handshake. The oldest one is closed
# when there are more.
_STRANGERS = 64
_LINE = 4096  # bytes of a line
_POLL = 1.0  # seconds after which a thread that waits looks at its deadline


class Refused(ConnectionError):
  """The other side does not know the token of this job."""


def job_token() -> bytes:
  """The token that all processes of a job share.

  It is the text of the environment variable VIT_JAX_JOB_TOKEN. Without it, the
  token is derived from the cluster's name of the job, which tells jobs apart
  but is no secret.
  """
  names = [os.environ[key] for key in _JOB_NAMES if os.environ.get(key)]
  text = os.environ.get(TOKEN) or ' '.join(['vit_jax', *names])
  return hashlib.sha256(text.encode()).digest()


class Connection:
  """Sends and receives JSON objects, one a line, over a socket."""

  def __init__(self, sock: socket.socket):
    sock.settimeout(_POLL)
    with contextlib.suppress(OSError):  # Unix sockets have no such option
      sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.socket = sock
    self._received = b''
    self._lock = threading.Lock()

  def send(self, message: dict[str, Any]) -> None:
    """Sends an object.

    Raises:
      OSError: the other side is gone, or has not read for seconds.
    """
    with self._lock:
      self.socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(
    self, deadline: float = math.inf, limit: int = _LINE
  ) -> dict[str, Any]:
    """The next object.

    Args:
      deadline: time by `time.monotonic` until which it waits.
      limit: bytes of a line.

    Raises:
      OSError: the other side is gone; TimeoutError after the deadline.
      ValueError: the line is too long, or no JSON object.
    """
    while b'\n' not in self._received:
      if len(self._received) > limit:
        raise ValueError(f'a line of more than {limit} bytes')
      if time.monotonic() > deadline:
        raise TimeoutError('no complete line in time')
      with contextlib.suppress(TimeoutError):
        self._received += self._more()
    line, _, self._received = self._received.partition(b'\n')
    try:
      message = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise ValueError(f'no JSON: {line[:40]!r}') from e
    if not isinstance(message, dict):
      raise ValueError(f'no JSON object: {line[:40]!r}')
    return message

  def _more(self) -> bytes:
    data = self.socket.recv(4096)
    if not data:
      raise ConnectionError('the connection was closed')
    return data

  def carry(self, local: socket.socket) -> bool:
    """Copies bytes from here to a local socket and back, until one ends.

    Returns:
      Whether the end came from the other side of this connection.
    """
    for sock in (self.socket, local):
      sock.settimeout(None)
    if self._received:  # came together with the last line
      local.sendall(self._received)
    threading.Thread(
      target=self._carry_back, args=(local,), daemon=True
    ).start()
    return _copy(self.socket, local)

  def _carry_back(self, local: socket.socket) -> None:
    _copy(local, self.socket)
    with contextlib.suppress(OSError):
      self.socket.shutdown(socket.SHUT_WR)

  def is_closed(self) -> bool:
    """Whether the other side has closed it; for one that sends nothing."""
    poll = select.poll()
    poll.register(self.socket, select.POLLIN)
    if not poll.poll(0):
      return False
    try:
      return not self.socket.recv(1, socket.MSG_PEEK)
    except OSError:
      return True

  def close(self) -> None:
    """Closes it, which also wakes a thread that waits for data."""
    with contextlib.suppress(OSError):
      self.socket.shutdown(socket.SHUT_RDWR)
    self.socket.close()


def _copy(source: socket.socket, target: socket.socket) -> bool:
  """Copies until an end; whether the source ended."""
  while True:
    try:
      data = source.recv(65536)
    except OSError:
      data = b''
    if not data:
      return True
    try:
      target.sendall(data)
    except OSError:
      with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RDWR)
      return False


def _proof(token: bytes, side: str, number: Any) -> str:
  text = f'{side} {number}'.encode()
  return hmac.new(token, text, hashlib.sha256).hexdigest()


def _check(answer: dict[str, Any], expected: str) -> None:
  proof = str(answer.get('proof')).encode()
  if not hmac.compare_digest(proof, expected.encode()):
    raise Refused('the token of the job is another one')


def connect(
  host: str, port: int, token: bytes, hello: dict[str, Any], deadline: float
) -> Connection:
  """Connects to process 0 and completes the handshake.

  Args:
    host: of process 0.
    port: of process 0.
    token: of the job.
    hello: sent at the end of the handshake.
    deadline: time by `time.monotonic`.

  Raises:
    OSError: nobody answers; Refused for a wrong token.
    ValueError: the answer is not that of process 0.
  """
  deadline = min(deadline, time.monotonic() + HANDSHAKE)
  left = max(0.1, deadline - time.monotonic())
  connection = Connection(socket.create_connection((host, port), timeout=left))
  try:
    number = secrets.token_hex(16)
    connection.send({'number': number})
    answer = connection.receive(deadline)
    _check(answer, _proof(token, 'first', number))
    proof = _proof(token, 'other', answer.get('number'))
    connection.send({**hello, 'proof': proof})
  except BaseException:
    connection.close()
    raise
  return connection


class Door:
  """The coordinator's port, in process 0.

  Args:
    port: number of the port, on all addresses of this host.
    token: of the job.
    welcome: gets each connection that has completed the handshake, with its
      hello, in a thread of its own.

  Attributes:
    turned_away: number of connections that did not complete the handshake.
    last_reason: why the last one did not.

  Raises:
    OSError: the port is in use.
  """

  def __init__(
    self,
    port: int,
    token: bytes,
    welcome: Callable[[Connection, dict[str, Any]], None],
  ):
    dual = socket.has_dualstack_ipv6()
    try:
      self._server = socket.create_server(
        ('', port),
        family=socket.AF_INET6 if dual else socket.AF_INET,
        dualstack_ipv6=dual,
        backlog=1024,
      )
    except OSError as e:
      raise OSError(
        e.errno,
        f'process 0 cannot listen on port {port} of {socket.gethostname()}: '
        f'{e.strerror}. Choose a free port for the coordinator',
      ) from e
    self._token, self._welcome = token, welcome
    self._lock = threading.Lock()
    self._strangers: dict[Connection, None] = {}  # oldest first
    self.turned_away, self.last_reason = 0, ''
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self) -> None:
    """Accepts no more connections; those that were accepted stay open."""
    with contextlib.suppress(OSError):
      self._server.shutdown(socket.SHUT_RDWR)
    self._server.close()

  def _accept(self) -> None:
    while True:
      try:
        sock, address = self._server.accept()
      except OSError:
        if self._server.fileno() < 0:
          return
        time.sleep(0.1)  # too many open files, or a peer that left at once
        continue
      connection = Connection(sock)
      with self._lock:
        self._strangers[connection] = None
        if len(self._strangers) > _STRANGERS:
          oldest = next(iter(self._strangers))
          del self._strangers[oldest]
          with contextlib.suppress(OSError):
            oldest.socket.shutdown(socket.SHUT_RDWR)
      threading.Thread(
        target=self._receive, args=(connection, address[0]), daemon=True
      ).start()

  def _receive(self, connection: Connection, host: str) -> None:
    deadline = time.monotonic() + HANDSHAKE
    try:
      number = secrets.token_hex(16)
      theirs = connection.receive(deadline).get('number')
      proof = _proof(self._token, 'first', theirs)
      connection.send({'number': number, 'proof': proof})
      hello = connection.receive(deadline)
      _check(hello, _proof(self._token, 'other', number))
    except (OSError, ValueError) as e:
      self.turned_away += 1
      self.last_reason = f'{host}: {e}'
      connection.close()
      return
    finally:
      with self._lock:
        self._strangers.pop(connection, None)
    self._welcome(connection, hello)


class Tunnel:
  """The Unix socket through which JAX reaches its coordination service.

  Attributes:
    address: for `jax.distributed.initialize`.
  """

  def __init__(self):
    folder = tempfile.mkdtemp(prefix='vit_jax_')
    if len(folder) > 80:  # a path of a Unix socket has at most 107 bytes
      os.rmdir(folder)
      folder = tempfile.mkdtemp(prefix='vit_jax_', dir='/tmp')
    self._folder, self._kept = folder, []
    self._path = os.path.join(folder, 'coordination')
    self.address = f'unix:{self._path}'

  def arrive(self, connection: Connection) -> None:
    """Of process 0: carries a connection to the service, which may start."""
    deadline = time.monotonic() + HANDSHAKE
    local = socket.socket(socket.AF_UNIX)
    try:
      while True:
        try:
          local.connect(self._path)
          break
        except OSError:
          if time.monotonic() > deadline:
            return
          time.sleep(0.05)
      connection.send({'ready': True})
      connection.carry(local)
    except OSError:
      pass  # the process is gone, which the watchdog sees
    finally:
      connection.close()
      local.close()

  def listen(self, connect_to_first: Callable[[float], Connection]) -> None:
    """Of the other processes: carries what JAX sends to process 0.

    Args:
      connect_to_first: makes a connection before a time by `time.monotonic`.
    """
    server = socket.socket(socket.AF_UNIX)
    server.bind(self._path)
    server.listen()

    def accept():
      while True:
        local, _ = server.accept()
        threading.Thread(target=depart, args=(local,), daemon=True).start()

    def depart(local):
      try:
        deadline = time.monotonic() + HANDSHAKE
        connection = connect_to_first(deadline)
        connection.receive(deadline)
        if connection.carry(local):
          self._kept.append(local)  # JAX would abort if its socket closed
        else:
          local.close()
      except (OSError, ValueError):
        local.close()  # JAX tries again

    threading.Thread(target=accept, daemon=True).start()

  def close(self) -> None:
    """Removes the socket's file."""
    for remove, path in ((os.unlink, self._path), (os.rmdir, self._folder)):
      with contextlib.suppress(OSError):
        remove(path)
