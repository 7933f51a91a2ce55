"""Paths of buckets that cannot be used, without a server."""

import http.server
import importlib.util
import threading

import pytest

from vit_jax import buckets, files
from vit_jax.cli import parser


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch, tmp_path):
  """No test sets variables of the process, or writes into this directory."""
  for name in (
    buckets.EMULATOR,
    'CLOUD_STORAGE_EMULATOR_ENDPOINT',
    'TENSORSTORE_GCS_HTTP_URL',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING',
  ):
    monkeypatch.setenv(name, '')
  monkeypatch.chdir(tmp_path)
  buckets.connect.cache_clear()
  yield
  buckets.connect.cache_clear()
  assert not list(tmp_path.glob('gs*'))


@pytest.fixture
def installed(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)


@pytest.fixture
def answer(installed, monkeypatch):
  """Sets the status that the service answers with."""
  status = [200]

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(status[0])
      self.end_headers()

    def log_message(self, *args):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(
    target=server.serve_forever, args=(0.01,), daemon=True
  ).start()
  monkeypatch.setattr(
    buckets, '_SERVICE', f'http://127.0.0.1:{server.server_port}'
  )
  yield lambda value: status.__setitem__(0, value)
  server.shutdown()
  server.server_close()


def test_a_missing_package_is_named(monkeypatch, capsys):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *args: None if name == 'gcsfs' else find_spec(name, *args),
  )
  with pytest.raises(
    buckets.BucketError, match=r"pip install 'vit_jax\[gcs\]'"
  ):
    files.as_path('gs://bucket/x')
  assert parser.main(['pack', '.', 'gs://bucket/x']) == 1
  assert 'gs://bucket needs the package gcsfs' in capsys.readouterr().err


@pytest.mark.parametrize(
  'status, token, reason',
  [
    (404, 'token', 'there is no bucket gs://bucket'),
    (403, 'token', 'lack the permission to list objects'),
    (401, None, 'needs credentials, and there are none. Log in with'),
  ],
)
def test_what_the_service_refuses(answer, monkeypatch, status, token, reason):
  answer(status)
  monkeypatch.setattr(buckets, '_access_token', lambda bucket: token)
  with pytest.raises(buckets.BucketError, match=reason):
    files.as_path('gs://bucket/x')


def test_a_server_that_does_not_answer(installed, monkeypatch):
  monkeypatch.setenv(buckets.EMULATOR, '127.0.0.1:1')
  with pytest.raises(buckets.BucketError, match='does not answer'):
    files.as_path('gs://bucket/x')


@pytest.mark.parametrize('path', ['s3://bucket/x', 'https://host/x', 'gs://'])
def test_other_schemes_are_refused(installed, path):
  with pytest.raises(ValueError, match='gs://BUCKET'):
    files.as_path(path)
