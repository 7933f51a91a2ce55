"""Makes the training input of a run from the recipe's section `data`."""

from collections.abc import Callable
import dataclasses
from typing import Any

from vit_jax.data import device_cache, loader, order
from vit_jax.data.decode import Decoding
from vit_jax.data.sources.source import Source
from vit_jax.data.transforms import TrainTransform
from vit_jax.preprocessing import normalization
from vit_jax.recipe.keys import decoding, host_shape, preprocessing
from vit_jax.recipe.sections import Config


def epoch_examples(config: Config, source: Source) -> int:
  """Number of examples in an epoch.

  With `data.pseudo_ratio` r, an epoch has every labeled image once and r
  pseudo-labeled images for each of them, whatever the number of these.
  """
  ratio = config.data.pseudo_ratio
  return (1 + ratio) * order.labeled_length(source) if ratio else len(source)


def check_pseudo_labels(config: Config) -> None:
  """ValueError for pseudo-labels that a recipe cannot train on as it says."""
  data = config.data
  if data.pseudo_ratio and data.repeats > 1:
    raise ValueError(
      f'data.pseudo_ratio={data.pseudo_ratio} with data.repeats={data.repeats} '
      'is not possible: set data.repeats=1'
    )
  if not config.loss.smooth_soft and (data.mixup or data.cutmix):
    raise ValueError(
      f'loss.smooth_soft=False with data.mixup={data.mixup} and data.cutmix='
      f'{data.cutmix}: mixed labels are soft and would not be smoothed. Set '
      'both to 0, or loss.smooth_soft=True'
    )


def train_transform(config: Config, size: tuple[int, int]) -> TrainTransform:
  """The host's augmentation of a recipe, for results of (height, width) `size`.

  Raises:
    ValueError: a key of section `data` has a value that is not allowed.
  """
  data = config.data
  return TrainTransform(
    size=size,
    crop=data.crop,
    crop_sampling=data.crop_sampling,
    area=tuple(data.area),
    aspect=tuple(data.aspect),
    resize=data.resize,
    pad=data.pad,
    interpolation=data.interpolation,
    rounding=data.rounding,
    flip=data.flip,
    randaugment=data.randaugment,
    color_jitter=data.color_jitter,
    fill=_fill(data.normalize),
  )


def train_decoding(config: Config) -> Decoding:
  """How the training images of a recipe are decoded."""
  return dataclasses.replace(
    decoding(config), jpeg_min_side=config.data.jpeg_min_side
  )


def _fill(normalize: str) -> tuple[int, int, int]:
  """The color for timm's geometric operations: the mean, or gray."""
  if normalize in ('half', 'unit'):
    return 128, 128, 128
  red, green, blue = (
    min(max(round(mean), 0), 255) for mean in normalization(normalize)[0]
  )
  return red, green, blue


def train_batches(
  config: Config, source: Source, **options: Any
) -> loader.Batches:
  """The batches of a recipe's training images.

  Args:
    config: the recipe.
    source: the training data.
    **options: start_step, process_index, process_count, token_labels and
      geometry, as for `loader.train_batches`.
  """
  data = config.data
  return loader.train_batches(
    source,
    train_transform(config, host_shape(config)),
    batch_size=data.batch_size,
    seed=config.run.seed,
    repeats=data.repeats,
    repeat_groups=data.repeat_groups,
    ratio=data.pseudo_ratio,
    decoding=train_decoding(config),
    threads=data.threads,
    workers=data.workers,
    max_bad_fraction=data.max_bad_fraction,
    **options,
  )


def make_device_cache(
  config: Config, source: Source, put: Callable
) -> tuple[device_cache.DeviceCache, Callable] | None:
  """Holds the training data on the device, if `data.device_cache` says so.

  Args:
    config: the recipe.
    source: the training data.
    put: copies a numpy array to the device, or to all devices.

  Returns:
    The cache, and `(arrays, indices, key) -> batch` for the step; None if the
    data stays on the host.

  Raises:
    ValueError: data.device_cache is 'on', and the data cannot be held there.
  """
  transform = train_transform(config, preprocessing(config).size)
  if not device_cache.wants_cache(source, transform, config.data.device_cache):
    return None
  cache = device_cache.DeviceCache(
    source,
    transform,
    batch_size=config.data.batch_size,
    seed=config.run.seed,
    repeats=config.data.repeats,
    repeat_groups=config.data.repeat_groups,
    ratio=config.data.pseudo_ratio,
    decoding=train_decoding(config),
    put=put,
  )
  return cache, lambda arrays, indices, key: device_cache.cached_batch(
    arrays, indices, key, transform
  )
