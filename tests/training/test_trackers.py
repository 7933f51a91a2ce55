"""Weights & Biases and MLflow, with modules that record what they get."""

import json
import sys

from etils import epath
from PIL import Image
import pytest

from tests.helpers import tiny_config
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import ConfigError
from vit_jax.train import train_and_evaluate
from vit_jax.training.trackers import Trackers

WANDB = """
calls = []
class Image:
  def __init__(self, picture):
    self.size = picture.size
class Run:
  def define_metric(self, *args, **kwargs):
    pass
  def log(self, values):
    if values.get('step') == 99:
      raise RuntimeError('disk full')
    calls.append(values)
  def finish(self):
    calls.append('finished')
def init(**kwargs):
  calls.append(kwargs)
  return Run()
"""
MLFLOW = """
import types
calls = []
def set_experiment(name):
  calls.append(('experiment', name))
def start_run(run_id, run_name):
  calls.append(('start', run_id, run_name))
  return types.SimpleNamespace(info=types.SimpleNamespace(run_id='run-1'))
def log_params(params):
  calls.append(('params', params))
def log_metrics(values, step):
  calls.append(('metrics', step, values))
def log_image(picture, name):
  calls.append(('image', name))
def end_run():
  calls.append(('end',))
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """Both packages, as files on the path."""
  for name, text in (('wandb', WANDB), ('mlflow', MLFLOW)):
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)
  monkeypatch.syspath_prepend(str(tmp_path))
  for key in ('WANDB_PROJECT', 'MLFLOW_EXPERIMENT_NAME'):
    monkeypatch.delenv(key, raising=False)
  yield
  for name in ('wandb', 'mlflow'):
    sys.modules.pop(name, None)


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(
    'vit_jax.training.trackers.importlib.util.find_spec', lambda name: None
  )
  with pytest.raises(ConfigError, match='not installed: pip install wandb'):
    check(tiny_config(log=dict(writers=('wandb',))))
  with pytest.raises(ConfigError, match="'comet' is not known; allowed: wandb"):
    check(tiny_config(log=dict(writers=('comet',))))
  check(tiny_config())


def test_both_get_numbers_and_pictures(packages, tmp_path, caplog):
  names, workdir = ('wandb', 'mlflow'), epath.Path(tmp_path)
  recipe = {'optim.lr': 0.1, 'data.dir': 'x' * 600}
  trackers = Trackers(names, workdir, 'flowers', recipe, False)
  trackers.scalars(1, {'train/loss': 2.0})
  trackers.image(0, 'train/first_batch', Image.new('RGB', (4, 2)))
  trackers.scalars(99, {'train/loss': 1.0})  # at which wandb fails
  trackers.scalars(100, {'train/loss': 0.5})
  trackers.close()
  import mlflow  # pyright: ignore[reportMissingImports]
  import wandb  # pyright: ignore[reportMissingImports]

  first, number, picture = wandb.calls
  assert first['project'] == 'vit_jax' and first['name'] == 'flowers'
  assert first['config'] == recipe and first['resume'] == 'allow'
  assert number == {'step': 1, 'train/loss': 2.0}
  assert picture['train/first_batch'].size == (4, 2)
  assert 'wandb failed and gets nothing more' in caplog.text
  assert mlflow.calls[0] == ('experiment', 'vit_jax')
  assert mlflow.calls[1] == ('start', None, 'flowers')
  assert len(mlflow.calls[2][1]['data.dir']) == 500
  assert ('metrics', 99, {'train/loss': 1.0}) in mlflow.calls
  assert ('image', 'train_first_batch_0.png') in mlflow.calls
  assert mlflow.calls[-1] == ('end',)
  # A run that goes on is the same run there.
  Trackers(names, workdir, 'flowers', recipe, True)
  assert wandb.calls[-1]['id'] == first['id']
  assert ('start', 'run-1', 'flowers') in mlflow.calls


@pytest.mark.slow
def test_a_run_is_tracked(packages, tmp_path):
  config = tiny_config(
    log=dict(writers=('wandb', 'mlflow'), images=4, tensorboard=True)
  )
  train_and_evaluate(config, tmp_path / 'run')
  import wandb  # pyright: ignore[reportMissingImports]

  start, picture, *rest = wandb.calls
  assert start['config']['model.name'] == 'vit_ti16'
  assert 'train/first_batch' in picture
  losses = [x for x in rest if 'train/loss' in x]
  assert [x['step'] for x in losses] == list(range(1, 9))
  assert any('eval/test_top1' in x for x in rest) and rest[-1] == 'finished'
  ids = json.loads((tmp_path / 'run' / 'trackers.json').read_text())
  assert ids == {'wandb': start['id'], 'mlflow': 'run-1'}
  from tensorboardX.proto.event_pb2 import Event

  (events,) = (tmp_path / 'run' / 'tensorboard').iterdir()
  data, tags = events.read_bytes(), set()
  while data:  # length (8 bytes), its checksum (4), event, checksum (4)
    length = int.from_bytes(data[:8], 'little')
    for value in Event.FromString(data[12 : 12 + length]).summary.value:
      tags.add(value.tag)
      if value.tag == 'train/first_batch':
        assert value.image.width > 500
    data = data[16 + length :]
  assert {'train/first_batch', 'train/loss', 'eval/test_top1'} <= tags
  assert {'_hparams_/experiment', '_hparams_/session_start_info'} <= tags
