"""What a run would do, and the picture of its first batch."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.compiler import FAST_COMPILE
from tests.helpers import ROOT, tiny_config
from tests.parallel.test_processes import free_port
from vit_jax import preview as previews
from vit_jax.cli import parser
from vit_jax.recipe import first_batch
from vit_jax.recipe.keys import ConfigError
from vit_jax.train import train_and_evaluate


def mixed():
  """A recipe with everything that changes images and labels on the device."""
  return tiny_config(
    data=dict(mixup=0.8, cutmix=1.0, erasing=0.5, flip=0.5),
    loss=dict(label_smoothing=0.1),
  )


@pytest.mark.parametrize(
  'target, words',
  [
    ([0, 1, 0, 0, 0], 'b'),
    ([0.7, 0, 0.3, 0, 0], '0.7 a + 0.3 c'),
    ([1, 1, 0, 0, 0], 'a, b'),
    ([0.001, 0.999, 0, 0, 0], 'b'),
    ([0.5, 0.2, 0.1, 0.1, 0.1], '0.5 a + 0.2 b + 0.1 c + 2 more'),
    ([0] * 5, 'no class'),
  ],
)
def test_labels_in_words(target, words):
  assert first_batch.in_words(np.array(target), 'abcde') == words
  digits = first_batch.in_words(np.array([0.4, 0.6]), ['0', '1'])
  assert digits == '0.6 class 1 + 0.4 class 0'
  unnamed = first_batch.in_words(np.array([0, 1.0]), None)
  assert unnamed == 'class 1'


def test_long_labels_are_cut():
  images = np.zeros((1, 16, 16, 3), np.uint8)
  heights = [
    first_batch.draw(first_batch.FirstBatch(images, [label], 'title')).height
    for label in ('cat', '\n'.join('abcde'), 'a long name ' * 99)
  ]
  assert heights[0] < heights[1] == heights[2]


def test_a_preview_of_mixed_images(tmp_path):
  picture, workdir = tmp_path / 'batch.png', tmp_path / 'run'
  facts = previews.preview(mixed(), workdir, show_batch=str(picture))
  assert json.loads(json.dumps(facts)) == facts
  assert facts['training']['images_of_classes']['class 0'] == 13
  assert facts['length']['steps'] == 8 and facts['memory']['step'] > 0
  assert facts['time']['measured_steps'] == 5
  words = previews.in_words(facts)
  for phrase in (
    '64 images of 5 classes',
    'class 0: 13, class 1: 13',
    '8 steps of 16 images = 2 epochs',
    'for a step on each device',
    'about ',
    'a new run. Nothing was written',
    f'{picture} shows the first batch',
  ):
    assert phrase in ' '.join(words.split()), words
  assert max(map(len, words.splitlines())) <= 100  # a long path is not broken
  assert not workdir.exists()
  with Image.open(picture) as image:
    # 8 columns of 16 px, enlarged to 128, with a gap of 8 around each.
    assert image.width == 8 + 8 * 136 and 300 < image.height < 500


def test_a_preview_stops_where_the_run_would(tmp_path):
  with pytest.raises(ConfigError, match='larger than the training split'):
    previews.preview(tiny_config(data=dict(batch_size=128)))
  with pytest.raises(ValueError, match='must end with .png or .jpg'):
    previews.preview(tiny_config(), show_batch='batch.gif')


def test_train_needs_a_workdir_or_a_dry_run(capsys):
  assert parser.main(['train', 'configs/digits.py']) == 1
  assert '--workdir DIR' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_shows_the_same_picture(tmp_path):
  train_and_evaluate(
    mixed(), tmp_path / 'run', show_batch=str(tmp_path / 'run.png')
  )
  words = previews.in_words(
    previews.preview(
      mixed(), tmp_path / 'run', show_batch=str(tmp_path / 'dry.png')
    )
  )
  assert 'a finished run of 8 steps' in ' '.join(words.split())
  run, dry = (Image.open(tmp_path / f'{x}.png') for x in ('run', 'dry'))
  np.testing.assert_array_equal(run, dry)


@pytest.mark.slow
def test_two_processes_find_out_together(tmp_path):
  """Process 0 prints, and all of them end."""
  main = 'import sys; from vit_jax.cli import parser; sys.exit(parser.main())'
  picture = tmp_path / 'batch.png'
  words = ['train', 'configs/digits.py:smoke', '--dry-run', '--json']
  words += ['--show-batch', str(picture), '--num-processes', '2']
  words += ['--coordinator', f'127.0.0.1:{free_port()}']
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': ROOT,
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {FAST_COMPILE}',
  }
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', main, *words, '--process-id', str(i)],
      env=environment,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  (out, err), (other, more) = (p.communicate() for p in processes)
  assert [p.returncode for p in processes] == [0, 0], err + more
  facts = json.loads(out)
  assert facts['training']['images'] == 1437 and picture.exists()
  assert "'data': 2" in facts['run'] and facts['time']['measured_steps']
  assert not other
