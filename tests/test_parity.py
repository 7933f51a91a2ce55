"""Every recorded official output that is in tests/fixtures/parity."""

import pathlib
import subprocess
import sys

import jax
import pytest

from tests.parity import __main__ as command
from tests.parity import harness

FILES = sorted(
  (pathlib.Path(__file__).parent / 'fixtures' / 'parity').glob('*.npz')
)


@pytest.fixture(autouse=True)
def exact_matmuls():
  with (
    jax.default_matmul_precision('highest'),
    jax.numpy_rank_promotion('allow'),
  ):
    yield


def test_there_are_files_of_every_part():
  names = {f.stem for f in FILES}
  for stem in (
    'vit_jax_token',
    'big_vision_vit_map',
    'timm_vit_avg',
    'vit_jax_hybrid_121',
    'bit_big_transfer',
    'timm_mixer',
    'deit_distilled',
    'cait',
    'deepvit',
    'ceit',
    'volo',
    'area_1d_197_w2',
    'timm_mixup_cutmix',
    'big_vision_lr_schedule',
    'timm_randaugment_ops',
    'big_vision_preprocess',
    'crops_tf_inception',
    'crops_timm_torchvision',
    'preprocess_google',
    'preprocess_timm_deit',
    'randaugment_ops_google',
    'labels_classification',
    'labels_fewshot',
    'labels_real_timm',
  ):
    assert stem in names


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_equals_the_official_implementation(path):
  command.load_checkers()
  line, ok = harness.check_file(path)
  assert ok, line
  assert 'not compared' not in line, line


def test_a_wrong_number_fails(tmp_path):
  """The comparison can fail: one output is moved by ten tolerances."""
  import numpy as np

  command.load_checkers()
  path = next(f for f in FILES if f.stem == 'vit_jax_token')
  with np.load(path) as z:
    arrays = {k: z[k] for k in z.files}
  arrays['out/logits'] = arrays['out/logits'] + 4e-4
  np.savez(tmp_path / 'wrong.npz', **arrays)
  line, ok = harness.check_file(tmp_path / 'wrong.npz')
  assert not ok and line.endswith('FAIL')


def test_exit_codes(tmp_path):
  (tmp_path / 'broken.npz').write_bytes(b'PK')
  run = lambda *args: subprocess.run(
    [sys.executable, '-m', 'tests.parity', *map(str, args)],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  failed = run(tmp_path / 'broken.npz')
  assert failed.returncode == 1 and 'FAIL' in failed.stdout
  assert run().returncode == 1
