"""The page of a run that was really trained."""

import json
import re

import pytest

from tests.helpers import tiny_config
from vit_jax.report.build import examine_run
from vit_jax.report.page import Page
from vit_jax.report.runs import read_runs
from vit_jax.train import train_and_evaluate

pytestmark = pytest.mark.slow  # it compiles six programs
LIBRARY = 'window.vegaEmbed = async () => {};'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A model with area attention in its first block."""
  path = tmp_path_factory.mktemp('report') / '<b>run'
  config = tiny_config(
    run={'steps': 2}, model={'area_sizes': ((2, 2),), 'num_heads': 2}
  )
  train_and_evaluate(config, path)
  return path


@pytest.fixture(scope='module')
def page(workdir):
  said = []
  runs = read_runs([workdir])
  examined = examine_run(runs[0], 4, 10**6, said.append, {'most': 40})
  assert not said and 'missing' not in examined
  return Page(runs, {runs[0].name: examined})


def test_the_page_holds_everything(page):
  html = page.render(LIBRARY)
  assert len(html) < 200_000
  # A name of a run is text, also in the data of the scripts.
  assert '<b>run' not in html and '&lt;b&gt;run' in html
  assert not re.search(r'(src|href)="(?!data:|#)', html)
  data = json.loads(re.search(r'"report-data">(.*?)</script>', html, re.S)[1])
  titles = [x['title'] for x in data['curves']]
  assert 'Loss of training' in titles and 'Accuracy on test' in titles
  for name in ('results', 'recipe', 'curves', 'confusion', 'examples'):
    assert f'<section id="{name}">' in html
  for name in ('calibration', 'attention', 'environment'):
    assert f'<section id="{name}">' in html


def test_examined_images(page):
  (examined,) = page.examined.values()
  assert examined['images'] == 40 and examined['of'] == 64
  assert sum(x['images'] for x in examined['confusion']) == 40
  wrong = sum(
    x['images'] for x in examined['confusion'] if x['label'] != x['predicted']
  )
  assert examined['summary']['top1'] == pytest.approx(1 - wrong / 40)
  assert wrong >= sum(x['images'] for x in examined['pairs']) > 0
  best, worst = (examined[key] for key in ('best', 'worst'))
  assert best[0]['right'] and best[0]['name'] != worst[0]['name']
  pictures = examined['attention']['pictures']
  assert len(pictures) == 4 and len({x['name'] for x in pictures}) == 4


def test_areas_of_the_page(page):
  (examined,) = page.examined.values()
  (stored,) = examined['attention']['explorer']['areas']
  assert stored['items'][0] == [0]  # the class token is an area by itself
  assert max(map(len, stored['items'])) == 4


def test_images_that_are_not_there(workdir):
  said = []
  (run,) = read_runs([workdir])
  examined = examine_run(run, 4, 10**6, said.append, {'data': '/not/there'})
  assert '/not/there' in examined['missing'] and len(said) == 1
  html = Page([run], {run.name: examined}).render(LIBRARY)
  assert html.count('The test images were not examined') == 1
