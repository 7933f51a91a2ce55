"""Finished runs that go on: lengths, learning rates, changed settings."""

import json

import jax
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax.recipe import extension
from vit_jax.recipe.keys import ConfigError
from vit_jax.train import Preempted, train_and_evaluate
from vit_jax.training.schedules import Schedule
from vit_jax.weights.steps import FOLDER, list_steps, load_params


def linear(total):
  """A schedule that falls from 1 to 0."""
  return Schedule(lambda step: 1 - np.float32(step) / total, 1.0)


def test_the_rate_is_that_of_the_longer_run():
  config = tiny_config(run=dict(extend=5.0))
  length = extension.lengthened(config, 100, 10, linear)
  assert length[0::2] == (150, 100) and length.extra_steps == 0
  rate = lambda step: pytest.approx(float(length.schedule(step)))
  assert rate(99) == 1 - 99 / 100 and rate(100) == 1 - 100 / 150
  assert rate(150) == 0
  words = extension.in_words(length, 10, 100)
  assert 'steps 100 to 150' in words and 'a schedule of 15 epochs' in words
  assert '0.333 at step 100' in words


def test_another_batch_size_counts_in_epochs():
  """10 epochs of 10 steps, and 5 more of 2 steps: two thirds are done."""
  config = tiny_config(run=dict(extend=5.0, extended=(100, 10.0, 0.0)))
  length = extension.lengthened(config, 20, 2, linear)
  assert length.total_steps == 110
  assert float(length.schedule(100)) == pytest.approx(1 / 3)
  assert (100 + length.extra_steps) / 2 == 10
  # Of 5 epochs that were run before the settings changed, none is run again.
  config.run.extended = (110, 15.0, 5.0)
  config.run.extend = 7.0
  assert extension.lengthened(config, 20, 2, linear).total_steps == 114


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of 8 steps, 2 epochs, that goes on for one more epoch."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  train_and_evaluate(tiny_config(), path)
  train_and_evaluate(tiny_config(run=dict(extend=1.0)), path)
  return path


def kill(config, path, monkeypatch):
  """A run that ends, without an orderly stop, where it would save."""

  def killed(self, step, state, now=False):
    if step > 9:
      raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr('vit_jax.training.periodic.Saving.__call__', killed)
    with pytest.raises(KeyboardInterrupt):
      train_and_evaluate(config, path)


def read(path, name):
  return json.loads((path / name).read_text())


def assert_same_parameters(first, second):
  """The newest steps of two workdirs have the same bits."""
  for a, b in zip(
    jax.tree.leaves(load_params(first)[0]),
    jax.tree.leaves(load_params(second)[0]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_finished_run_goes_on_as_the_longer_one_would(finished, tmp_path):
  """Its steps are those of a run that was told its extension before."""
  assert read(finished, 'summary.json')['step'] == 12
  assert read(finished, 'summary.json')['epochs'] == 3
  assert read(finished, 'config.json')['run']['extended'] == [8, 2.0, 0.0]
  train_and_evaluate(tiny_config(run=dict(extend=1.0)), tmp_path)
  assert_same_parameters(finished, tmp_path)


@pytest.mark.slow
def test_an_extension_that_is_stopped_resumes_bit_for_bit(
  finished, tmp_path, monkeypatch, capsys
):
  config = tiny_config(run=dict(extend=1.0))
  train_and_evaluate(tiny_config(), tmp_path)
  # The first command is killed before it has saved a step of the extension,
  # the second one is stopped after three of them.
  kill(config, tmp_path, monkeypatch)
  assert [x.name for x in list_steps(tmp_path / FOLDER)] == ['8']
  with monkeypatch.context() as m:
    m.setattr(
      'vit_jax.training.preemption.StopSignal.reached',
      lambda self, step: step > 10,
    )
    with pytest.raises(Preempted):
      train_and_evaluate(config, tmp_path)
  # The command that began the run knows nothing of its extension.
  summary = train_and_evaluate(tiny_config(), tmp_path)
  assert 'run.extend=1' in capsys.readouterr().out
  assert summary['step'] == 12
  assert_same_parameters(finished, tmp_path)


@pytest.mark.slow
def test_settings_change_at_the_end_of_a_run(tmp_path, capsys, monkeypatch):
  train_and_evaluate(tiny_config(), tmp_path)
  new = dict(optim=dict(lr=1e-3), data=dict(batch_size=32))
  with pytest.raises(ConfigError, match=r'optim.lr: 0.01 there.*run.extend=N'):
    train_and_evaluate(tiny_config(**new), tmp_path)
  with pytest.raises(ConfigError, match=r'run.steps: 8 there.*run.extend=N'):
    train_and_evaluate(tiny_config(run=dict(steps=9)), tmp_path)
  with pytest.raises(ConfigError, match='model.depth'):
    train_and_evaluate(
      tiny_config(run=dict(extend=1.0), model=dict(depth=1)), tmp_path
    )
  more = tiny_config(run=dict(extend=2.0), **new)
  kill(more, tmp_path, monkeypatch)
  # No step was made, so that another value can still be chosen.
  kill(
    tiny_config(run=dict(extend=2.0), data=new['data'], optim=dict(lr=0.1)),
    tmp_path,
    monkeypatch,
  )
  summary = train_and_evaluate(more, tmp_path)
  assert summary['step'] == 8 + 2 * 2 and summary['epochs'] == 4
  out = capsys.readouterr().out
  assert 'data.batch_size: 16 -> 32; optim.lr: 0.01 -> 0.001' in out
  assert 'going on after 2 epochs: steps 8 to 12' in out
  # Half of a cosine from the new peak is over.
  assert '0.0005 at step 8' in out
  assert train_and_evaluate(more, tmp_path)['step'] == 12
  with pytest.raises(ConfigError, match='run.extend=N with N above 2'):
    train_and_evaluate(tiny_config(data=new['data']), tmp_path)
  with pytest.raises(ConfigError, match='give at least 2'):
    train_and_evaluate(tiny_config(run=dict(extend=1.0), **new), tmp_path)
  other = tiny_config(run=dict(resume=str(tmp_path), extend=1.0), **new)
  assert train_and_evaluate(other, tmp_path / 'other')['epochs'] == 5
