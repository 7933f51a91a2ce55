"""Drives headless Chromium by its DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import pathlib
import shutil
import subprocess
import time

import aiohttp

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


class Tab:
  """One page, with the errors that it has reported.

  Attributes:
    errors: messages of the console at level error, and exceptions.
    requests: addresses that the page asked for.
  """

  def __init__(self, socket):
    self._socket, self._numbers = socket, itertools.count(1)
    self._waiting, self._task = {}, asyncio.ensure_future(self._read())
    self.errors, self.requests = [], []

  async def _read(self):
    async for message in self._socket:
      data = json.loads(message.data)
      if 'id' in data:
        self._waiting.pop(data['id']).set_result(data)
        continue
      values = data['params']
      if data['method'] == 'Runtime.exceptionThrown':
        self.errors.append(str(values['exceptionDetails']))
      elif data['method'] == 'Runtime.consoleAPICalled':
        if values['type'] in ('error', 'warning', 'assert'):
          self.errors.append(str(values['args']))
      elif data['method'] == 'Log.entryAdded':
        if values['entry']['level'] == 'error':
          self.errors.append(str(values['entry']))
      elif data['method'] == 'Network.requestWillBeSent':
        self.requests.append(values['request']['url'])

  async def call(self, method, **params):
    """Calls a method of the protocol and returns its result."""
    number = next(self._numbers)
    self._waiting[number] = asyncio.get_running_loop().create_future()
    await self._socket.send_json(
      {'id': number, 'method': method, 'params': params}
    )
    answer = await asyncio.wait_for(self._waiting[number], 120)
    assert 'error' not in answer, (method, answer)
    return answer['result']

  async def open(self, url, width=1200, height=900, dark=False):
    """Opens a page and waits until its charts and explorers are drawn."""
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      await self.call(f'{domain}.enable')
    await self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = 'dark' if dark else 'light'
    await self.call(
      'Emulation.setEmulatedMedia',
      features=[{'name': 'prefers-color-scheme', 'value': scheme}],
    )
    await self.call('Page.navigate', url=str(url))
    await self.until(
      "document.readyState === 'complete'"
      " && document.querySelectorAll('.chart').length > 0"
      " && [...document.querySelectorAll('.chart')]"
      ".every(x => x.querySelector('svg'))"
      " && [...document.querySelectorAll('.explorer')]"
      '.every(x => x.dataset.ready)'
    )

  async def until(self, expression, seconds=90):
    """Waits until a JavaScript expression is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if await self.value(expression):
        return
      await asyncio.sleep(0.1)
    raise AssertionError(f'never true: {expression}; {self.errors}')

  async def value(self, expression):
    """The value of a JavaScript expression."""
    result = await self.call(
      'Runtime.evaluate', expression=expression, returnByValue=True
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  async def move(self, x, y):
    """Moves the mouse to a position in CSS pixels."""
    await self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

  async def press(self, key):
    """Presses a key of the keyboard."""
    for kind in ('keyDown', 'keyUp'):
      await self.call('Input.dispatchKeyEvent', type=kind, key=key)

  async def screenshot(self, path, clip=None):
    """Writes a PNG of the whole page, or of (x, y, width, height)."""
    size = (await self.call('Page.getLayoutMetrics'))['cssContentSize']
    area = clip or (0, 0, size['width'], size['height'])
    names = ('x', 'y', 'width', 'height')
    result = await self.call(
      'Page.captureScreenshot',
      captureBeyondViewport=True,
      clip={**dict(zip(names, area, strict=True)), 'scale': 1},
    )
    pathlib.Path(path).write_bytes(base64.b64decode(result['data']))


@contextlib.asynccontextmanager
async def open_tab(folder):
  """A tab of a Chromium that keeps its files in a folder."""
  port_file = pathlib.Path(folder, 'DevToolsActivePort')
  process = subprocess.Popen(
    [
      CHROMIUM,
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--remote-debugging-port=0',
      f'--user-data-dir={folder}',
      'about:blank',
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    end = time.monotonic() + 60
    while not (port_file.exists() and '\n' in port_file.read_text()):
      assert time.monotonic() < end, 'Chromium has not started'
      await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
      async with session.get(f'http://127.0.0.1:{port}/json') as answer:
        pages = [x for x in await answer.json() if x['type'] == 'page']
      address = pages[0]['webSocketDebuggerUrl']
      async with session.ws_connect(address, max_msg_size=0) as socket:
        yield Tab(socket)
  finally:
    process.terminate()
    process.wait(30)
