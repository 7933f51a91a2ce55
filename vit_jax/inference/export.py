"""Exports a trained model: StableHLO for CPU, CUDA and TPU, or ONNX.

    export('runs/flowers', 'flowers.stablehlo')
    classifier = load_exported('flowers.stablehlo')
    for result in classifier.classify(['a.jpg']): ...

The file holds the program with its weights, for any batch size. It takes images
(B, height, width, 3) of pixels in [0, 255], normalizes them, and returns logits
(B, classes). It needs JAX alone:
`jax.export.deserialize(file.read()).call(images)`. FILE.json beside it has the
class names and says how an image on disk becomes the input.

ONNX goes through jax2onnx, an extra (pip install 'vit_jax[onnx]'), and has the
same input, output and FILE.json. jax2onnx does not convert every operation, so
the result is compared with the model before it is written.
"""

from collections.abc import Sequence
import dataclasses
from importlib import metadata
import importlib.util
import json
import os
import pathlib
from typing import Any

import jax
from jax import export as jax_export
from jax.extend import core as jax_core
import jax.numpy as jnp
import numpy as np

from vit_jax.files import write_atomically
from vit_jax.inference.classifier import Classifier, ImageClassifier
from vit_jax.inference.loading import load_classifier
from vit_jax.models.tpu_layout import portable
from vit_jax.weights import WeightsMetadata

FORMATS = ('stablehlo', 'onnx')
PLATFORMS = ('cpu', 'cuda', 'tpu')  # of an export that names none
ALL_PLATFORMS = (*PLATFORMS, 'rocm')


def export(
  weights: str | os.PathLike,
  path: str | os.PathLike,
  *,
  fmt: str | None = None,
  batch: int | None = None,
  platforms: Sequence[str] = PLATFORMS,
  **options: Any,
) -> dict[str, Any]:
  """Writes `path` and `path`.json.

  Args:
    weights: what `load_classifier` takes.
    path: file to write; its directory is made.
    fmt: 'stablehlo' or 'onnx'; None is 'onnx' for a path that ends in .onnx,
      else 'stablehlo'.
    batch: a fixed batch size; None exports a program for every batch size.
    platforms: that a StableHLO program is lowered for, of ALL_PLATFORMS.
    **options: of `load_classifier`: model, module, image_size, classes, fields.

  Returns:
    The contents of the JSON file.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: an unknown format or platform, or a model that ONNX cannot hold.
    ImportError: ONNX without jax2onnx.
  """
  if fmt is None:
    fmt = 'onnx' if str(path).endswith('.onnx') else 'stablehlo'
  _check_choice('format', fmt, FORMATS)
  for platform in platforms:
    _check_choice('platform', platform, ALL_PLATFORMS)
  if fmt == 'onnx':
    _require_onnx()
  classifier = load_classifier(weights, **options)
  description = describe(classifier)
  if fmt == 'onnx':
    data = serialize_onnx(classifier, batch)
  else:
    description['platforms'] = list(platforms)
    data = serialize(classifier, platforms, batch)
  text = json.dumps(description, indent=2) + '\n'
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  # The program comes last, so that it never stands beside an older description.
  write_atomically(_description_path(path), text)
  write_atomically(path, data)
  return json.loads(text)


def _check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(
      f'unknown {what} {value!r}; allowed: {", ".join(map(repr, allowed))}'
    )


def _description_path(path: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(f'{os.fspath(path)}.json')


def describe(classifier: Classifier) -> dict[str, Any]:
  """How to use an exported program: the contents of FILE.json.

  The keys of `WeightsMetadata.to_json`, and a few lines for people.
  """
  height, width = classifier.preprocessing.size
  dtype = classifier.preprocessing.pixel_dtype
  return {
    'input': f'{dtype} RGB images (batch, {height}, {width}, 3)',
    'output': (
      f'float32 logits (batch, {classifier.num_classes})'
      if classifier.num_classes
      else 'float32 features'
    ),
    'probabilities': classifier.loss,
    'images': f'{classifier.preprocessing}; normalized inside the program',
    'versions': {'jax': jax.__version__},
    **classifier.metadata().to_json(),
  }


def _program(classifier: Classifier, batch: int | None):
  """The function images -> logits, and the shape of its images."""
  images = jax.ShapeDtypeStruct(
    (
      batch or jax_export.symbolic_shape('batch')[0],
      *classifier.preprocessing.size,
      3,
    ),
    jnp.dtype(classifier.preprocessing.pixel_dtype),
  )
  return (
    lambda images: classifier.forward(classifier.variables, images)[0],
    images,
  )


def serialize(
  classifier: Classifier,
  platforms: Sequence[str] = PLATFORMS,
  batch: int | None = None,
) -> bytes:
  """StableHLO with the weights inside; see `export` for the arguments."""
  logits, images = _program(classifier, batch)
  with portable():
    program = jax_export.export(jax.jit(logits), platforms=platforms)(images)
  return bytes(program.serialize())


def _require_onnx() -> None:
  for name in ('jax2onnx', 'onnxruntime'):
    if importlib.util.find_spec(name) is None:
      raise ImportError(
        f'ONNX needs {name}, which is not installed: pip install '
        "'vit_jax[onnx]'. The default format, stablehlo, needs nothing more"
      )


def serialize_onnx(classifier: Classifier, batch: int | None = None) -> bytes:
  """An ONNX model with the weights inside.

  Its logits are compared with those of the model on random images.

  Raises:
    ValueError: jax2onnx cannot convert the model, or gives other logits.
  """
  logits, images = _program(classifier, batch)
  advice = (
    f'jax2onnx {metadata.version("jax2onnx")} cannot convert '
    f'{classifier.name}'
    + ('' if batch else ' with a free batch size; --batch N may work')
    + '. The format stablehlo holds every model'
  )
  sample = np.random.default_rng(0).integers(
    0, 256, (batch or 2, *images.shape[1:])
  )
  sample = sample.astype(images.dtype)
  try:
    data = _convert_to_onnx(logits, images)
    converted = _run_onnx(data, sample)
  except Exception as e:  # jax2onnx and onnxruntime raise many types
    raise ValueError(
      f'{advice} ({type(e).__name__}: {str(e).strip().splitlines()[0][:160]})'
    ) from e
  expected = np.asarray(jax.jit(logits)(sample))
  error = np.abs(converted - expected).max()
  # Written so that NaN is an error.
  if not error <= 1e-4 * max(1.0, np.abs(expected).max()):
    raise ValueError(f'{advice}: its logits differ by {error:.2g}')
  return data


def _convert_to_onnx(logits, images: jax.ShapeDtypeStruct) -> bytes:
  import jax2onnx  # pyright: ignore[reportMissingImports]

  # jax2onnx replaces functions of Flax while it traces, which breaks some
  # models. It gets a program that was traced before, without Flax in it.
  with portable():
    traced = jax_core.jaxpr_as_fun(jax.make_jaxpr(logits)(images))
  return jax2onnx.to_onnx(lambda x: traced(x)[0], [images]).SerializeToString()


def _run_onnx(data: bytes, images: np.ndarray) -> np.ndarray:
  import onnxruntime  # pyright: ignore[reportMissingImports]

  session = onnxruntime.InferenceSession(
    data, providers=['CPUExecutionProvider']
  )
  (logits,) = session.run(None, {session.get_inputs()[0].name: images})
  return logits


@dataclasses.dataclass(eq=False, kw_only=True)
class ExportedClassifier(ImageClassifier):
  """An exported program, used like a `Classifier`.

  Attributes:
    program: images (B, height, width, 3) -> logits, with the weights inside.
  """

  program: jax_export.Exported

  def forward(
    self, variables: Any, images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Logits; the weights are in the program, which has no intermediates."""
    return self.program.call(images), {}


def load_exported(path: str | os.PathLike) -> ExportedClassifier:
  """Loads an exported StableHLO file and its description.

  Raises:
    ValueError: not an exported file, or FILE.json is missing or damaged.
  """
  description = _description_path(path)
  try:
    record = WeightsMetadata.from_json(json.loads(description.read_text()))
    if record.model is None or record.preprocessing is None:
      raise ValueError('it names no model, or does not say how to feed it')
  except (OSError, ValueError) as e:
    raise ValueError(
      f'{description} is not readable ({e}). It holds the class names and the '
      'preprocessing, and belongs beside the program'
    ) from e
  data = pathlib.Path(path).read_bytes()
  try:
    program = jax_export.deserialize(bytearray(data))
  except Exception as e:  # the deserializer raises many types on foreign bytes
    raise ValueError(
      f'{path} is not an exported program, or damaged ({type(e).__name__}: {e})'
    ) from e
  return ExportedClassifier(
    name=record.model,
    num_classes=record.num_classes or 0,
    preprocessing=record.preprocessing,
    classes=list(record.classes) if record.classes else None,
    loss=record.loss,
    source=str(path),
    program=program,
  )
