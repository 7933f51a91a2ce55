"""Workdirs and files of version 0.1.0 resume, predict and convert exactly.

The fixtures are workdirs of interrupted runs, an exported program and
converted files; tests/fixtures/earlier/make.py says how they were made.

Floats are compared with a tolerance: version 0.2.0 computes attention, norms
and products in other forms than 0.1.0, and XLA chooses other vector
instructions and block sizes on another machine, so that sums are rounded in
another order. What involves no arithmetic (names of tensors, converted weights,
class names) is compared exactly. That a run of today resumes to the last bit is
tested in tests/training.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests import earlier
from tests.helpers import saved_state
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.weights import read

EXPECTED = json.loads((earlier.FIXTURES / 'expected.json').read_text())
# Measured between the instruction sets of one CPU (--xla_cpu_max_isa), after
# the second half of a run: 5e-6 of a metric, 1e-6 of all else.
TOLERANCE = 3e-5
# The gradient of this bias is zero except for rounding, because the next layer
# norm removes a constant of all channels. Adafactor divides a gradient by its
# own size, so the bias differs on another machine, which changes no output.
NOISE = 'MixerBlock/token_mixing/Dense_1/bias'


def assert_equal(actual, expected, what, tolerance=TOLERANCE):
  """Floats with a tolerance, all else exactly."""
  if np.asarray(expected).dtype.kind != 'f':
    np.testing.assert_array_equal(actual, expected, err_msg=what)
  elif NOISE not in what:
    np.testing.assert_allclose(
      actual, expected, err_msg=what, rtol=tolerance, atol=TOLERANCE
    )


def assert_same_numbers(actual, expected, what):
  """Compares nested dicts and lists of numbers, as from JSON."""
  if isinstance(expected, dict):
    assert actual.keys() == expected.keys(), what
    for key, value in expected.items():
      assert_same_numbers(actual[key], value, f'{what}: {key}')
  elif isinstance(expected, list):
    assert len(actual) == len(expected), what
    for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
      assert_same_numbers(x, y, f'{what}[{i}]')
  elif isinstance(expected, float):
    assert_equal(actual, expected, what)
  else:
    assert actual == expected, what


@pytest.fixture(scope='module', params=earlier.RUNS)
def resumed(request, tmp_path_factory):
  """An interrupted run that was resumed: (name, workdir, output)."""
  run = request.param
  path = tmp_path_factory.mktemp(run)
  workdir = earlier.unpack(run, path)
  if run == 'flowers':
    earlier.unpack('vit', path)  # the weights that it started from
  return run, workdir, earlier.train(run, path)


def test_resume(resumed):
  """The second half of an interrupted run is that of an uninterrupted one."""
  run, workdir, out = resumed
  step = EXPECTED['stopped_at'][run]
  assert f'resumed step {step} of {workdir.resolve()}' in out
  state = saved_state(workdir)
  actual = earlier.plain(state)
  with np.load(earlier.FIXTURES / f'{run}_end.npz') as expected:
    assert actual.keys() == set(expected.files)
    for name in expected.files:
      # The last bit of a momentum in bfloat16 is 2 ** -8 of its value.
      exact = state[name].dtype == actual[name].dtype
      tolerance = TOLERANCE if exact else 2**-7
      assert actual[name].dtype == expected[name].dtype, name
      assert_equal(actual[name], expected[name], name, tolerance)
  assert_same_numbers(
    earlier.metrics(workdir), EXPECTED['metrics'][run], 'metrics.jsonl'
  )
  summary = json.loads((workdir / 'summary.json').read_text())
  assert_same_numbers(
    summary['results'], EXPECTED['results'][run], 'summary.json'
  )


@pytest.mark.parametrize('damage', ['torn', 'empty', 'missing'])
def test_torn_files_beside_the_arrays(tmp_path, caplog, damage):
  """A step of 0.1.0 is read without them, and has no checksums."""
  workdir = earlier.unpack('vit', tmp_path)
  expected = saved_state(workdir)
  step = workdir / 'checkpoints' / str(EXPECTED['stopped_at']['vit'])
  for name in ('metrics/metrics', 'state/array_metadatas/process_0'):
    path = step / name
    if damage == 'missing':
      path.unlink()
    else:
      path.write_bytes(b'\xff{"ar' if damage == 'torn' else b'')
  checkpoints = Checkpoints(workdir, keep_best=1, metric='test_top1')
  assert checkpoints.steps() == [int(step.name)]
  state = saved_state(workdir)
  assert state.keys() == expected.keys()
  for name in state:
    np.testing.assert_array_equal(state[name], expected[name], err_msg=name)
  assert 'has no checksums, because version 0.1.0 wrote it' in caplog.text


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """All weights of version 0.1.0, predictions of them, and conversions."""
  path = tmp_path_factory.mktemp('earlier')
  for run in earlier.RUNS:
    earlier.unpack(run, path)
  earlier.vit_jax(
    [
      *(
        earlier.predict_command(
          x if x in earlier.RUNS else str(earlier.FIXTURES / x),
          f'{x}.predictions',
        )
        for x in EXPECTED['predictions']
      ),
      *(['convert', x.split('.')[0], x] for x in earlier.CONVERSIONS),
      ['export', 'flowers', 'again.stablehlo'],
      earlier.predict_command('again.stablehlo', 'again.predictions'),
    ],
    path,
  )
  return path


def read_predictions(path):
  """{image: (classes in order, {class: probability})}."""
  actual = json.loads(path.read_text())
  return {
    x['image']: (
      [(p['class'], p['index']) for p in x['predictions']],
      {p['class']: p['probability'] for p in x['predictions']},
    )
    for x in actual
  }


def assert_same_predictions(actual, expected):
  assert actual.keys() == expected.keys()
  for image, (order, probabilities) in expected.items():
    assert_same_numbers(actual[image][1], probabilities, image)
    # The order of classes with close probabilities may differ.
    assert sorted(actual[image][0]) == sorted(order)


@pytest.mark.parametrize('weights', EXPECTED['predictions'])
def test_predict(weights, folder, tmp_path):
  """Workdirs, converted files and an exported program predict the same."""
  expected = tmp_path / 'expected.json'
  expected.write_text(json.dumps(EXPECTED['predictions'][weights]))
  assert_same_predictions(
    read_predictions(folder / f'{weights}.predictions'),
    read_predictions(expected),
  )


def test_export_again(folder, tmp_path):
  """An earlier workdir, exported by today's code."""
  expected = tmp_path / 'expected.json'
  expected.write_text(json.dumps(EXPECTED['predictions'][earlier.EXPORTED]))
  assert_same_predictions(
    read_predictions(folder / 'again.predictions'), read_predictions(expected)
  )


@pytest.mark.parametrize('name', earlier.CONVERSIONS)
def test_convert(name, folder):
  """Names, shapes and bytes of all tensors; no arithmetic is involved."""
  assert earlier.digest(folder / name) == EXPECTED['converted'][name]


@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_metadata_of_a_converted_file(suffix, folder):
  """Files of version 0.1.0 and of today's code have the same metadata."""
  expected = read(earlier.FIXTURES / f'flowers.{suffix}').metadata
  assert expected.model == 'vit_ti16' and expected.fields['depth'] == 2
  assert expected.classes == ('aster', 'bluebell', 'crocus')
  assert expected.preprocessing.size == (16, 16)
  actual = read(folder / f'flowers.{suffix}').metadata
  # The recipe of the run is not in what version 0.1.0 converted.
  assert dataclasses.replace(actual, recipe=None) == dataclasses.replace(
    expected, recipe=None
  )


def test_the_fixtures_are_small():
  files = [p for p in pathlib.Path(earlier.FIXTURES).rglob('*') if p.is_file()]
  assert sum(p.stat().st_size for p in files) < 1_500_000
