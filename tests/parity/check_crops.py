"""The distribution of random crops against recorded official draws.

A recipe's own transform draws the boxes, on the host and on the device. Keys
are SAMPLER.HEIGHTxWIDTH.STATISTIC, where SAMPLER may end in the range of areas
in percent, as in `area5_100`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.harness import Case, kind
from vit_jax.data import device_crops
from vit_jax.data.transforms import TrainTransform
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.overrides import load_config

DRAWS = 60_000  # so that only the noise of the recorded draws remains
# Allowed between a distribution and the recorded quantiles of 20,000 draws; two
# official samples of this size are up to 0.017 apart.
QUANTILE_TOLERANCE = 0.025
# The same for 2,000 recorded boxes, whose own noise is larger.
SAMPLE_TOLERANCE = 0.05
# Of the mean and the standard deviation, in standard deviations: five times
# the noise of 20,000 draws.
MOMENT_TOLERANCE = 0.05


@kind('crops_tf_inception')
def check_google(case: Case) -> None:
  check_crops(case, 'configs/vit_s16_i1k.py', exclusive_offsets=True)


@kind('crops_timm_torchvision')
def check_timm(case: Case) -> None:
  check_crops(case, 'configs/deit_i1k.py', exclusive_offsets=False)


def check_crops(case: Case, recipe: str, exclusive_offsets: bool) -> None:
  for prefix in sorted({k.rsplit('.', 2)[0] for k in case.outputs}):
    if f'{prefix}.boxes_first_2000' not in case.outputs:
      continue  # SAMPLER of SAMPLER.HEIGHTxWIDTH.whole_image_fraction
    sampler, size = prefix.rsplit('.', 1)
    height, width = map(int, size.split('x'))
    config = load_config(recipe)
    set_ranges(config, sampler, case.meta)
    transform = recipe_data.train_transform(config, (224, 224))
    samples = [
      statistics(draw(transform, height, width), height, width)
      for draw in (host_boxes, device_boxes)
    ]
    if exclusive_offsets:
      for sample in samples:
        check_exclusive_offsets(sample, height, width)
    compare_samples(case, prefix, samples, height, width)


def set_ranges(config, sampler: str, meta: dict) -> None:
  """The ranges of area and aspect that a file or a sampler's name states.

  'area5_100' and 'ratio75_133' are in percent.
  """
  for key, names in (
    ('area', ('area_range', 'scale')),
    ('aspect', ('aspect_ratio_range', 'ratio')),
  ):
    for name in names:
      if name in meta:
        config.data[key] = tuple(map(float, meta[name]))
    words = '|'.join((key, *names))
    stated = re.search(rf'(?:{words})(\d+)_(\d+)', sampler)
    if stated:
      config.data[key] = tuple(int(x) / 100 for x in stated.groups())


@functools.lru_cache  # timm's and torchvision's boxes have one definition
def host_boxes(
  transform: TrainTransform, height: int, width: int
) -> np.ndarray:
  """(DRAWS, 4): top, left, height, width."""
  rng = np.random.default_rng(0)
  return np.array(
    [transform.draw_box(rng, height, width) for _ in range(DRAWS)], np.float64
  )


@functools.lru_cache
def device_boxes(
  transform: TrainTransform, height: int, width: int
) -> np.ndarray:
  """(DRAWS, 4): top, left, height, width."""
  draw = jax.jit(
    jax.vmap(
      lambda key: jnp.stack(
        device_crops.draw_box(key, height, width, transform)
      )
    )
  )
  return np.asarray(draw(jax.random.split(jax.random.key(0), DRAWS)), float)


def statistics(
  boxes: np.ndarray, height: int, width: int
) -> dict[str, np.ndarray]:
  """What is recorded of boxes (n, 4), by name.

  Relative offsets are of the boxes that are smaller than the image.
  """
  top, left, h, w = boxes.T
  return {
    'offset_y': top,
    'offset_x': left,
    'height': h,
    'width': w,
    'area': h * w / (height * width),
    'aspect_w_over_h': w / h,
    'offset_y_rel': (top / np.maximum(height - h, 1))[h < height],
    'offset_x_rel': (left / np.maximum(width - w, 1))[w < width],
  }


def check_exclusive_offsets(
  sample: dict[str, np.ndarray], height: int, width: int
) -> None:
  """ValueError if a smaller box touches the last row or column."""
  bottom = sample['offset_y'] + sample['height']
  right = sample['offset_x'] + sample['width']
  below = (bottom >= height) & (sample['height'] < height)
  beside = (right >= width) & (sample['width'] < width)
  if below.any() or beside.any():
    raise ValueError('a crop below full size touches the last row or column')


def compare_samples(
  case: Case,
  prefix: str,
  samples: list[dict[str, np.ndarray]],
  height: int,
  width: int,
) -> None:
  """Compares the worst of several samples with everything recorded."""
  percents = np.array(case.meta['quantile_percent'])
  recorded = case.outputs[f'{prefix}.boxes_first_2000']
  recorded = statistics(recorded.astype(np.float64), height, width)
  worst_sample = 0.0
  for name in recorded:
    draws = [sample[name] for sample in samples]
    quantiles = case.outputs[f'{prefix}.{name}.quantiles']
    mean, std = map(float, case.outputs[f'{prefix}.{name}.mean_std'])
    compare_distance(
      case,
      f'{prefix}.{name}.quantiles',
      max(quantile_distance(d, quantiles, percents) for d in draws),
      QUANTILE_TOLERANCE,
    )
    compare_distance(
      case,
      f'{prefix}.{name}.mean_std',
      max(
        max(abs(d.mean() - mean), abs(d.std() - std)) / max(std, 1e-9)
        for d in draws
      ),
      MOMENT_TOLERANCE,
    )
    worst_sample = max(
      worst_sample, *(sample_distance(d, recorded[name]) for d in draws)
    )
  compare_distance(
    case, f'{prefix}.boxes_first_2000', worst_sample, SAMPLE_TOLERANCE
  )
  for sample in samples:
    whole = (sample['height'] == height) & (sample['width'] == width)
    case.compare(
      f'{prefix}.whole_image_fraction',
      whole.mean(),
      case.meta['tolerance']['whole_image_fraction_atol'],
    )


def compare_distance(
  case: Case, key: str, distance: float, tolerance: float
) -> None:
  """Compares a distance from what is recorded, which would best be 0."""
  case.outputs[key] = np.zeros(())
  case.compare(key, np.asarray(distance), tolerance)


def quantile_distance(
  draws: np.ndarray, quantiles: np.ndarray, percents: np.ndarray
) -> float:
  """How far the shares below recorded quantiles are from their percentages.

  Of values that occur often, such as whole pixels, the share of the quantile
  itself may be counted or not.
  """
  used = (percents >= 1) & (percents <= 99)
  shares, quantiles = percents[used] / 100, quantiles[used].astype(np.float64)
  margin = 1e-5 * np.maximum(np.abs(quantiles), 1e-3)  # recorded as float32
  draws = np.sort(draws)
  below = np.searchsorted(draws, quantiles - margin) / len(draws)
  up_to = np.searchsorted(draws, quantiles + margin, 'right') / len(draws)
  return float(np.max(np.maximum(below - shares, shares - up_to)))


def sample_distance(draws: np.ndarray, recorded: np.ndarray) -> float:
  """The Kolmogorov-Smirnov distance of two samples."""
  values = np.union1d(draws, recorded)
  shares = (
    np.searchsorted(np.sort(x), values, 'right') / len(x)
    for x in (draws, recorded)
  )
  return float(np.max(np.abs(np.subtract(*shares))))
