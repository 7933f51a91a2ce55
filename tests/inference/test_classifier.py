"""Classifiers: loading, compilation, results and errors."""

import pathlib

import jax
import numpy as np
import pytest

from tests.inference.conftest import CLASSES, PREPROCESSING
from tests.random_variables import random_variables
from vit_jax import create_model
from vit_jax.inference.loading import load_classifier
from vit_jax.inference.prediction import list_images, predict
from vit_jax.weights import WeightsError, read, save_weights

RNG = np.random.default_rng(1)
IMAGES = list(RNG.integers(0, 256, (5, 20, 28, 3), np.uint8))


def test_it_knows_all_that_the_file_says(weights):
  classifier = load_classifier(weights)
  assert classifier.name == 'vit_ti16' and classifier.num_classes == 3
  assert classifier.classes == list(CLASSES)
  assert classifier.preprocessing == PREPROCESSING
  assert classifier.metadata() == read(weights)[1]
  assert not classifier.report.resized and not classifier.report.reset


def test_a_program_is_compiled_once_for_a_batch_size(weights):
  classifier = load_classifier(weights)
  forward, traced = classifier.forward, []

  def counting(variables, images):
    traced.append(images.shape)
    return forward(variables, images)

  classifier.forward = counting
  first = list(classifier.classify(IMAGES, batch_size=2))
  assert traced == [(2, 16, 16, 3)]
  second = list(classifier.classify(IMAGES[:3], batch_size=2))
  assert traced == [(2, 16, 16, 3)] and second == first[:3]
  list(classifier.classify(IMAGES, batch_size=5))
  assert traced == [(2, 16, 16, 3), (5, 16, 16, 3)]


def test_probabilities_are_those_of_the_model(weights):
  """For the losses softmax and sigmoid."""
  classifier = load_classifier(weights)
  (result,) = classifier.classify(IMAGES[:1])
  logits, _ = classifier.run(IMAGES[:1])
  softmax = jax.nn.softmax(logits[0])
  for p in result['predictions']:
    assert p['class'] == CLASSES[p['index']]
    assert p['probability'] == pytest.approx(
      float(softmax[p['index']]), rel=1e-5
    )
  probabilities = [p['probability'] for p in result['predictions']]
  assert probabilities == sorted(probabilities, reverse=True)
  classifier = load_classifier(weights)
  classifier.loss = 'sigmoid'
  (result,) = classifier.classify(IMAGES[:1], top_k=1)
  assert result['predictions'][0]['probability'] == pytest.approx(
    float(jax.nn.sigmoid(logits.max())), rel=1e-5
  )


def test_features_and_attention_maps(weights):
  classifier = load_classifier(weights)
  logits, out = classifier.run(IMAGES)
  assert logits.shape == (5, 3) and out['pre_logits'].shape == (5, 16)
  assert 'attention' not in out
  with_maps, out = classifier.run(IMAGES, attention=True)
  np.testing.assert_allclose(with_maps, logits, rtol=1e-5, atol=1e-6)
  assert [a.shape for a in out['attention']] == [(5, 2, 5, 5)] * 2
  for maps in out['attention']:
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


def test_a_model_without_attention_maps_says_so(tmp_path):
  model = create_model('bit_r50x1', 2, num_layers=(1,), width_factor=0.5)
  image = np.zeros((1, 32, 32, 3), np.float32)
  path = tmp_path / 'bit.npz'
  save_weights(random_variables(model, image), model, path)
  classifier = load_classifier(
    path,
    model='bit_r50x1',
    image_size=32,
    fields=dict(num_layers=(1,), width_factor=0.5),
  )
  with pytest.raises(ValueError, match='cannot return attention maps'):
    classifier.run(IMAGES, attention=True)


def test_another_size_resizes_the_position_table(weights):
  classifier = load_classifier(weights, image_size=(32, 24))
  assert classifier.preprocessing.size == (32, 24)
  assert classifier.preprocessing.crop == PREPROCESSING.crop
  assert [r.grid for r in classifier.report.resized] == [(4, 3)]
  assert classifier.read_image(IMAGES[0]).shape == (32, 24, 3)


def test_a_released_file_is_loaded_with_its_head_and_size(tmp_path):
  """The tensors of a file without metadata tell its classes and its size."""
  model = create_model('vit_mu16', 7, representation_size=24)
  variables = random_variables(model, np.zeros((1, 48, 48, 3), np.float32))
  save_weights(variables, model, tmp_path / 'released.npz')
  classifier = load_classifier(tmp_path / 'released.npz', model='vit_mu16')
  assert classifier.num_classes == 7
  assert classifier.preprocessing.size == (48, 48)
  assert classifier.fields == {'representation_size': 24}
  jax.tree.map(
    np.testing.assert_array_equal, classifier.variables, dict(variables)
  )
  assert classifier.class_name(3) == 'class 3'


def test_a_file_without_a_head_gives_features_only(tmp_path):
  model = create_model('vit_mu16', 0)
  variables = random_variables(model, np.zeros((1, 32, 32, 3), np.float32))
  save_weights(variables, model, tmp_path / 'features.npz')
  classifier = load_classifier(tmp_path / 'features.npz', model='vit_mu16')
  features, out = classifier.run(IMAGES)
  np.testing.assert_array_equal(features, out['pre_logits'])
  with pytest.raises(ValueError, match='features.npz has no head'):
    classifier.classify(IMAGES)


def test_what_does_not_fit_is_refused(weights):
  with pytest.raises(ValueError, match='2 class names do not fit a model of 3'):
    load_classifier(weights, classes=['a', 'b'])
  with pytest.raises(WeightsError):
    load_classifier(weights, model='mixer_s16', fields=dict(depth=1))
  classifier = load_classifier(weights)
  for wrong in (dict(top_k=0), dict(batch_size=0)):
    with pytest.raises(ValueError, match='must be at least 1'):
      classifier.classify(IMAGES, **wrong)


def test_predict_takes_files_and_directories(weights, folder, tmp_path):
  results = predict(weights, folder, top_k=1, batch_size=5)
  paths = sorted(map(str, pathlib.Path(folder).rglob('*.jpg')))
  assert [r['image'] for r in results] == paths
  assert all(len(r['predictions']) == 1 for r in results)
  one = predict(weights, [paths[3]], top_k=1)
  assert (
    one[0]['predictions'][0]['class'] == (results[3]['predictions'][0]['class'])
  )
  (tmp_path / 'bad.png').write_bytes(b'not an image')
  results = predict(weights, [tmp_path / 'bad.png', paths[0], 'gone.jpg'])
  assert [set(r) for r in results] == [
    {'image', 'error'},
    {'image', 'predictions'},
    {'image', 'error'},
  ]
  assert results[2]['error'] == 'no such file or directory'
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='empty has no images'):
    list_images([tmp_path / 'empty'])
