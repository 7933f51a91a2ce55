"""Conversions keep every bit of the weights, and their metadata."""

import jax
import numpy as np
import pytest

from vit_jax.inference.convert import convert
from vit_jax.inference.loading import load_classifier
from vit_jax.weights import WeightsError, read


def test_through_all_formats_and_back(weights, tmp_path):
  """.npz -> .safetensors -> workdir -> .npz."""
  targets = [tmp_path / name for name in ('a.safetensors', 'run', 'b.npz')]
  for source, target in zip([weights, *targets], targets, strict=False):
    loaded = convert(source, target)
    assert loaded.name == 'vit_ti16'
  first, last = load_classifier(weights), load_classifier(targets[-1])
  jax.tree.map(np.testing.assert_array_equal, first.variables, last.variables)
  assert last.metadata() == first.metadata()
  arrays, again = read(weights)[0], read(targets[-1])[0]
  assert arrays.keys() == again.keys()
  assert [read(t)[2] for t in targets] == ['safetensors', 'step', 'npz']


def test_the_naming_can_be_chosen(weights, tmp_path):
  convert(weights, tmp_path / 'x.npz', fmt='flax')
  assert 'params/head/kernel' in read(tmp_path / 'x.npz')[0]
  with pytest.raises(WeightsError, match="'tensorflow'"):
    convert(weights, tmp_path / 'y.npz', fmt='tensorflow')
  assert not (tmp_path / 'y.npz').exists()


def test_targets_that_are_refused(weights, tmp_path):
  with pytest.raises(WeightsError, match=r'.npz or .safetensors'):
    convert(weights, tmp_path / 'x.h5')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'file').touch()
  with pytest.raises(WeightsError, match='exists and is not empty'):
    convert(weights, tmp_path / 'run')
  with pytest.raises(WeightsError, match='no such file'):
    convert(tmp_path / 'gone.npz', tmp_path / 'y.npz')
  assert {p.name for p in tmp_path.iterdir()} == {'run'}
