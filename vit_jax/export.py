"""Exports a trained model as one StableHLO program for CPU, CUDA and TPU.

    export('runs/flowers', 'flowers.stablehlo')
    model = load_exported('flowers.stablehlo')
    for result in model.classify(['a.jpg']): ...

The file holds the program with its weights, for any batch size: uint8 images
(B, height, width, 3) in, logits (B, classes) out, normalisation inside. It
needs JAX alone: `jax.export.deserialize(file.read()).call(images)`. Beside it,
FILE.json has class names and preprocessing.
"""

import json
import pathlib
from typing import Any

import jax
from jax import export as jax_export
import jax.numpy as jnp

from vit_jax.predict import Classifier, load_classifier
from vit_jax.weights import Report

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(weights, path: str, *, model: str | None = None, image_size=None,
           platforms=PLATFORMS, **options) -> dict[str, Any]:
  """Writes `path` and `path`.json.

  Args:
    weights, model, image_size, **options: see `predict.load_classifier`.
    path: file to write.
    platforms: of 'cpu', 'cuda', 'rocm', 'tpu'.

  Returns:
    What is in the JSON file.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: an unknown platform.
  """
  known = (*PLATFORMS, 'rocm')
  for platform in platforms:
    if platform not in known:
      raise ValueError(f'unknown platform {platform!r}; allowed: '
                       f'{", ".join(known)}')
  classifier = load_classifier(weights, model=model, image_size=image_size,
                               **options)
  described = description(classifier)
  described['platforms'] = list(platforms)
  data = serialize(classifier, platforms)
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  _write(pathlib.Path(f'{path}.json'),
         (json.dumps(described, indent=2) + '\n').encode())
  _write(target, data)
  return described


def serialize(classifier: Classifier, platforms=PLATFORMS) -> bytes:
  """The program with its weights, for any batch size."""
  batch, = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
      (batch, *classifier.image_size, 3), jnp.uint8)

  @jax.jit
  def logits(images):
    return classifier.forward(classifier.variables, images)[0]

  return bytes(jax_export.export(logits, platforms=platforms)(
      images).serialize())


def description(classifier: Classifier) -> dict[str, Any]:
  """How to use an exported model: what FILE.json holds."""
  height, width = classifier.image_size
  return {
      'input': f'uint8 RGB images (batch, {height}, {width}, 3)',
      'output': (f'float32 logits (batch, {classifier.num_classes})'
                 if classifier.num_classes else 'float32 features'),
      'probabilities': classifier.loss,
      'preprocessing': (
          f'resize to {height}x{width}' if classifier.crop == 'squash' else
          f'shorter side to image size / {classifier.crop}, centre crop')
      + f', {classifier.interpolation}; normalisation is inside',
      'versions': {'jax': jax.__version__}, **classifier.metadata()}


class Exported(Classifier):
  """An exported program in the place of a model; see `load_exported`."""

  @property
  def num_classes(self) -> int:
    return self.fields['num_classes']

  def forward(self, variables, images):
    return self.model.call(images), {}


def load_exported(path: str) -> Exported:
  """An exported file, to be used as `predict.load_classifier`'s result.

  Raises:
    ValueError: not an exported file, or FILE.json is missing.
  """
  beside = pathlib.Path(f'{path}.json')
  try:
    described = json.loads(beside.read_text())
    config = described['config']
  except (OSError, ValueError, KeyError) as e:
    raise ValueError(f'{beside}: not readable ({e}). It holds the class names '
                     'and preprocessing, and belongs beside the program') from e
  try:
    program = jax_export.deserialize(
        bytearray(pathlib.Path(path).read_bytes()))
  except OSError:
    raise
  except Exception as e:  # whatever the deserialiser raises on foreign bytes
    raise ValueError(f'{path} is not an exported program, or damaged '
                     f'({type(e).__name__}: {e})') from e
  return Exported(
      name=config['model']['name'], model=program, variables={},
      image_size=tuple(described['image_size']),
      crop=config['eval']['crop'] or 'squash',
      interpolation=config['eval']['interpolation'],
      classes=described['classes'], loss=config['loss']['name'],
      fields={'num_classes': described['num_classes']},
      report=Report(source=str(path), format='stablehlo'))


def _write(path: pathlib.Path, data: bytes):
  """A file that appears when complete."""
  partial = path.with_name(path.name + '.partial')
  try:
    partial.write_bytes(data)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
