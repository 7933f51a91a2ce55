"""Fine-tunes a model on a folder of images by the published settings.

    summary = finetune('vit_b16', 'ViT-B_16.npz', 'flowers', 'runs/flowers')

SGD with momentum 0.9 (kept in bfloat16), cosine with linear warm-up, clip 1,
no weight decay, a fresh zero head, random crops of 5 to 100 % of the area and
flips (arXiv:2010.11929, appendix B.1.1). Length by the number of images, as in
BiT-HyperRule (arXiv:1912.11370). The recipes configs/finetune.py and
configs/bit_hyperrule.py are the same for the published data sets.
"""

import pathlib
from typing import Any

from vit_jax import optim
from vit_jax.config import ConfigError, default_config
from vit_jax.data import records, sources
from vit_jax.models.registry import model_info

LR, BATCH = 0.03, 512  # published together; the rate follows the batch
HEAD_ONLY = ((r'(?!\w*head\w*/).*', {'lr': 0.0}),)  # freezes all but heads


def recipe(model: str | None, weights: str, data: str, *,
           steps: int | None = None, epochs: float | None = None,
           lr: float | None = None, batch_size: int | None = None,
           image_size: int | None = None, head_only: bool = False,
           layer_decay: float = 1.0, holdout: float = 0.1, seed: int = 0,
           fields: dict[str, Any] | None = None):
  """The config of a fine-tuning run; see `finetune` for the arguments."""
  import jax

  metadata = _metadata(weights) if weights else {}
  stored = dict(metadata.get('config', {}).get('model', {}))
  stored_name = stored.pop('name', None)
  model = model or stored_name
  if not model:
    raise ConfigError(
        f'{weights or "random initialisation"} does not say which model it is '
        'for: name it with --model (vit-jax models lists them, vit-jax info '
        'FILE says which fit)')
  info = model_info(model)
  source = source_of(data)
  train = sources.open_source(source, split='train', data_dir=data,
                              holdout=holdout)
  if batch_size is None:
    batch_size = BATCH if jax.default_backend() != 'cpu' else 32
    devices = jax.device_count()
    while batch_size > len(train):
      batch_size //= 2
    batch_size = max(1, batch_size // devices) * devices
  rule = optim.hyperrule(len(train), 224, 224)
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
  c.data.image_size = image_size or info.image_size
  c.data.normalize = metadata.get('config', {}).get('data', {}).get(
      'normalize', info.normalize)
  c.data.interpolation = c.eval.interpolation = info.interpolation
  c.eval.crop = 0.0 if info.crop == 'squash' else float(info.crop)
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


def finetune(model: str | None, weights: str, data: str, workdir: str,
             **options) -> dict[str, Any]:
  """Fine-tunes and evaluates; a stopped run goes on where it was.

  Args:
    model: registered name; None takes the one the weights are of.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random initialisation.
    data: image folder (train/ and test/ with a directory per class, or class
      directories alone), or what `vit-jax pack` wrote.
    workdir: where checkpoints, metrics and the summary go.
    **options: of `recipe`: steps or epochs (default 500, 10,000 or 20,000
      steps: fewer than 20,000 images, than 500,000, or more); lr (default 0.03
      for a batch of 512, in proportion); batch_size (512, on a CPU 32);
      image_size (the model's own; the papers use 384); head_only; layer_decay
      per block; holdout (fraction of a flat folder for testing); seed; fields
      of the model.

  Returns:
    The summary of `train_and_evaluate`: summary['results']['test']['top1'].
  """
  from vit_jax import train
  return train.train_and_evaluate(recipe(model, weights, data, **options),
                                  workdir)


def source_of(data: str) -> str:
  """'packed' for a directory that `vit-jax pack` wrote, else 'folder'."""
  folder = pathlib.Path(data).expanduser()
  if not folder.is_dir():
    raise ConfigError(
        f'{data} is no directory. Give a folder with one directory of images '
        'per class (or train/ and test/ with them), or a packed data set')
  packed = any(p.name.endswith(records.META_SUFFIX) for p in folder.iterdir())
  return 'packed' if packed else 'folder'


def _metadata(weights: str) -> dict[str, Any]:
  """What our own files and workdirs say of themselves, {} of others."""
  from vit_jax.weights import read
  return read(weights)[1]
