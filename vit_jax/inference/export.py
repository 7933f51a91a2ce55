"""Exports a trained model: StableHLO for CPU, CUDA and TPU, or ONNX.

    export('runs/flowers', 'flowers.stablehlo')
    model = load_exported('flowers.stablehlo')
    for result in model.classify(['a.jpg']): ...

The file holds the program with its weights, for any batch size: uint8 images
(B, height, width, 3) in, logits (B, classes) out, normalisation inside. It
needs JAX alone: `jax.export.deserialize(file.read()).call(images)`. Beside it,
FILE.json has class names and preprocessing.

ONNX goes through jax2onnx (an extra: pip install 'vit_jax[onnx]') and has the
same input, output and FILE.json. The result is compared with the model before
it is written: jax2onnx does not convert every operation.
"""

from importlib import metadata
import importlib.util
import json
import pathlib
from typing import Any

import jax
from jax import export as jax_export
from jax.extend import core as jax_core
import jax.numpy as jnp
import numpy as np

from vit_jax.inference.classifier import Classifier, load_classifier
from vit_jax.models.tpu_layout import portable
from vit_jax.weights import Report
from vit_jax.weights.metadata import WeightsMetadata

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(
  weights,
  path: str,
  *,
  fmt: str = 'stablehlo',
  batch: int | None = None,
  platforms=PLATFORMS,
  **options,
) -> dict[str, Any]:
  """Writes `path` and `path`.json.

  Args:
    weights, **options: see `predict.load_classifier`.
    path: file to write.
    fmt: 'stablehlo' or 'onnx'.
    batch: a fixed batch size; None leaves it free.
    platforms: of 'cpu', 'cuda', 'rocm', 'tpu', for StableHLO.

  Returns:
    What is in the JSON file.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: an unknown format or platform, or a model that ONNX cannot hold.
    ImportError: ONNX without jax2onnx.
  """
  if fmt not in ('stablehlo', 'onnx'):
    raise ValueError(f"unknown format {fmt!r}; allowed: 'stablehlo', 'onnx'")
  known = (*PLATFORMS, 'rocm')
  for platform in platforms:
    if platform not in known:
      raise ValueError(
        f'unknown platform {platform!r}; allowed: {", ".join(known)}'
      )
  if fmt == 'onnx':
    _require_onnx()
  classifier = load_classifier(weights, **options)
  described = description(classifier)
  if fmt == 'onnx':
    data = serialize_onnx(classifier, batch)
  else:
    described['platforms'] = list(platforms)
    data = serialize(classifier, platforms, batch)
  text = json.dumps(described, indent=2) + '\n'
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  _write(pathlib.Path(f'{path}.json'), text.encode())
  _write(target, data)
  return json.loads(text)


def _program(classifier: Classifier, batch: int | None):
  """images -> logits, and the abstract images."""
  size = batch or jax_export.symbolic_shape('batch')[0]
  images = jax.ShapeDtypeStruct((size, *classifier.image_size, 3), jnp.uint8)
  return (
    lambda images: classifier.forward(classifier.variables, images)[0],
    images,
  )


def serialize(
  classifier: Classifier, platforms=PLATFORMS, batch: int | None = None
) -> bytes:
  """StableHLO with the weights inside, for any batch size if it is None."""
  logits, images = _program(classifier, batch)
  with portable():
    return bytes(
      jax_export.export(jax.jit(logits), platforms=platforms)(
        images
      ).serialize()
    )


def _require_onnx():
  for name in ('jax2onnx', 'onnxruntime'):
    if importlib.util.find_spec(name) is None:
      raise ImportError(
        f'ONNX needs {name}, which is not installed: pip install '
        "'vit_jax[onnx]'. The default format, stablehlo, needs nothing more"
      )


def serialize_onnx(classifier: Classifier, batch: int | None = None) -> bytes:
  """An ONNX model with the weights inside, checked against the original.

  Raises ValueError if jax2onnx cannot convert the model, or gives another.
  """
  import jax2onnx
  import onnxruntime

  logits, images = _program(classifier, batch)
  remedy = (
    f'jax2onnx {metadata.version("jax2onnx")} cannot convert '
    f'{classifier.name}'
    + (
      ''
      if batch
      else ' with a free batch size; a fixed one (batch, --batch N) may work'
    )
    + '. The format stablehlo holds every model'
  )
  try:
    # Traced here, because jax2onnx replaces functions of Flax while it traces.
    with portable():
      traced = jax_core.jaxpr_as_fun(jax.make_jaxpr(logits)(images))
    data = jax2onnx.to_onnx(
      lambda x: traced(x)[0], [images]
    ).SerializeToString()
    session = onnxruntime.InferenceSession(
      data, providers=['CPUExecutionProvider']
    )
    sample = np.random.default_rng(0).integers(
      0, 256, (batch or 2, *images.shape[1:]), np.uint8
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: sample})
  except Exception as e:  # whatever the converter raises
    raise ValueError(
      f'{remedy} ({type(e).__name__}: {str(e).strip().splitlines()[0][:160]})'
    ) from e
  expected = np.asarray(jax.jit(logits)(sample))
  error = np.abs(found - expected).max()
  if not error <= 1e-4 * max(1.0, np.abs(expected).max()):
    raise ValueError(f'{remedy}: its logits differ by {error:.2g}')
  return data


def description(classifier: Classifier) -> dict[str, Any]:
  """How to use an exported model: what FILE.json holds."""
  height, width = classifier.image_size
  return {
    'input': f'uint8 RGB images (batch, {height}, {width}, 3)',
    'output': (
      f'float32 logits (batch, {classifier.num_classes})'
      if classifier.num_classes
      else 'float32 features'
    ),
    'probabilities': classifier.loss,
    'preprocessing': (
      f'resize to {height}x{width}'
      if classifier.crop == 'squash'
      else f'shorter side to image size / {classifier.crop}, centre crop'
    )
    + f', {classifier.interpolation}; normalisation is inside',
    'versions': {'jax': jax.__version__},
    **classifier.metadata().to_json(),
  }


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
    metadata = WeightsMetadata.from_json(json.loads(beside.read_text()))
    if metadata.model is None or metadata.preprocessing is None:
      raise ValueError('it names no model or does not say how images are fed')
  except (OSError, ValueError) as e:
    raise ValueError(
      f'{beside}: not readable ({e}). It holds the class names '
      'and preprocessing, and belongs beside the program'
    ) from e
  try:
    program = jax_export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
  except OSError:
    raise
  except Exception as e:  # whatever the deserialiser raises on foreign bytes
    raise ValueError(
      f'{path} is not an exported program, or damaged ({type(e).__name__}: {e})'
    ) from e
  return Exported(
    name=metadata.model,
    model=program,
    variables={},
    image_size=metadata.preprocessing.size,
    crop=metadata.preprocessing.crop or 'squash',
    interpolation=metadata.preprocessing.interpolation,
    classes=metadata.classes and list(metadata.classes),
    loss=metadata.loss,
    fields={'num_classes': metadata.num_classes},
    report=Report(source=str(path), format='stablehlo'),
  )


def _write(path: pathlib.Path, data: bytes):
  """A file that appears when complete."""
  partial = path.with_name(path.name + '.partial')
  try:
    partial.write_bytes(data)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
