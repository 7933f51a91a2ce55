"""The server of a report."""

import threading
import urllib.error
import urllib.request

import pytest

from vit_jax.report.server import make_server


def test_the_server_follows_the_run():
  class Report:
    state, built = '1', 0

    def version(self):
      if self.state == 'bad':
        raise ValueError('no run')
      return self.state

    def html(self, version=''):
      self.built += 1
      return f'page {version}'

  report = Report()
  with make_server(report) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    assert host == '127.0.0.1'

    def get(path, **headers):
      address = f'http://{host}:{port}/{path}'
      request = urllib.request.Request(address, headers=headers)
      with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()

    assert [get(''), get('')] == ['page 1'] * 2 and report.built == 1
    report.state = '2'
    assert get('version') == '2' and get('') == 'page 2'
    for path, headers, code in (
      ('other', {}, 404),
      ('', {'Host': 'example.com'}, 403),
    ):
      with pytest.raises(urllib.error.HTTPError) as error:
        get(path, **headers)
      assert error.value.code == code
      error.value.close()
    report.state = 'bad'
    with pytest.raises(urllib.error.HTTPError) as error:
      get('')
    assert error.value.code == 500 and error.value.read() == b'no run'
    error.value.close()
    server.shutdown()
