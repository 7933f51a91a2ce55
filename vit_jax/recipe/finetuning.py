"""Published fine-tuning settings, as a recipe."""

import dataclasses
import pathlib
from typing import Any

import jax

from vit_jax.data import records
from vit_jax.data.sources.opening import open_source
from vit_jax.models.registry import model_info
from vit_jax.recipe.keys import ConfigError, default_config


@dataclasses.dataclass(frozen=True)
class HyperRule:
  """What BiT-HyperRule sets for a data set (arXiv:1912.11370, sec. 3.3)."""

  resize: int  # of both sides, before the crop
  crop: int
  steps: int
  warmup_steps: int
  boundaries: tuple[int, ...]  # of a 'step' schedule with factor 0.1
  mixup: float


def hyperrule(num_examples: int, width: int, height: int) -> HyperRule:
  """BiT-HyperRule for `num_examples` training images of a typical size."""
  resize, crop = (160, 128) if width * height < 96 * 96 else (512, 480)
  if num_examples < 20_000:
    steps, warmup, drops = 500, 100, (200, 300, 400)
  elif num_examples < 500_000:
    steps, warmup, drops = 10_000, 500, (3_000, 6_000, 9_000)
  else:
    steps, warmup, drops = 20_000, 500, (6_000, 12_000, 18_000)
  # The official rate falls strictly after a boundary, a 'step' schedule at it.
  boundaries = tuple(d + 1 for d in drops)
  mixup = 0.1 if num_examples >= 20_000 else 0.0
  return HyperRule(resize, crop, steps, warmup, boundaries, mixup)


LR, BATCH = 0.03, 512  # published together; the rate follows the batch
HEAD_ONLY = ((r'(?!\w*head\w*/).*', {'lr': 0.0}),)  # freezes all but heads


def recipe(
  model: str | None,
  weights: str,
  data: str,
  *,
  steps: int | None = None,
  epochs: float | None = None,
  lr: float | None = None,
  batch_size: int | None = None,
  image_size: int | None = None,
  head_only: bool = False,
  layer_decay: float = 1.0,
  holdout: float = 0.1,
  seed: int = 0,
  fields: dict[str, Any] | None = None,
):
  """The config of a fine-tuning run; see `finetune` for the arguments."""

  metadata = _metadata(weights) if weights else {}
  stored = dict(metadata.get('config', {}).get('model', {}))
  stored_name = stored.pop('name', None)
  model = model or stored_name
  if not model:
    raise ConfigError(
      f'{weights or "random initialisation"} does not say which model it is '
      'for: name it with --model (vit-jax models lists them, vit-jax info '
      'FILE says which fit)'
    )
  preprocessing = model_info(model).preprocessing
  source = source_of(data)
  train = open_source(source, split='train', data_dir=data, holdout=holdout)
  if batch_size is None:
    batch_size = BATCH if jax.default_backend() != 'cpu' else 32
    devices = jax.device_count()
    while batch_size > len(train):
      batch_size //= 2
    batch_size = max(1, batch_size // devices) * devices
  rule = hyperrule(len(train), 224, 224)
  if steps is None and epochs is None:
    steps = rule.steps
  per_epoch = max(1, len(train) // batch_size)
  total = steps if steps is not None else max(1, round(epochs * per_epoch))

  c = default_config()
  c.run.name = f'{model} on {pathlib.Path(data).name}'
  c.run.steps, c.run.epochs, c.run.seed = steps, epochs, seed
  c.run.pretrained = str(weights)
  c.data.source, c.data.dir, c.data.holdout = source, str(data), holdout
  c.data.batch_size = batch_size
  c.data.image_size = image_size or preprocessing.size[0]
  c.data.normalize = (
    metadata.get('config', {})
    .get('data', {})
    .get('normalize', preprocessing.normalize)
  )
  c.data.interpolation = c.eval.interpolation = preprocessing.interpolation
  c.eval.crop = float(preprocessing.crop or 0.0)
  c.model.name = model
  if model == stored_name:
    c.model.update(stored)
  c.model.update(fields or {})
  c.optim.name, c.optim.state_dtype, c.optim.clip = 'sgd', 'bfloat16', 1.0
  c.optim.lr = lr if lr is not None else LR * batch_size / BATCH
  c.optim.layer_decay = layer_decay
  if head_only:
    c.optim.groups = HEAD_ONLY
  c.schedule.warmup_steps = min(rule.warmup_steps, total // 5)
  c.eval.every_steps = c.log.checkpoint_steps = -(-total // 5)
  c.log.every_steps = max(1, total // 50)
  return c


def source_of(data: str) -> str:
  """'packed' for a directory that `vit-jax pack` wrote, else 'folder'."""
  folder = pathlib.Path(data).expanduser()
  if not folder.is_dir():
    raise ConfigError(
      f'{data} is no directory. Give a folder with one directory of images '
      'per class (or train/ and test/ with them), or a packed data set'
    )
  packed = any(p.name.endswith(records.META_SUFFIX) for p in folder.iterdir())
  return 'packed' if packed else 'folder'


def _metadata(weights: str) -> dict[str, Any]:
  """What our own files and workdirs say of themselves, {} of others."""
  from vit_jax.weights import read

  return read(weights)[1]
