"""Jobs over many images: stopped, shared by processes, joined."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

from PIL import Image
import pytest

from tests.helpers import ROOT
from vit_jax.cli import parser
from vit_jax.inference import prediction
from vit_jax.inference.classifier import ImageClassifier
from vit_jax.inference.jobs import Share
from vit_jax.training.progress import ImageProgress


class Killed(BaseException):
  """Stands for a signal that ends the process."""


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """25 images, of which one is broken."""
  root = tmp_path_factory.mktemp('photos')
  for i in range(24):
    Image.new('RGB', (16, 16), (10 * i, 90, 40)).save(root / f'{i:02d}.png')
  (root / '07b.png').write_bytes(b'no image')
  return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(prediction, 'SHARD_SIZE', 4)


def predict(weights, photos, target, *more):
  kind = 'json' if str(target).endswith('.json') else 'csv'
  argv = ['predict', weights, str(photos), f'--{kind}={target}', '--batch=4']
  return parser.main([*argv, '-k', '1', *more])


def rows(path):
  with open(path, newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_a_killed_job_goes_on_where_it_was(
  weights, photos, tmp_path, monkeypatch, capsys
):
  """Killed twice, and finished; every image is read once but for one shard."""
  target, read_image = tmp_path / 'result.csv', ImageClassifier.read_image
  read = []

  def read_or_die(self, image):
    read.append(image)
    if len(read) in (10, 25):
      raise Killed
    return read_image(self, image)

  with monkeypatch.context() as patch:
    patch.setattr(ImageClassifier, 'read_image', read_or_die)
    for _ in range(2):
      with pytest.raises(Killed):
        predict(weights, photos, target)
      assert not target.exists()
    assert predict(weights, photos, target) == 1
  error = capsys.readouterr().err
  assert 'of 25 images are done' in error
  assert error.endswith('error: 1 of 25 images could not be read\n')
  names = [row['image'] for row in rows(target)]
  assert len(read) < 25 + 2 * 3 * 4  # with the batches that were read ahead
  assert names == sorted(set(names)) and len(names) == 24
  assert [p.name for p in tmp_path.iterdir()] == ['result.csv']
  # A job that was never stopped has the same result.
  whole = tmp_path / 'whole.csv'
  predict(weights, photos, whole)
  assert whole.read_bytes() == target.read_bytes()


def test_processes_share_a_job(weights, photos, tmp_path, capsys):
  target, three = tmp_path / 'result.json', '--num-processes=3'
  for process in (2, 1):
    assert (
      predict(weights, photos, target, three, f'--process-id={process}') == 0
    )
    assert not target.exists()
  done = {p.name for p in (tmp_path / 'result.json.unfinished').iterdir()}
  assert len(done) == 1 + 4  # the plan, and shards 1, 2, 4, 5 of 7
  assert predict(weights, photos, target, three, '--process-id=0') == 1
  results = json.loads(target.read_text())
  assert len(results) == 24 and len({r['image'] for r in results}) == 24
  with pytest.raises(ValueError, match='--process-id=3: must be from 0 to 2'):
    Share(3, 3)
  argv = ['predict', weights, str(photos), three]
  assert parser.main(argv) == 1
  assert 'need a file that all of them can write' in capsys.readouterr().err


def test_a_job_of_other_images_or_options_is_refused(
  weights, photos, tmp_path, capsys
):
  target, two = tmp_path / 'result.csv', '--num-processes=2'
  assert predict(weights, photos, target, two, '--process-id=1') == 0
  other = tmp_path / 'photos'
  other.mkdir()
  Image.new('RGB', (16, 16)).save(other / '0.png')
  for folder, more, reason in (
    (other, (), 'with another images'),
    (photos, ('-k', '2'), 'with another top_k'),
    (photos, ('--max-pixels', '9'), 'with another max_pixels'),
  ):
    capsys.readouterr()
    assert predict(weights, folder, target, *more) == 1
    assert reason in capsys.readouterr().err


def test_progress_in_a_log(capsys):
  now = [0.0]
  with ImageProgress(100, 'working', clock=lambda: now[0]) as progress:
    for _ in range(5):
      now[0] += 40
      progress.advance(20)
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'working: 40 of 100 images  0.5 img/s  ETA 2m00s',
    'working: 80 of 100 images  0.5 img/s  ETA 40s',
    'working: 100 of 100 images  0.5 img/s',
  ]


_PREDICT = """
import sys
from tests.helpers import ROOT
from vit_jax.cli import parser
from vit_jax.inference import prediction
prediction.SHARD_SIZE = 20
sys.exit(parser.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_twice(weights, tmp_path):
  """SIGKILL at any moment: the table is complete, and no row is there twice."""
  photos, target = tmp_path / 'photos', tmp_path / 'result.csv'
  photos.mkdir()
  for i in range(200):
    Image.new('RGB', (16, 16), (i, 90, 40)).save(photos / f'{i:03d}.png')
  argv = ['predict', weights, str(photos), f'--csv={target}', '-k', '1']
  command = [sys.executable, '-c', _PREDICT, *argv]
  environment = {**os.environ, 'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'}
  unfinished = tmp_path / 'result.csv.unfinished'
  for shards in (1, 4):
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
      if len(list(unfinished.glob('shard-*'))) >= shards:
        process.kill()
      time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
  assert subprocess.run(command, env=environment, timeout=300).returncode == 0
  names = [row['image'] for row in rows(target)]
  assert names == sorted(set(names)) and len(names) == 200
