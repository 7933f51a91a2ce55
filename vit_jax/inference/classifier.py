"""Classifiers: a model with its weights, preprocessing and class names.

    classifier = load_classifier('runs/flowers')
    for result in classifier.classify(['a.jpg', 'b.jpg']):
      print(result['image'], result['predictions'][0])

`vit_jax.inference.loading` makes a classifier from weights,
`vit_jax.inference.export` from an exported program.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from vit_jax.data.classes import replace_names
from vit_jax.data.decode import MAX_PIXELS, BadImage, Decoding, decode
from vit_jax.data.headers import MAX_BYTES
from vit_jax.data.names import printable
from vit_jax.data.transforms import eval_image
from vit_jax.files import read_regular
from vit_jax.models.compute_weights import converted_weights
from vit_jax.parallel.mesh import make_mesh, put_batch, put_replicated
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment
from vit_jax.weights import Report, WeightsMetadata

# An image: a path, the bytes of a file, or a uint8 array (H, W, 3).
Image = str | os.PathLike | bytes | np.ndarray
_READING_THREADS = 8
# How logits become probabilities: a softmax over all classes, or a sigmoid for
# each class of a model that gives several labels to an image.
_PROBABILITIES = {
  'softmax': lambda logits: jax.nn.softmax(logits, axis=-1),
  'sigmoid': jax.nn.sigmoid,
}


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageClassifier(abc.ABC):
  """Classifies images; the base class of `Classifier` and `ExportedClassifier`.

  Attributes:
    name: registered name of the model.
    num_classes: number of outputs of the head; 0 for a model without a head,
      whose logits are features.
    preprocessing: how an image becomes the model's input.
    classes: class names in the order of the outputs; None if they are not
      known.
    loss: the loss that the head was trained with, 'softmax' or 'sigmoid'.
    variables: {'params': ..., 'batch_stats': ...} of numpy arrays; empty for an
      exported program, which has its weights inside.
    source: what the classifier was loaded from, for messages.
  """

  name: str
  num_classes: int
  preprocessing: Preprocessing
  classes: list[str] | None = None
  loss: str = 'softmax'
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  source: str = ''
  max_pixels: int = MAX_PIXELS

  @abc.abstractmethod
  def forward(
    self, variables: Mapping[str, Any], images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Runs the model; a pure function, which can be jitted.

    Args:
      variables: the attribute `variables`, or values of the same structure.
      images: (B, height, width, 3), as `read_image` returns them.

    Returns:
      Logits (B, num_classes), and intermediates.
    """

  def probabilities(
    self, variables: Mapping[str, Any], images: jax.Array
  ) -> jax.Array:
    """The probabilities of the classes; a pure function.

    Args:
      variables, images: as in `forward`.

    Returns:
      (B, num_classes). For the loss 'sigmoid' they need not sum to 1.
    """
    logits, _ = self.forward(variables, images)
    return _PROBABILITIES[self.loss](logits)

  def class_name(self, index: int) -> str:
    """The name of a class, such as 'class 17' if names are not known."""
    return self.classes[index] if self.classes else f'class {index}'

  def set_classes(self, classes: Sequence[str]) -> None:
    """Sets the class names, in the order of the outputs.

    If the weights have names, those of the same classes in another order keep
    the order of the weights; other names replace theirs one by one.

    Raises:
      ValueError: there is not one name for each class, or some names are those
        of other outputs of the weights.
    """
    if len(classes) != self.num_classes:
      raise ValueError(
        f'{len(classes)} class names do not fit a model of {self.num_classes} '
        'classes: give one name per class'
      )
    self.classes = replace_names(classes, self.classes, self.source)

  def read_image(self, image: Image) -> np.ndarray:
    """Reads an image, and resizes and crops it for the model.

    Returns:
      (height, width, 3) with pixels in [0, 255], not yet normalized.

    Raises:
      OSError: the file cannot be read.
      BadImage: the data is not an image, or is truncated.
    """
    return eval_image(self.read_photo(image), self.preprocessing)

  def read_photo(self, image: Image) -> np.ndarray:
    """Reads an image at its own resolution, uint8 (H, W, 3).

    Raises:
      OSError: the file cannot be read.
      BadImage: the data is not an image, or is truncated.
    """
    if isinstance(image, str | os.PathLike):
      image = read_regular(os.fspath(image), MAX_BYTES)
    decoding = Decoding(
      upright=self.preprocessing.upright, max_pixels=self.max_pixels
    )
    return decode(image, decoding)

  @functools.cached_property
  def _mesh(self) -> Mesh | None:
    """The devices that share a batch; None for one device.

    An exported program is for one device.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or not self.variables:
      return None
    return make_mesh('data', devices=devices)

  @functools.cached_property
  def _on_mesh(self) -> tuple[Callable[[np.ndarray], Any], Any]:
    """What puts a batch onto the devices, and the variables there."""
    mesh = self._mesh
    if mesh is None:
      return jax.device_put, self.on_device
    return lambda batch: put_batch(batch, mesh), put_replicated(
      self._weights, mesh
    )

  @property
  def _weights(self) -> Any:
    """The variables in the types that the program computes with."""
    return self.variables

  @functools.cached_property
  def on_device(self) -> Any:
    """The variables as arrays on the device, as the program needs them."""
    return jax.device_put(self._weights)

  def classify(
    self,
    images: Sequence[Image],
    *,
    top_k: int = 5,
    batch_size: int = 32,
    fixed: bool = False,
  ) -> Iterator[dict[str, Any]]:
    """Classifies images, one batch at a time, on all local devices.

    The program is compiled when a batch size is used for the first time.

    Args:
      images: paths, bytes of files, or uint8 arrays.
      top_k: how many of the most probable classes to return.
      batch_size: number of images in a batch; rounded up to a multiple of the
        number of devices.
      fixed: keep the batch size for fewer images, so that the program of an
        earlier call is used.

    Returns:
      An iterator over a result for each image, in order: {'image': its path or
      its number, 'predictions': [{'class', 'index', 'probability'}, ...]}, or
      for an image that cannot be read {'image', 'error': the reason}.

    Raises:
      ValueError: the model has no head, or an argument is below 1.
    """
    if not self.num_classes:
      raise ValueError(
        f'{self.source} has no head, so it has features but no classes: '
        'fine-tune it first (vit-jax finetune)'
      )
    if batch_size < 1 or top_k < 1:
      raise ValueError(
        f'batch_size={batch_size} and top_k={top_k} must be at least 1'
      )
    if not fixed:
      batch_size = min(batch_size, max(1, len(images)))
    devices = self._mesh.size if self._mesh is not None else 1
    if batch_size >= devices:
      batch_size = -(-batch_size // devices) * devices
    return self._results(images, min(top_k, self.num_classes), batch_size)

  def _results(
    self, images: Sequence[Image], top_k: int, batch_size: int
  ) -> Iterator[dict[str, Any]]:
    for start, loaded in self.read_ahead(images, batch_size):
      readable = [x for x in loaded if isinstance(x, np.ndarray)]
      best = iter(self._best_classes(readable, top_k, batch_size))
      for position, x in enumerate(loaded, start):
        image = images[position]
        is_path = isinstance(image, str | os.PathLike)
        result = {'image': printable(str(image)) if is_path else position}
        if isinstance(x, np.ndarray):
          yield {**result, 'predictions': next(best)}
        else:
          yield {**result, 'error': why_unreadable(x)}

  def read_ahead(
    self, images: Sequence[Image], batch_size: int
  ) -> Iterator[tuple[int, list[np.ndarray | Exception]]]:
    """Reads the images of the next batch while one is classified.

    Yields:
      The number of the first image of a batch, and its images; the error takes
      the position of an image that cannot be read.
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
    """The `top_k` predictions for each of at most `batch_size` images."""
    if not images:
      return []
    batch = np.zeros((batch_size, *images[0].shape), images[0].dtype)
    batch[: len(images)] = images
    put, variables = self._on_mesh
    if self._mesh is not None and batch_size < self._mesh.size:
      put, variables = jax.device_put, self.on_device
    probabilities, indices = jax.device_get(
      self._top_classes(variables, put(batch), top_k)
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
    """The jitted function of `classify`; cached, so that it compiles once."""

    def top_classes(variables, images, count):
      return jax.lax.top_k(self.probabilities(variables, images), count)

    return jax.jit(top_classes, static_argnums=2)


@dataclasses.dataclass(eq=False, kw_only=True)
class Classifier(ImageClassifier):
  """A model with its weights.

  Attributes:
    model: Linen module.
    fields: fields of the model that differ from those of its registered name.
    module: name of the Python module that registers the model, '' for a model
      of this package.
    report: what loading did with every tensor.
  """

  model: nn.Module
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  module: str = ''
  report: Report | None = None

  def metadata(self) -> WeightsMetadata:
    """The metadata to write with the weights."""
    return WeightsMetadata(
      model=self.name,
      module=self.module,
      fields=self.fields,
      num_classes=self.num_classes,
      classes=tuple(self.classes) if self.classes else None,
      preprocessing=self.preprocessing,
      loss=self.loss,
    )

  @functools.cached_property
  def _weights(self) -> Any:
    dtype = jnp.dtype(getattr(self.model, 'dtype', jnp.float32))
    if dtype == jnp.float32:
      return self.variables
    images = jax.ShapeDtypeStruct((1, *self.preprocessing.size, 3), np.float32)
    return converted_weights(self.forward, self.variables, images)

  def normalize(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Normalizes pixels in [0, 255] as the model needs them, to float32."""
    return augment.normalize(images, self.preprocessing.normalize, jnp.float32)

  def forward(
    self, variables: Mapping[str, Any], images: jax.Array
  ) -> tuple[jax.Array, dict[str, Any]]:
    """See `ImageClassifier.forward`."""
    # `apply` has no type for the results of the model.
    result: Any = self.model.apply(
      variables, self.normalize(images), train=False
    )
    logits, intermediates = result
    return logits, intermediates

  def run(
    self, images: Sequence[Image], *, attention: bool = False
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs the model on some images, in one batch.

    Args:
      images: paths, bytes of files, or uint8 arrays.
      attention: whether to return the attention maps too.

    Returns:
      Logits (B, num_classes), and a dict of the model's intermediates. It has
      the features before the head, 'pre_logits' (B, D), and with `attention` a
      list 'attention' with an array (B, heads, tokens, tokens) for each layer.

    Raises:
      OSError, BadImage: an image cannot be read.
      ValueError: the model cannot return attention maps.
    """
    if attention and not hasattr(self.model, 'return_attention'):
      raise ValueError(
        f'{self.name} cannot return attention maps: its module '
        f'{type(self.model).__name__} has no field return_attention'
      )
    batch = np.stack([self.read_image(image) for image in images])
    out = self._run(self.on_device, jax.device_put(batch), attention)
    return jax.device_get(out)

  @functools.cached_property
  def _run(self):
    """The jitted function of `run`; cached, so that it compiles once."""

    def run(variables, images, attention):
      model = self.model
      if attention:
        model = model.clone(return_attention=True)
      return model.apply(variables, self.normalize(images), train=False)

    return jax.jit(run, static_argnums=2)


def why_unreadable(error: Exception) -> str:
  """Why an image cannot be read, without its path."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror.lower()
  return str(error)
