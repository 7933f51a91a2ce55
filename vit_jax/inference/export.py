"""Exports a trained model: StableHLO for CPU, CUDA and TPU, or ONNX.

    export('runs/flowers', 'flowers.stablehlo')
    classifier = load_exported('flowers.stablehlo')
    for result in classifier.classify(['a.jpg']): ...

A StableHLO file has a program with its weights, for any batch size. The program
takes images (B, height, width, 3) with pixels in [0, 255], normalizes them, and
returns logits (B, classes). JAX is all that is needed to run it:
`jax.export.deserialize(file.read()).call(images)`. FILE.json, in the same
directory, has the class names and says how an image becomes the input.

An ONNX file has the same input and output, and a FILE.json. It is made by
jax2onnx (pip install 'vit_jax[onnx]'), which cannot convert every operation, so
its results are compared with the model's before the file is written.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
from importlib import metadata
import importlib.util
import json
import os
from typing import Any

from etils import epath
import jax
from jax import export as jax_export
from jax.extend import core as jax_core
import jax.numpy as jnp
import numpy as np

from vit_jax.files import as_path, read_regular, read_text, write_atomically
from vit_jax.inference.classifier import Classifier, ImageClassifier
from vit_jax.inference.loading import load_classifier
from vit_jax.models.platform import traced_for
from vit_jax.text import json_checksum
from vit_jax.weights import WeightsMetadata

FORMATS = ('stablehlo', 'onnx')
PLATFORMS = ('cpu', 'cuda', 'tpu')  # the default of `export`
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
  """Exports a model with its weights to the files `path` and `path`.json.

  Args:
    weights: the first argument of `load_classifier`.
    path: file to write; its directory is created.
    fmt: 'stablehlo' or 'onnx'; None is 'onnx' for a path that ends in .onnx,
      else 'stablehlo'.
    batch: a fixed batch size; None exports a program for every batch size.
    platforms: platforms that a StableHLO program can run on, of ALL_PLATFORMS.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    The contents of the JSON file.

  Raises:
    WeightsError: the weights cannot be read, or are of another model.
    ValueError: the format or a platform is unknown, or the model cannot be
      converted to ONNX.
    ImportError: jax2onnx or onnxruntime is not installed.
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
  description['program'] = hashlib.sha256(data).hexdigest()
  description = json.loads(json.dumps(description))
  description['checksum'] = json_checksum(description)
  text = json.dumps(description, indent=2) + '\n'
  as_path(path).parent.mkdir(parents=True, exist_ok=True)
  # The program is written last, so that a new program never has the description
  # of an older one.
  write_atomically(_description_path(path), text)
  write_atomically(path, data)
  return json.loads(text)


def _check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(
      f'unknown {what} {value!r}; allowed: {", ".join(map(repr, allowed))}'
    )


def _description_path(path: str | os.PathLike) -> epath.Path:
  path = as_path(path)
  return path.with_name(f'{path.name}.json')


def describe(classifier: Classifier) -> dict[str, Any]:
  """The contents of FILE.json, which say how to use an exported program.

  They are the keys of `WeightsMetadata.to_json`, and a few texts for people.
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


def _program(
  classifier: Classifier, batch: int | None
) -> tuple[Callable[[jax.Array], jax.Array], jax.ShapeDtypeStruct]:
  """The function from images to logits, and the shape of its images."""
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
  """A StableHLO program with the weights; see `export` for the arguments."""
  logits, images = _program(classifier, batch)
  with traced_for('any'):
    program = jax_export.export(jax.jit(logits), platforms=platforms)(images)
  return bytes(program.serialize())


def _require_onnx() -> None:
  """Raises ImportError if a package for ONNX is not installed."""
  for name in ('jax2onnx', 'onnxruntime'):
    if importlib.util.find_spec(name) is None:
      raise ImportError(
        f'ONNX needs {name}, which is not installed: pip install '
        "'vit_jax[onnx]', or use the format stablehlo, which does not need it"
      )


def serialize_onnx(classifier: Classifier, batch: int | None = None) -> bytes:
  """An ONNX model with the weights.

  Its logits on random images are compared with those of the model.

  Args:
    classifier: the model.
    batch: a fixed batch size, or None for any.

  Raises:
    ValueError: jax2onnx cannot convert the model, or the logits differ.
  """
  logits, images = _program(classifier, batch)
  advice = (
    f'jax2onnx {metadata.version("jax2onnx")} cannot convert '
    f'{classifier.name}'
    + (
      ''
      if batch
      else ' for any batch size; a fixed one may work (--batch-size N)'
    )
    + '. The format stablehlo works for every model'
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
  # `not <=` instead of `>`, so that NaN is an error.
  if not error <= 1e-4 * max(1.0, np.abs(expected).max()):
    raise ValueError(f'{advice}: its logits differ by {error:.2g}')
  return data


def _convert_to_onnx(
  logits: Callable[[jax.Array], jax.Array], images: jax.ShapeDtypeStruct
) -> bytes:
  import jax2onnx  # pyright: ignore[reportMissingImports]

  # jax2onnx replaces functions of Flax while it traces, which breaks some
  # models. So it gets a program that is traced already and does not call Flax.
  with traced_for('any'):
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
  """An exported program, which is used like a `Classifier`.

  Attributes:
    program: the program, which has the weights and maps images
      (B, height, width, 3) to logits.
  """

  program: jax_export.Exported

  def forward(
    self, variables: Mapping[str, Any], images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Logits (B, num_classes) and no intermediates; `variables` is not used."""
    return self.program.call(images), {}


def load_exported(path: str | os.PathLike) -> ExportedClassifier:
  """Loads an exported StableHLO file and its description.

  Args:
    path: the file; `path`.json must be in the same directory.

  Raises:
    ValueError: the file is not an exported program, or FILE.json is missing or
      damaged.
  """
  description = _description_path(path)
  try:
    values = json.loads(read_text(description))
    checksum = values.pop('checksum', None)  # version 0.1.0 wrote none
    if checksum not in (None, json_checksum(values)):
      raise ValueError('its values are not those that were written')
    record = WeightsMetadata.from_json(values)
    if record.model is None or record.preprocessing is None:
      raise ValueError('it lacks the name or the preprocessing of the model')
  except Exception as e:  # damaged values can raise anything
    raise ValueError(
      f'{description} cannot be read ({e}): it has the class names and the '
      'preprocessing, and must be in the directory of the program'
    ) from e
  try:
    data = read_regular(path)
    expected = values.get('program')
    if expected not in (None, hashlib.sha256(data).hexdigest()):
      raise ValueError(
        f'its bytes are not those for which {description.name} was written'
      )
    program = jax_export.deserialize(bytearray(data))
  except Exception as e:  # the deserializer raises many types on foreign bytes
    raise ValueError(
      f'{path} is not an exported program, or is damaged '
      f'({type(e).__name__}: {e})'
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
