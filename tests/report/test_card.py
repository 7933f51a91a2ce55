"""Model cards, and what push says without a network."""

import pytest
import yaml

from tests.report.test_runs import line, write_run
from vit_jax.report import card, runs
from vit_jax.weights import WeightsError, hub


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('card')
  write_run(
    root / 'flowers',
    [line(20, loss=1.0)],
    {
      'step': 20,
      'parameters': 1234,
      'results': {'test': {'top1': 0.875, 'top5': 1.0}},
      'versions': {'jax': '0.10'},
    },
    data={'source': 'tfds:cifar10', 'dir': '/home/me/data'},
    optim={'lr': 0.3},
  )
  return runs.read_runs([root])[0]


def test_card(run):
  text = card.card(
    run,
    classes=['a: 1', 'b"'],
    size=(16, 16),
    repo='me/flowers',
    license_name='mit',
  )
  _, front, body = text.split('---\n', 2)
  values = yaml.safe_load(front)
  assert values['library_name'] == 'vit_jax' and values['license'] == 'mit'
  assert values['datasets'] == ['cifar10']
  (entry,) = values['model-index']
  (result,) = entry['results']
  assert result['metrics'] == [{'type': 'accuracy', 'value': 0.875}]
  assert entry['name'] == 'flowers' and '# flowers\n' in body
  assert '87.50' in body and '1,234 parameters' in body
  assert '| `optim.lr` | `0.3` |' in body
  assert '/home/me' not in body  # where the data was is nobody's business
  assert "load_classifier('hf:me/flowers')" in body
  for title in ('Results', 'Data', 'Recipe', 'How to use', 'Limits'):
    assert f'\n## {title}\n' in body


def test_a_card_without_a_license_names_none(run):
  text = card.card(run, classes=None, size=(16, 16))
  assert 'license' not in yaml.safe_load(text.split('---\n')[1])
  assert 'not known' in text


def test_a_card_is_about_one_run(tmp_path):
  for name in 'ab':
    write_run(tmp_path / name)
  with pytest.raises(ValueError, match='has 2 runs, and a card is about one'):
    card.write_card(tmp_path, tmp_path / 'card')


def test_upload_without_a_network(monkeypatch):
  class Api:
    def create_repo(self, repo, private, exist_ok):
      raise OSError('no route to host')

  class Hub:
    HfApi = Api

  monkeypatch.setattr(hub, '_hub', lambda: Hub)
  with pytest.raises(WeightsError, match=r'folder is complete.*no route') as e:
    hub.upload('folder', 'me/flowers')
  assert 'hf upload me/flowers folder' in str(e.value)
