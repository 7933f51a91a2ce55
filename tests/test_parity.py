"""This package agrees with every recorded output in tests/fixtures/parity."""

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
# Recorded training steps take about ten seconds each: the default run has one
# of each code base, and the optimizers alone.
TRAINING = [f for f in FILES if f.stem.startswith('train_')]
QUICK = (
  'train_bit_hyperrule_small',
  'train_bv_vit_i1k',
  'train_deit_adamw',
  'train_optim_google',
  'train_optim_timm',
  'train_vit_jax_finetune_unclipped',
)
# Keys, besides sizes, in which recorded runs differ from the recipes; their
# meta names them under changed_from_official.
CHANGED = (
  'optim.lr',  # that of another batch size
  'optim.lr_batch',
  'optim.ema',  # a decay that shows in a few steps
  'optim.weight_decay',  # so that it shows
  'schedule.end',  # follows the rate
  'schedule.warmup_init',
)
# The recipe `soft` has no distillation token, the recorded run has one.
CHANGED_IN = {
  'train_deit_soft_distill': (
    'loss.distill',
    'loss.distill_alpha',
    'loss.distill_tau',
  ),
}


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


def test_recorded_training_steps_are_there():
  assert len(TRAINING) >= 24 and {*QUICK} <= {f.stem for f in TRAINING}


@pytest.mark.parametrize(
  'path',
  [
    pytest.param(
      f, id=f.stem, marks=() if f.stem in QUICK else pytest.mark.slow
    )
    for f in TRAINING
  ],
)
def test_equals_the_official_training_steps(path):
  """Every output, and the recipe needs no other settings than the run had."""
  command.load_checkers()
  case = harness.load_case(path)
  harness.find_checker(case)(case)
  assert case.ok, f'{case.worst_key}: {case.worst:g} times the tolerance'
  assert not case.left
  allowed = (*CHANGED, *CHANGED_IN.get(path.stem, ()))
  assert not [c for c in case.changed if c.split(':')[0] not in allowed]


@pytest.mark.parametrize(
  'path', [f for f in FILES if f not in TRAINING], ids=lambda p: p.stem
)
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
