"""Measures of trained models, on a tiny run."""

import jax
import pytest

from configs import deepvit_i1k, posemb_d3
from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.ablation.measures import fewshot_accuracy, similar_attention


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = tiny_config(run=dict(steps=2))
  config.eval.fewshot.source = 'synthetic'
  directory = tmp_path_factory.mktemp('run')
  train.train_and_evaluate(config, directory, jax.devices()[:1])
  return config, directory


def test_fewshot_accuracy(run):
  """The accuracy on easy synthetic classes is above chance, 20 %."""
  config, directory = run
  assert 25 < fewshot_accuracy(config, directory, 5) <= 100
  assert posemb_d3.measure(config, directory) == {
    '5-shot': fewshot_accuracy(config, directory, 5)
  }


def test_similar_attention(run):
  """Of two blocks, only the second has a previous one to be similar to."""
  config, directory = run
  assert similar_attention(config, directory, threshold=-1.0) == 0.5
  assert similar_attention(config, directory, threshold=1.0) == 0.0
  assert list(deepvit_i1k.measure(config, directory)) == ['similar blocks']
