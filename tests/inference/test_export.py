"""An exported program gives the model's logits, for any batch size."""

import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax import create_model
from vit_jax.cli import parser
from vit_jax.inference import export
from vit_jax.inference.loading import load_classifier
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import shared
from vit_jax.weights import WeightsMetadata, save_weights

MIXER = dict(patch_size=8, width=16, depth=1, tokens_mlp_dim=8, mlp_dim=16)
CASES = {
  'vit_ti16': shared.small_fields('vit'),
  'aa_vit_s16': {**shared.small_fields('vit'), 'area_sizes': ((1, 2), (2, 2))},
  'mixer_s16': MIXER,
  'bit_r50x1': dict(num_layers=(1, 1), width_factor=0.5),
  'cait_xxs24': dict(depth=1),
}


def save(name, fields, path):
  """Random weights of a small model with three classes."""
  model = create_model(name, 3, **fields)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: 0.2 * rng.standard_normal(x.shape).astype(x.dtype), shapes
  )
  save_weights(
    variables,
    model,
    path,
    WeightsMetadata(
      model=name,
      fields=fields,
      num_classes=3,
      classes=('a', 'b', 'c'),
      preprocessing=Preprocessing(size=32, normalize='imagenet'),
    ),
  )


@pytest.mark.parametrize('name', CASES)
def test_program_equals_model(name, tmp_path):
  source, path = tmp_path / 'x.safetensors', tmp_path / 'x.stablehlo'
  save(name, CASES[name], source)
  description = export.export(str(source), str(path))
  assert description == json.loads((tmp_path / 'x.stablehlo.json').read_text())
  assert description['classes'] == ['a', 'b', 'c']
  assert description['platforms'] == ['cpu', 'cuda', 'tpu']
  program = jax.export.deserialize(bytearray(path.read_bytes()))
  classifier = load_classifier(str(source))
  rng = np.random.default_rng(1)
  for batch in (1, 3):
    images = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
    expected, _ = classifier.forward(classifier.variables, images)
    np.testing.assert_allclose(
      program.call(images), expected, rtol=1e-4, atol=1e-5
    )


def test_predict_with_an_exported_program(tmp_path, capsys):
  source, path = tmp_path / 'x.npz', tmp_path / 'x.stablehlo'
  save('vit_ti16', CASES['vit_ti16'], source)
  images = [np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8)]
  export.export(str(source), str(path))
  (expected,) = load_classifier(str(source)).classify(images)
  (result,) = export.load_exported(str(path)).classify(images)
  assert [p['class'] for p in result['predictions']] == [
    p['class'] for p in expected['predictions']
  ]
  np.testing.assert_allclose(
    [p['probability'] for p in result['predictions']],
    [p['probability'] for p in expected['predictions']],
    rtol=1e-4,
  )

  path.write_bytes(path.read_bytes()[:200])
  assert parser.main(['predict', str(path), 'x.jpg']) == 1
  assert 'damaged' in capsys.readouterr().err
  (tmp_path / 'x.stablehlo.json').unlink()
  assert parser.main(['predict', str(path), 'x.jpg']) == 1
  assert 'x.stablehlo.json' in capsys.readouterr().err


def test_class_names_of_a_file_are_those_that_are_given(
  weights, tmp_path, capsys
):
  """Class names can be changed; other options of an exported program cannot."""
  path, names = str(tmp_path / 'x.stablehlo'), tmp_path / 'names.txt'
  export.export(weights, path, platforms=('cpu',))
  Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / 'x.png')
  image = str(tmp_path / 'x.png')
  names.write_text('azure\nemerald\nruby')
  assert parser.main(['predict', path, image, '--classes', str(names)]) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in ('azure', 'emerald', 'ruby'))
  names.write_text('azure\nemerald')
  assert parser.main(['predict', path, image, '--classes', str(names)]) == 1
  assert '2 class names do not fit a model of 3' in capsys.readouterr().err
  assert parser.main(['predict', path, image, '--image-size', '32']) == 1
  assert 'image_size is fixed' in capsys.readouterr().err


def test_pixels_that_are_not_rounded(weights, tmp_path):
  """With rounding='none' the program takes float32 pixels."""
  classifier = load_classifier(weights)
  classifier.preprocessing = dataclasses.replace(
    classifier.preprocessing, rounding='none'
  )
  described = export.describe(classifier)
  assert described['input'] == 'float32 RGB images (batch, 16, 16, 3)'
  images = np.random.default_rng(0).integers(0, 256, (3, 23, 30, 3), np.uint8)
  batch = np.stack([classifier.read_image(image) for image in images])
  assert batch.dtype == np.float32 and (batch % 1).any()
  program = jax.export.deserialize(
    bytearray(export.serialize(classifier, ('cpu',)))
  )
  logits, _ = classifier.run(list(images))
  np.testing.assert_allclose(program.call(batch), logits, rtol=1e-5, atol=1e-6)


def test_wrong_options(tmp_path):
  with pytest.raises(ValueError, match="'gpu'.*cuda"):
    export.export('x.npz', 'y', platforms=('gpu',))
  with pytest.raises(ValueError, match="'tflite'.*onnx"):
    export.export('x.npz', 'y', fmt='tflite')


def test_onnx_says_what_it_needs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
  save('vit_ti16', CASES['vit_ti16'], tmp_path / 'x.npz')
  with pytest.raises(ImportError, match=r'vit_jax\[onnx\]'):
    export.export(str(tmp_path / 'x.npz'), str(tmp_path / 'x.onnx'), fmt='onnx')
  assert not list(tmp_path.glob('x.onnx*'))


@pytest.mark.parametrize(
  'name, batch', [('vit_ti16', None), ('mixer_s16', None), ('aa_vit_s16', 2)]
)
def test_onnx(tmp_path, name, batch):
  pytest.importorskip('jax2onnx')
  runtime = pytest.importorskip('onnxruntime')
  source, path = tmp_path / 'x.npz', tmp_path / 'x.onnx'
  save(name, CASES[name], source)
  export.export(str(source), str(path), fmt='onnx', batch=batch)
  session = runtime.InferenceSession(str(path))
  images = np.random.default_rng(1).integers(
    0, 256, (batch or 3, 32, 32, 3), np.uint8
  )
  (logits,) = session.run(None, {session.get_inputs()[0].name: images})
  classifier = load_classifier(str(source))
  expected, _ = classifier.forward(classifier.variables, images)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_onnx_refuses_what_it_cannot_hold(tmp_path):
  """jax2onnx converts BiT's max-pool wrongly, so no file is written."""
  pytest.importorskip('jax2onnx')
  pytest.importorskip('onnxruntime')
  save('bit_r50x1', CASES['bit_r50x1'], tmp_path / 'x.npz')
  with pytest.raises(ValueError, match='jax2onnx.*stablehlo'):
    export.export(
      str(tmp_path / 'x.npz'), str(tmp_path / 'x.onnx'), fmt='onnx', batch=2
    )
  assert not list(tmp_path.glob('x.onnx*'))
