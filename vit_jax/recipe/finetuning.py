"""The published fine-tuning settings, each in one place.

They are the Vision Transformer's (arXiv:2010.11929, appendix B.1.1 and table 4;
the released code has the same values) and BiT-HyperRule (arXiv:1912.11370,
section 3.3). `configs/finetune.py`, `configs/augreg_finetune.py` and
`configs/bit_hyperrule.py` apply them to the published data sets, and
`folder_config` applies them to a folder of images.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax

from vit_jax.data.sources.opening import directory_source, open_source
from vit_jax.inference.identify import Identity, identify
from vit_jax.models.registry import ModelInfo, load_module, model_info
from vit_jax.preprocessing import as_size
from vit_jax.recipe.keys import (
  ConfigError,
  default_config,
  load_model_module,
)
from vit_jax.recipe.overrides import override
from vit_jax.recipe.sections import Config
from vit_jax.recipe.shared import set_preprocessing
from vit_jax.weights import read
from vit_jax.weights.metadata import WeightsMetadata

# The published learning rate and its batch size. For another batch size the
# rate is scaled in proportion.
RATE, BATCH_SIZE = 0.03, 512
# The learning rates that the paper tried on held-out images, for small data
# sets and for ImageNet.
SMALL_GRID = (0.001, 0.003, 0.01, 0.03)
IMAGENET_GRID = (0.003, 0.01, 0.03, 0.06)
LAYER_DECAY = 0.75  # what the recipes' switch 'layerdecay' sets
# A linear probe: learning rate 0 for every parameter outside of the head.
HEAD_ONLY = ((r'(?!\w*head\w*/).*', {'lr': 0.0}),)


@dataclasses.dataclass(frozen=True)
class HyperRule:
  """What BiT-HyperRule sets for a data set (arXiv:1912.11370, sec. 3.3).

  Attributes:
    resize: both sides in pixels, before the crop.
    crop: both sides in pixels of the images that the model gets.
    steps: length of the run in steps.
    warmup_steps: length of the warm-up in steps.
    boundaries: steps at which a 'step' schedule multiplies the rate by 0.1.
    mixup: alpha of the Beta distribution, 0 for none.
  """

  resize: int
  crop: int
  steps: int
  warmup_steps: int
  boundaries: tuple[int, ...]
  mixup: float


def hyperrule(num_examples: int, width: int, height: int) -> HyperRule:
  """BiT-HyperRule for a data set.

  Args:
    num_examples: number of training images.
    width, height: typical size of the images in pixels.
  """
  resize, crop = (160, 128) if width * height < 96 * 96 else (512, 480)
  if num_examples < 20_000:
    steps, drops = 500, (200, 300, 400)
  elif num_examples < 500_000:
    steps, drops = 10_000, (3_000, 6_000, 9_000)
  else:
    steps, drops = 20_000, (6_000, 12_000, 18_000)
  return HyperRule(
    resize,
    crop,
    steps,
    warmup_steps=100 if steps == 500 else 500,
    # The released code lowers the rate one step after each boundary; a 'step'
    # schedule lowers it at the boundary.
    boundaries=tuple(d + 1 for d in drops),
    mixup=0.1 if num_examples >= 20_000 else 0.0,
  )


def set_length(config: Config, num_examples: int) -> None:
  """Sets the steps and the warm-up for `num_examples` training images.

  The ViT's lengths equal BiT-HyperRule's: 500 steps below 20,000 images, 10,000
  below 500,000, and 20,000 from there on.
  """
  rule = hyperrule(num_examples, 224, 224)
  config.run.steps, config.schedule.warmup_steps = rule.steps, rule.warmup_steps


def set_optimizer(config: Config, rate: float | None = None) -> None:
  """Sets the ViT's optimizer for fine-tuning.

  It is SGD with momentum 0.9, stored in bfloat16, gradients clipped to norm 1,
  and no weight decay. The schedule stays the default of all recipes: a linear
  warm-up, then a cosine to 0.

  Args:
    config: changed in place.
    rate: peak learning rate; by default 0.03 for a batch of 512, and in
      proportion for other batch sizes.
  """
  if rate is None:
    rate = RATE * config.data.batch_size / BATCH_SIZE
  config.optim.name, config.optim.state_dtype = 'sgd', 'bfloat16'
  config.optim.lr, config.optim.clip = rate, 1.0


def set_image_size(config: Config, size: int) -> None:
  """Sets the image size, rounded down to whole patches: 378 for patches of 14.

  A Mixer keeps its own size, because its token MLPs have a fixed number of
  tokens.
  """
  info = model_info(config.model.name)
  if config.model.name.startswith('mixer'):
    size = info.preprocessing.size[0]
  patch = info.fields.get('patch_size', 1)
  config.data.image_size = size // patch * patch


def folder_config(
  model: str | None,
  weights: str,
  data: str,
  *,
  steps: int | None = None,
  epochs: float | None = None,
  lr: float | None = None,
  batch_size: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  head_only: bool = False,
  layer_decay: float = 1.0,
  holdout: float = 0.1,
  max_bad_fraction: float = 0.01,
  flat: bool = False,
  match_classes: str = 'names',
  seed: int = 0,
  module: str = '',
  fields: dict[str, Any] | None = None,
  keys: Mapping[str, Any] | None = None,
) -> Config:
  """The recipe for fine-tuning on a folder of images.

  See `vit_jax.finetuning.finetune` for the arguments.

  Raises:
    ConfigError: neither the arguments nor the weights name a model.
    ValueError: `data` is no directory of images.
  """
  metadata, known = read_identity(model, weights, module)
  model = known.name
  c = default_config()
  set_model(c, metadata, known, module, fields)
  info = model_info(model)
  source = directory_source(data)
  train = open_source(
    source, split='train', data_dir=data, holdout=holdout, flat=flat
  )
  for name, value in (('batch_size', batch_size), ('steps', steps)):
    if value is not None and value < 1:
      raise ConfigError(f'{name}={value}: must be at least 1')
  batch_size = batch_size or _default_batch_size(len(train))

  c.run.name = f'{model} on {pathlib.Path(data).name}'
  c.run.seed = seed
  c.run.pretrained = str(weights)
  c.data.source, c.data.dir, c.data.holdout = source, str(data), holdout
  c.data.flat, c.data.match_classes = flat, match_classes
  c.data.batch_size, c.data.max_bad_fraction = batch_size, max_bad_fraction
  _set_sizes(c, info, image_size)
  set_normalization(c, known)
  c.data.upright = True  # photos of a folder, not a published data set
  set_optimizer(c, lr)
  c.optim.layer_decay = layer_decay
  if head_only:
    c.optim.groups = HEAD_ONLY
  set_length(c, len(train))
  if epochs is not None:
    c.run.steps, c.run.epochs = None, epochs
    total = max(1, round(epochs * max(1, len(train) // batch_size)))
  else:
    total = c.run.steps = steps if steps is not None else c.run.steps
  c.schedule.warmup_steps = min(c.schedule.warmup_steps, total // 5)
  c.eval.every_steps = c.log.checkpoint_steps = -(-total // 5)
  c.log.every_steps = max(1, total // 50)
  c.log.keep_best = 1
  override(c, keys or {})
  return c


def _set_sizes(
  config: Config,
  info: ModelInfo,
  image_size: int | tuple[int, int] | None,
) -> None:
  """Sets the image size, and the preprocessing of the model's authors."""
  set_preprocessing(config)
  config.data.interpolation = info.preprocessing.interpolation
  height, width = as_size(
    info.preprocessing.size if image_size is None else image_size
  )
  config.data.image_size = height
  config.data.image_width = width if width != height else None


def set_normalization(config: Config, known: Identity) -> None:
  """Sets the normalization that the weights were trained with, if known."""
  if known.preprocessing is not None:
    config.data.normalize = known.preprocessing.normalize


def set_model(
  config: Config,
  metadata: WeightsMetadata,
  known: Identity,
  module: str = '',
  fields: dict[str, Any] | None = None,
) -> None:
  """Sets the model of a recipe that starts from weights, and its fields.

  Args:
    config: changed in place.
    metadata, known: from `read_identity`.
    module: Python module that registers the model; '' for that of the weights.
    fields: fields of the model that the user sets.
  """
  c = config
  c.model.name = known.name
  c.model.update(known.fields)
  if known.name == metadata.model:
    c.model.module = metadata.module
  c.model.module = module or c.model.module
  c.model.update(fields or {})
  load_model_module(c)


def _default_batch_size(num_examples: int) -> int:
  """512, or 32 on a CPU, for fine-tuning on `num_examples` images.

  It is halved until it is at most the number of images, then rounded down to a
  multiple of the number of devices.
  """
  batch_size = BATCH_SIZE if jax.default_backend() != 'cpu' else 32
  while batch_size > num_examples:
    batch_size //= 2
  devices = jax.device_count()
  return max(1, batch_size // devices) * devices


def read_identity(
  model: str | None, weights: str, module: str
) -> tuple[WeightsMetadata, Identity]:
  """The metadata and the model of a file of weights or a workdir.

  Args:
    model: the name that the user gave; None finds it as `load_classifier` does.
    weights: '' for random initialization.
    module: Python module that registers the model; '' for that of the weights.
  """
  if weights:
    file = read(weights)
    if module or file.metadata.module:
      load_module(module or file.metadata.module)
    return file.metadata, identify(weights, file.arrays, file.metadata, model)
  if not model:
    raise ConfigError(
      'without weights the model has to be named: --model NAME (vit-jax models '
      'lists the names)'
    )
  return WeightsMetadata(), Identity(model)
