"""Serves a report on this machine, and follows the training."""

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import threading
from typing import Protocol

HOST = '127.0.0.1'  # nobody else can reach it


class Report(Protocol):
  """What is served: `build.Report`."""

  def html(self, version: str = '') -> str: ...

  def version(self) -> str: ...


def make_server(report: Report, port: int = 0) -> ThreadingHTTPServer:
  """A server of a report, which is built again when the runs have changed.

  Args:
    report: the report.
    port: 0 takes one that is free.

  Raises:
    OSError: the port is in use.
  """
  lock = threading.Lock()
  built = {'version': '', 'html': ''}

  class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
      # A page of another site may know a name that leads to this address.
      host = (self.headers.get('Host') or '').rpartition(':')[0]
      if host not in (HOST, 'localhost'):
        self._send(HTTPStatus.FORBIDDEN, 'open the address that was printed')
        return
      try:
        if self.path == '/version':
          self._send(HTTPStatus.OK, report.version())
        elif self.path == '/':
          self._send(HTTPStatus.OK, self._page(), 'text/html')
        else:
          self._send(HTTPStatus.NOT_FOUND, f'there is no {self.path}')
      except (ValueError, OSError) as e:
        self._send(HTTPStatus.INTERNAL_SERVER_ERROR, str(e))

    def _page(self) -> str:
      with lock:  # two browsers wait for one page
        version = report.version()
        if version != built['version']:
          built.update(html=report.html(version), version=version)
        return built['html']

    def _send(self, status: HTTPStatus, text: str, kind: str = 'text/plain'):
      data = text.encode()
      self.send_response(status)
      self.send_header('Content-Type', f'{kind}; charset=utf-8')
      self.send_header('Content-Length', str(len(data)))
      self.send_header('Cache-Control', 'no-store')
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, format, *args):  # one line a request says nothing
      pass

  return ThreadingHTTPServer((HOST, port), Handler)
