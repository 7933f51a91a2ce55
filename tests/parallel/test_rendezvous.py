"""The processes of a job meet, whoever else calls at the port."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import json
import socket
import struct
import threading
import time

import pytest

from vit_jax.parallel import connections
from vit_jax.parallel.connections import Connection, Door, connect
from vit_jax.parallel.rendezvous import meet

TOKEN = b'of this job'


@pytest.fixture
def port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Job:
  """`meet` of some processes, each in a thread."""

  def __init__(self, port, count, timeout=5.0):
    self._port, self._count, self._timeout = port, count, timeout
    self._pool, self._futures = ThreadPoolExecutor(8), {}

  def start(self, *processes, count=None, token=TOKEN):
    for i in processes:
      self._futures[i] = self._pool.submit(
        meet,
        f'127.0.0.1:{self._port}',
        count or self._count,
        i,
        self._timeout,
        token,
      )
    return self

  def results(self):
    """{process: Peers or the exception}."""
    results = {}
    for i, future in self._futures.items():
      try:
        results[i] = future.result(30)
      except Exception as e:
        results[i] = e
      else:
        results[i].tunnel.close()
    return results


def call(port) -> socket.socket:
  """A connection of a stranger."""
  deadline = time.monotonic() + 10
  while True:
    try:
      return socket.create_connection(('127.0.0.1', port), timeout=10)
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.02)


def drip(sock):
  with contextlib.suppress(OSError):
    while True:
      sock.sendall(b'{')
      time.sleep(0.05)


def endless(sock):
  with contextlib.suppress(OSError):
    while True:
      sock.sendall(b'x' * 65536)


def in_background(work):
  return lambda sock: threading.Thread(
    target=work, args=(sock,), daemon=True
  ).start()


def reset(sock):
  with contextlib.suppress(OSError):  # the test may have closed it already
    sock.setsockopt(
      socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)
    )
  sock.close()


def says(data):
  def send(sock):
    with contextlib.suppress(OSError):  # the other side may have gone already
      sock.sendall(data)

  return send


STRANGERS = {
  'idle': lambda sock: None,
  'slow': in_background(drip),
  'endless line': in_background(endless),
  'leaves': lambda sock: sock.close(),
  'resets': reset,
  'HTTP': says(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'),
  'TLS': says(b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + b'\0' * 500),
  'no object': says(b'3\n'),
  'nested': says(b'[' * 4000 + b'\n'),
  'large number': says(b'{"number": ' + b'9' * 4000 + b'}\n'),
  'no text': says(b'{"number": [null]}\n{"proof": {}}\n'),
  'no proof': says(b'{"number": "1"}\n{"kind": "join", "process": 1}\n'),
  'old': says(b'1 2 host\n'),
}


@pytest.mark.parametrize('stranger', STRANGERS)
def test_strangers_do_not_disturb_the_start(port, stranger):
  job = Job(port, 2).start(0)
  begin = time.monotonic()
  socks = [call(port) for _ in range(3)]
  for sock in socks:
    STRANGERS[stranger](sock)
  results = job.start(1).results()
  assert time.monotonic() - begin < 4
  assert results[0].hosts == results[1].hosts == [socket.gethostname()] * 2
  for sock in socks:
    sock.close()


def test_many_idle_connections_are_bounded(port):
  """The oldest ones are closed, and a process of the job still comes in."""
  job = Job(port, 2).start(0)
  socks = [call(port) for _ in range(connections._STRANGERS + 40)]
  for sock in socks[:20]:
    assert sock.recv(1) == b''
  results = job.start(1).results()
  assert results[0].hosts == results[1].hosts
  for sock in socks:
    sock.close()


@pytest.mark.parametrize('stranger', ['idle', 'slow', 'endless line'])
def test_a_stranger_is_disconnected(port, stranger, monkeypatch):
  """In bounded time, and after a bounded number of bytes."""
  monkeypatch.setattr(connections, 'HANDSHAKE', 0.3)
  door = Door(port, TOKEN, lambda connection, hello: None)
  with call(port) as sock:
    begin = time.monotonic()
    STRANGERS[stranger](sock)
    with contextlib.suppress(ConnectionResetError):
      assert sock.recv(1) == b''
    assert time.monotonic() - begin < 3
  door.close()
  assert door.turned_away == 1 and door.last_reason


@pytest.mark.parametrize(
  'hello, says',
  [
    ({'process': 7}, 'process 7 .* has no number among 1..1'),
    ({'process': -1}, 'process -1 .* has no number'),
    ({'process': 0}, 'process 0 .* has no number'),
    ({'process': True}, 'process True .* has no number'),
    ({'process': '1'}, 'process 1 .* has no number'),
    ({'process': 1, 'count': 3}, 'process 1 .* says it is one of 3'),
    ({}, 'process None .* has no number'),
  ],
)
def test_numbers_of_processes_are_checked(port, hello, says):
  job = Job(port, 2).start(0)
  call(port).close()
  connection = connect(
    '127.0.0.1',
    port,
    TOKEN,
    {'kind': 'join', 'count': 2, 'host': 'h', **hello},
    time.monotonic() + 5,
  )
  reply = connection.receive(time.monotonic() + 5)
  (error,) = job.results().values()
  assert isinstance(error, ValueError)
  assert reply['problem'] == str(error)
  with pytest.raises(ValueError, match=says):
    raise error


def test_two_processes_of_one_number(port):
  job = Job(port, 3).start(0, 1)
  twin = Job(port, 3)
  time.sleep(0.3)
  twin.start(1)
  errors = [*job.results().values(), *twin.results().values()]
  assert len(errors) == 3
  for error in errors:
    assert 'two processes say they are process 1' in str(error)


def test_processes_that_disagree_about_their_count(port):
  results = Job(port, 2).start(0).start(1, count=3).results()
  for error in results.values():
    assert isinstance(error, ValueError)
    assert 'process 1' in str(error) and 'says it is one of 3' in str(error)


def test_a_process_of_another_job_is_turned_away(port):
  results = Job(port, 2, timeout=1).start(0).start(1, token=b'x').results()
  assert all(isinstance(e, TimeoutError) for e in results.values())
  assert 'process 1 of 2 did not start within 1 s' in str(results[0])
  for error in results.values():
    assert 'all processes need the same VIT_JAX_JOB_TOKEN' in str(error)


def test_a_missing_process_is_named_by_all(port):
  results = Job(port, 3, timeout=1).start(0, 1).results()
  for error in results.values():
    assert isinstance(error, TimeoutError)
    assert 'process 2 of 3 did not start within 1 s' in str(error)
  host = socket.gethostname()
  assert f'those that did: 0 ({host}), 1 ({host})' in str(results[0])


def test_a_missing_coordinator_is_named(port):
  (error,) = Job(port, 2, timeout=0.5).start(1).results().values()
  assert isinstance(error, TimeoutError)
  assert f'process 0 did not answer at 127.0.0.1:{port}' in str(error)


def test_a_process_that_ends_during_the_start_is_named(port):
  job = Job(port, 4, timeout=3).start(0, 1)
  hello = {'kind': 'join', 'process': 2, 'count': 4, 'host': 'there'}
  call(port).close()
  time.sleep(0.3)
  connect('127.0.0.1', port, TOKEN, hello, time.monotonic() + 5).close()
  results = job.results()
  says = 'process 2 (there) ended while the job started'
  assert isinstance(results[0], ConnectionError) and str(results[0]) == says
  # On a busy machine process 1 may come when process 0 has ended already.
  if not isinstance(results[1], TimeoutError):
    assert isinstance(results[1], ConnectionError) and str(results[1]) == says


def test_a_coordinator_that_ends_during_the_start_is_named(port):
  door = Door(port, TOKEN, lambda connection, hello: connection.close())
  (error,) = Job(port, 2).start(1).results().values()
  door.close()
  assert isinstance(error, ConnectionError)
  assert f'process 0 at 127.0.0.1:{port} ended while' in str(error)


def test_a_port_in_use_is_named(port):
  with socket.create_server(('', port)):
    (error,) = Job(port, 2).start(0).results().values()
  assert isinstance(error, OSError)
  assert f'process 0 cannot listen on port {port}' in str(error)


def lies(sock):
  """Answers like process 0, without its token."""
  with contextlib.suppress(OSError, ValueError):
    connection = Connection(sock)
    connection.receive(time.monotonic() + 5)
    connection.send({'number': 'x', 'proof': 'x'})


COORDINATORS = {
  **{k: v for k, v in STRANGERS.items() if k not in ('slow', 'resets')},
  'slow': drip,
  'resets': reset,
  'endless line': endless,
  'lies': lies,
  'a number for a proof': says(b'{"proof": 5}\n'),
  'HTTP answer': says(b'HTTP/1.1 400 Bad Request\r\n\r\n'),
  'hosts at once': says(json.dumps({'hosts': ['a', 'b']}).encode() + b'\n'),
}


@pytest.mark.parametrize('coordinator', COORDINATORS)
def test_what_is_no_coordinator_cannot_hold_a_process(port, coordinator):
  socks = []

  def serve(server):
    with contextlib.suppress(OSError):
      while True:
        sock, _ = server.accept()
        socks.append(sock)
        threading.Thread(
          target=COORDINATORS[coordinator], args=(sock,), daemon=True
        ).start()

  with socket.create_server(('127.0.0.1', port)) as server:
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    begin = time.monotonic()
    (error,) = Job(port, 2, timeout=0.2).start(1).results().values()
    assert time.monotonic() - begin < 4
    server.shutdown(socket.SHUT_RDWR)
  for sock in socks:
    sock.close()
  assert isinstance(error, TimeoutError)
  assert 'process 0 did not answer' in str(error)
