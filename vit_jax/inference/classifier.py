"""Classifies images with any weights: `load_classifier`, `predict`.

    classifier = load_classifier('runs/flowers')          # our own workdir
    classifier = load_classifier('ViT-B_16.npz', model='vit_b16')
    for result in classifier.classify(['a.jpg', 'b.jpg']):
      print(result['image'], result['predictions'][0])

Workdirs, and files that `vit-jax convert` wrote, know their model, its image
size, preprocessing and class names; for other files name the model.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.decode import BadImage, decode
from vit_jax.data.sources.folder import IMAGE_SUFFIXES
from vit_jax.data.transforms import eval_image
from vit_jax.models.registry import create_model, model_info
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment
from vit_jax.weights import (
  WeightsError,
  WeightsMetadata,
  from_state_dict,
  read,
)


@dataclasses.dataclass(eq=False)
class Classifier:
  """A model with its weights, and all one must know to use it.

  Attributes:
    name: registered model name.
    model: Linen module.
    variables: {'params': ..., 'batch_stats': ...}.
    image_size: (height, width) that the model is given.
    normalize: 'half' or 'imagenet'.
    crop: 'squash' or the test crop ratio, see `transforms.eval_image`.
    interpolation: 'bilinear' or 'bicubic'.
    classes: class names, None if unknown.
    loss: 'softmax' or 'sigmoid': how logits become probabilities.
    fields: of the model, besides what its name says.
    report: what loading did with every tensor.
  """

  name: str
  model: Any
  variables: Any
  image_size: tuple[int, int]
  normalize: str = 'half'
  crop: str | float = 'squash'
  interpolation: str = 'bilinear'
  classes: list[str] | None = None
  loss: str = 'softmax'
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  report: Any = None

  @property
  def num_classes(self) -> int:
    return self.model.num_classes

  def class_name(self, index: int) -> str:
    return self.classes[index] if self.classes else f'class {index}'

  @property
  def preprocessing(self) -> Preprocessing:
    """How an image becomes what the model takes."""
    return Preprocessing(
      size=self.image_size,
      crop=None if self.crop == 'squash' else self.crop,
      interpolation=self.interpolation,
      normalize=self.normalize,
    )

  def metadata(self) -> WeightsMetadata:
    """The record that is written beside these weights."""
    return WeightsMetadata(
      model=self.name,
      fields=self.fields,
      num_classes=self.num_classes,
      classes=self.classes and tuple(self.classes),
      preprocessing=self.preprocessing,
      loss=self.loss,
    )

  def read_image(self, source) -> np.ndarray:
    """An image as the model takes it.

    Args:
      source: path, encoded bytes, or uint8 array (H, W, 3).

    Returns:
      uint8 (height, width, 3).

    Raises:
      OSError, BadImage: no such file, or not an image.
    """
    if isinstance(source, (str, pathlib.Path)):
      source = pathlib.Path(source).read_bytes()
    return eval_image(decode(source), self.preprocessing)

  def forward(self, variables, images):
    """uint8 (B, height, width, 3) -> logits (B, C), intermediates; pure."""
    x = augment.normalize(images, self.normalize, jnp.float32)
    return self.model.apply(variables, x, train=False)

  def probabilities(self, variables, images):
    """uint8 (B, height, width, 3) -> (B, C); pure."""
    logits, _ = self.forward(variables, images)
    if self.loss == 'sigmoid':
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)

  @functools.cached_property
  def on_device(self):
    """The variables, on the device."""
    return jax.device_put(self.variables)

  def classify(
    self, images: Sequence, *, top_k: int = 5, batch_size: int = 32
  ) -> Iterator[dict[str, Any]]:
    """Classifies images one batch at a time.

    Args:
      images: paths, encoded bytes or uint8 arrays.
      top_k: how many classes to give.
      batch_size: images that go through the model together.

    Yields:
      In order, {'image': path or position, 'predictions': [{'class', 'index',
      'probability'}, ...]}, or {'image', 'error': why it cannot be read}.

    Raises:
      ValueError: the weights have no head, or one that is not trained.
    """
    self._check_head()
    if batch_size < 1 or top_k < 1:
      raise ValueError(
        f'batch_size={batch_size} and top_k={top_k} must be at least 1'
      )
    k = min(top_k, self.num_classes)
    batch_size = min(batch_size, max(1, len(images)))
    step = jax.jit(lambda v, x: jax.lax.top_k(self.probabilities(v, x), k))

    def load(image):
      try:
        return self.read_image(image)
      except (OSError, BadImage) as e:
        return e

    with futures.ThreadPoolExecutor(8) as pool:
      starts = range(0, len(images), batch_size)
      fetch = lambda i: [
        pool.submit(load, image) for image in images[i : i + batch_size]
      ]
      waiting = fetch(0)
      for start in starts:
        loaded = [f.result() for f in waiting]
        waiting = fetch(start + batch_size)
        good = [x for x in loaded if isinstance(x, np.ndarray)]
        batch = np.zeros((batch_size, *self.image_size, 3), np.uint8)
        if good:
          batch[: len(good)] = good
          values, classes = jax.device_get(step(self.on_device, batch))
        row = 0
        for i, x in enumerate(loaded, start):
          name = images[i]
          name = str(name) if isinstance(name, (str, pathlib.Path)) else i
          if isinstance(x, Exception):
            yield {'image': name, 'error': _reason(x)}
            continue
          yield {
            'image': name,
            'predictions': [
              {
                'class': self.class_name(int(c)),
                'index': int(c),
                'probability': float(p),
              }
              for c, p in zip(classes[row], values[row], strict=True)
            ],
          }
          row += 1

  def _check_head(self):
    if not self.num_classes:
      raise ValueError(
        f'{self.report.source} has no head: it gives features, '
        'not classes. Fine-tune it first: vit-jax finetune'
      )


def _reason(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror.lower()
  return str(error)


def load_classifier(
  source,
  *,
  model: str | None = None,
  image_size=None,
  classes: Sequence[str] | None = None,
  fields: dict[str, Any] | None = None,
) -> Classifier:
  """Loads weights with all that is known about them.

  Args:
    source: workdir, step, .npz, .pth or .safetensors file, or hub name.
    model: registered name, for files that do not say it themselves.
    image_size: int or (height, width); without it, the size that the weights
      are for.
    classes: class names, if the file has none or others.
    fields: fields of the model that differ from its name's.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: the model is not known, or the class names do not fit.
  """
  arrays, metadata, _ = read(source)
  if metadata.average:
    arrays, metadata, _ = read(source, average=True)
  name = model or metadata.model
  if name is None:
    from vit_jax.inference.describe import recognise

    fits = recognise(arrays)
    raise WeightsError(
      f'{source} does not say which model it is for. '
      + (
        f'Its tensors fit {", ".join(fits[:6])}: name it with --model.'
        if fits
        else 'Name it with --model (vit-jax models lists them).'
      )
    )
  fields = {
    **(metadata.fields if name == metadata.model else {}),
    **(fields or {}),
  }
  info = model_info(name).preprocessing
  size = image_size or metadata.image_size or info.size
  found = _fit(
    name,
    source,
    arrays,
    metadata,
    fields,
    size,
    fixed_size=bool(image_size or metadata.image_size),
  )
  net, variables, report, size = found
  report.metadata = metadata
  names = list(classes or metadata.classes or ())
  if classes and net.num_classes != len(names):
    raise ValueError(
      f'{len(names)} class names for a model of {net.num_classes} classes'
    )
  feeding = metadata.preprocessing or info
  return Classifier(
    name=name,
    model=net,
    variables=variables,
    image_size=size,
    normalize=feeding.normalize,
    crop=feeding.crop or 'squash',
    interpolation=feeding.interpolation,
    classes=names if names and len(names) == net.num_classes else None,
    loss=metadata.loss,
    fields=fields,
    report=report,
  )


def _pair(size) -> tuple[int, int]:
  height, width = (size, size) if np.ndim(size) == 0 else size
  return int(height), int(width)


def _fit(name, source, arrays, metadata, fields, size, fixed_size):
  """Model and variables with the head, and at the size, that the file has.

  The report of a first load says what differs: then there is a second one.
  """
  size = _pair(size)
  bias = lambda end: next(
    (
      x.shape[-1] for k, x in arrays.items() if re.fullmatch(rf'(.*/)?{end}', k)
    ),
    None,
  )
  options = {f.name for f in dataclasses.fields(model_info(name).module)}
  representation = bias('pre_logits/bias')
  if representation and 'representation_size' in options:
    fields.setdefault('representation_size', representation)
  load = lambda classes, size: (
    (
      *from_state_dict(
        (net := create_model(name, classes, **fields)),
        arrays,
        size,
        source=source,
        source_image_size=metadata.image_size,
      ),
      net,
    )
  )
  known = metadata.num_classes
  classes = fields.pop('num_classes', known if known is not None else 1000)
  variables, report, net = load(classes, size)

  heads = [e for e in report.reset if e.path.endswith('/bias')]
  for entry in heads:
    found = [x for k, x in arrays.items() if k.endswith(entry.name)]
    wanted = found[0].size if found else 0
    if wanted != classes:
      classes = wanted
      variables, report, net = load(classes, size)
      break
  grids = [
    re.match(r'(\d+)x(\d+) -> (\d+)x(\d+)', e.note) for e in report.resized
  ]
  if not fixed_size and any(grids):
    a, b, c, d = map(int, next(filter(None, grids)).groups())
    size = size[0] * a // c, size[1] * b // d
    variables, report, net = load(classes, size)
  return net, variables, report, size


def list_images(paths: Sequence) -> list[str]:
  """Files as they are, and the images of directories, in the order of names.

  Raises ValueError for a directory without images.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      found.append(str(path))
      continue
    inside = sorted(
      str(p)
      for p in path.rglob('*')
      if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith('.')
    )
    if not inside:
      raise ValueError(f'{path} has no images ({", ".join(IMAGE_SUFFIXES)})')
    found += inside
  return found


def predict(
  weights,
  images: Sequence,
  *,
  model: str | None = None,
  top_k: int = 5,
  batch_size: int = 32,
  **options,
):
  """Classifies images and directories of images.

  Args:
    weights, model, **options: see `load_classifier`.
    images: paths of images or of directories, searched recursively.
    top_k, batch_size: see `Classifier.classify`.

  Returns:
    A list of what `Classifier.classify` yields.
  """
  images = list_images(images)
  classifier = load_classifier(weights, model=model, **options)
  return list(classifier.classify(images, top_k=top_k, batch_size=batch_size))
