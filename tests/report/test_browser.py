"""The page in a real browser: charts, explorer, phone, dark, print."""

import asyncio

import pytest

from tests.helpers import tiny_config
from vit_jax.cli.parser import main
from vit_jax.train import train_and_evaluate

browser = pytest.importorskip('tests.report.browser', exc_type=ImportError)
pytest.importorskip('vl_convert')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not browser.CHROMIUM, reason='Chromium is not installed'),
]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp('browser')
  config = tiny_config(
    run={'steps': 2},
    model={'area_sizes': ((2, 2),), 'num_heads': 2, 'patch_size': 4},
  )
  train_and_evaluate(config, folder / 'run')
  path = folder / 'report.html'
  assert main(['report', str(folder / 'run'), '-o', str(path)]) == 0
  assert path.stat().st_size < 5e6
  return path


def in_tab(folder, work):
  """Runs a coroutine function of a tab, which must report no error."""

  async def run():
    async with browser.open_tab(folder) as tab:
      await work(tab)
      assert not tab.errors
      assert all(x.startswith(('file:', 'data:')) for x in tab.requests)

  asyncio.run(run())


@pytest.mark.parametrize(
  'width, dark', [(1200, False), (390, True)], ids=['desktop', 'phone']
)
def test_page(page, tmp_path, width, dark):
  async def work(tab):
    await tab.open(page.as_uri(), width, dark=dark)
    assert await tab.value('document.documentElement.scrollWidth') <= width
    color = await tab.value('getComputedStyle(document.body).backgroundColor')
    assert (color == 'rgb(255, 255, 255)') != dark
    # Charts have the ink of the page.
    ink = await tab.value(
      "getComputedStyle(document.querySelector('.chart svg text')).fill"
    )
    assert ink == await tab.value('getComputedStyle(document.body).color')
    assert await tab.value("document.querySelectorAll('svg path').length") > 9
    await tab.screenshot(tmp_path / 'page.png')
    pdf = await tab.call('Page.printToPDF')
    assert len(pdf['data']) > 10_000

  in_tab(tmp_path, work)


def test_explorer(page, tmp_path):
  """Hovering, the keyboard and the controls choose what is shown."""

  async def work(tab):
    await tab.open(page.as_uri())
    canvas = "document.querySelector('.explorer canvas')"
    state = "document.querySelector('.explorer').dataset.query"
    words = "document.querySelector('.explorer output').textContent"
    pixels = f'{canvas}.toDataURL()'
    assert await tab.value(state) == 'token'
    await tab.value(f"{canvas}.scrollIntoView({{block: 'center'}})")
    x, y, side = await tab.value(
      f'(r => [r.x, r.y, r.width])({canvas}.getBoundingClientRect())'
    )
    seen = {await tab.value(pixels)}
    rows = 4  # patches of 4 pixels in images of 16
    await tab.move(x + side * 2.5 / rows, y + side * 1.5 / rows)
    await tab.until(f"{state} === '1,2'")
    assert 'row 2, column 3 attends to' in await tab.value(words)
    seen.add(await tab.value(pixels))
    await tab.value(f'{canvas}.focus()')
    await tab.press('ArrowDown')
    await tab.until(f"{state} === '2,2'")
    seen.add(await tab.value(pixels))
    assert len(seen) == 3
    # The first layer has area attention, whose areas are named.
    assert 'Areas of' not in await tab.value(words)
    await tab.press('[')
    assert 'Areas of the mean of the heads' in await tab.value(words)
    await tab.press('Home')
    await tab.until(f"{state} === 'token'")
    chosen = "document.querySelector('.explorer [name=head]')"
    await tab.value(
      f"{chosen}.value = 'rollout'; {chosen}.dispatchEvent(new Event('change'))"
    )
    assert 'Areas of' not in await tab.value(words)
    await tab.screenshot(tmp_path / 'explorer.png', (x, 0, side, side))

  in_tab(tmp_path, work)
