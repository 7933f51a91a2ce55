"""Classifiers: a model with its weights, and all that is needed to use it.

    classifier = load_classifier('runs/flowers')
    for result in classifier.classify(['a.jpg', 'b.jpg']):
      print(result['image'], result['predictions'][0])

`vit_jax.inference.loading` makes a classifier from weights,
`vit_jax.inference.export` from an exported program.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import os
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.decode import BadImage, decode
from vit_jax.data.transforms import eval_image
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment
from vit_jax.weights import Report, WeightsMetadata

# An image: a path, the bytes of a file, or uint8 (H, W, 3).
Image = str | os.PathLike | bytes | np.ndarray
_READING_THREADS = 8
# How logits become probabilities: a softmax over all classes, or a sigmoid for
# each class of a model that gives several labels to an image.
_PROBABILITIES = {
  'softmax': lambda logits: jax.nn.softmax(logits, axis=-1),
  'sigmoid': jax.nn.sigmoid,
}


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageClassifier:
  """Classifies images; the base of `Classifier` and `ExportedClassifier`.

  Attributes:
    name: registered name of the model.
    num_classes: outputs of the head; 0 for a model without one, whose logits
      are features.
    preprocessing: how an image becomes the model's input.
    classes: names of the outputs, None if they are not known.
    loss: 'softmax' or 'sigmoid', which the head was trained with.
    variables: {'params': ..., 'batch_stats': ...} of numpy arrays.
    source: what it was loaded from, for messages.
  """

  name: str
  num_classes: int
  preprocessing: Preprocessing
  classes: list[str] | None = None
  loss: str = 'softmax'
  variables: Any = dataclasses.field(default_factory=dict)
  source: str = ''

  def forward(
    self, variables: Any, images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Logits (B, num_classes) and intermediates; a pure function.

    Args:
      variables: of this classifier, or of the same structure.
      images: (B, height, width, 3) as `read_image` gives them.
    """
    raise NotImplementedError

  def probabilities(self, variables: Any, images: jax.Array) -> jax.Array:
    """(B, num_classes) of images as `forward` takes them; a pure function."""
    logits, _ = self.forward(variables, images)
    return _PROBABILITIES[self.loss](logits)

  def class_name(self, index: int) -> str:
    """The name of a class, 'class 17' if names are not known."""
    return self.classes[index] if self.classes else f'class {index}'

  def set_classes(self, classes: Sequence[str]) -> None:
    """Names the classes; ValueError unless there is a name for each."""
    if len(classes) != self.num_classes:
      raise ValueError(
        f'{len(classes)} class names for a model of {self.num_classes} classes'
      )
    self.classes = list(classes)

  def read_image(self, image: Image) -> np.ndarray:
    """An image as the model takes it, before normalization.

    Returns:
      (height, width, 3), pixels in [0, 255].

    Raises:
      OSError: there is no such file.
      BadImage: it is not an image, or cut short.
    """
    if isinstance(image, str | os.PathLike):
      image = pathlib.Path(image).read_bytes()
    return eval_image(decode(image), self.preprocessing)

  @functools.cached_property
  def on_device(self) -> Any:
    """The variables, on the device."""
    return jax.device_put(self.variables)

  def classify(
    self, images: Sequence[Image], *, top_k: int = 5, batch_size: int = 32
  ) -> Iterator[dict[str, Any]]:
    """Classifies images, one batch at a time.

    The program is compiled once for each batch size, at its first use.

    Args:
      images: paths, bytes of files, or uint8 arrays.
      top_k: how many of the most probable classes to give.
      batch_size: images that go through the model together.

    Returns:
      An iterator over results in the order of the images: {'image': path or
      position, 'predictions': [{'class', 'index', 'probability'}, ...]}, or
      {'image', 'error': why it cannot be read}.

    Raises:
      ValueError: the model has no head, or an argument is below 1.
    """
    if not self.num_classes:
      raise ValueError(
        f'{self.source} has no head: it gives features, not classes. '
        'Fine-tune it first: vit-jax finetune'
      )
    if batch_size < 1 or top_k < 1:
      raise ValueError(
        f'batch_size={batch_size} and top_k={top_k} must be at least 1'
      )
    batch_size = min(batch_size, max(1, len(images)))
    return self._results(images, min(top_k, self.num_classes), batch_size)

  def _results(
    self, images: Sequence[Image], top_k: int, batch_size: int
  ) -> Iterator[dict[str, Any]]:
    for start, loaded in self._read_ahead(images, batch_size):
      readable = [x for x in loaded if isinstance(x, np.ndarray)]
      best = iter(self._best_classes(readable, top_k, batch_size))
      for position, x in enumerate(loaded, start):
        image = images[position]
        is_path = isinstance(image, str | os.PathLike)
        result = {'image': str(image) if is_path else position}
        if isinstance(x, np.ndarray):
          yield {**result, 'predictions': next(best)}
        else:
          yield {**result, 'error': _reason(x)}

  def _read_ahead(
    self, images: Sequence[Image], batch_size: int
  ) -> Iterator[tuple[int, list[np.ndarray | Exception]]]:
    """(position of the first, images or why they cannot be read) of batches.

    A batch is read by threads while the one before it is classified.
    """

    def read(image: Image) -> np.ndarray | Exception:
      try:
        return self.read_image(image)
      except (OSError, BadImage) as e:
        return e

    with futures.ThreadPoolExecutor(_READING_THREADS) as pool:
      submit = lambda start: [
        pool.submit(read, image) for image in images[start : start + batch_size]
      ]
      waiting = submit(0)
      for start in range(0, len(images), batch_size):
        loaded = [future.result() for future in waiting]
        waiting = submit(start + batch_size)
        yield start, loaded

  def _best_classes(
    self, images: list[np.ndarray], top_k: int, batch_size: int
  ) -> list[list[dict[str, Any]]]:
    """The predictions for each of at most `batch_size` images."""
    if not images:
      return []
    batch = np.zeros((batch_size, *images[0].shape), images[0].dtype)
    batch[: len(images)] = images
    probabilities, indices = jax.device_get(
      self._top_classes(self.on_device, batch, top_k)
    )
    return [
      [
        {
          'class': self.class_name(int(index)),
          'index': int(index),
          'probability': float(probability),
        }
        for index, probability in zip(*row, strict=True)
      ]
      for row in list(zip(indices, probabilities, strict=True))[: len(images)]
    ]

  @functools.cached_property
  def _top_classes(self):
    """The jitted program of `classify`, which keeps what it has compiled."""

    def top_classes(variables, images, count):
      return jax.lax.top_k(self.probabilities(variables, images), count)

    return jax.jit(top_classes, static_argnums=2)


@dataclasses.dataclass(eq=False, kw_only=True)
class Classifier(ImageClassifier):
  """A model with its weights.

  Attributes:
    model: Linen module.
    fields: fields of the model that differ from those of its name.
    module: name of the Python module that registers the model, '' for a model
      of this package.
    report: what loading did with every tensor.
  """

  model: nn.Module
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  module: str = ''
  report: Report | None = None

  def metadata(self) -> WeightsMetadata:
    """The record that is written beside these weights."""
    return WeightsMetadata(
      model=self.name,
      module=self.module,
      fields=self.fields,
      num_classes=self.num_classes,
      classes=tuple(self.classes) if self.classes else None,
      preprocessing=self.preprocessing,
      loss=self.loss,
    )

  def normalize(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Pixels in [0, 255] as float32 in the range that the model takes."""
    return augment.normalize(images, self.preprocessing.normalize, jnp.float32)

  def forward(
    self, variables: Any, images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """See `ImageClassifier.forward`."""
    # Flax does not know what the model returns.
    result: Any = self.model.apply(
      variables, self.normalize(images), train=False
    )
    logits, intermediates = result
    return logits, intermediates

  def run(
    self, images: Sequence[Image], *, attention: bool = False
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and intermediates of some images, all in one batch.

    Args:
      images: paths, bytes of files, or uint8 arrays.
      attention: also return the attention maps.

    Returns:
      (B, num_classes) and a dict with 'pre_logits' (B, D), the features before
      the head, and the model's other intermediates; with `attention` also
      'attention', a (B, heads, tokens, tokens) array for each layer.

    Raises:
      OSError, BadImage: an image cannot be read.
      ValueError: the model forms no attention maps.
    """
    if attention and not hasattr(self.model, 'return_attention'):
      raise ValueError(
        f'{self.name} forms no attention maps: its module '
        f'{type(self.model).__name__} has no field return_attention'
      )
    batch = np.stack([self.read_image(image) for image in images])
    return jax.device_get(self._run(self.on_device, batch, attention))

  @functools.cached_property
  def _run(self):
    """The jitted program of `run`, which keeps what it has compiled."""

    def run(variables, images, attention):
      model = self.model
      if attention:
        model = model.clone(return_attention=True)
      return model.apply(variables, self.normalize(images), train=False)

    return jax.jit(run, static_argnums=2)


def _reason(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror.lower()
  return str(error)
