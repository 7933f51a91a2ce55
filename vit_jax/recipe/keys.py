"""All keys of a recipe with their defaults, and how to read them."""

import json
from typing import Any

from ml_collections import ConfigDict, config_dict

from vit_jax.preprocessing import Preprocessing

placeholder = config_dict.placeholder


def default_config() -> ConfigDict:
  """All keys with their defaults. Batch sizes are global."""
  c = ConfigDict()

  c.run = ConfigDict()
  c.run.name = ''  # shown in the log
  c.run.seed = 0  # the one seed: parameters, data order, augmentation, dropout
  # Length of training: exactly one of the three.
  c.run.steps = placeholder(int)
  c.run.epochs = placeholder(float)
  c.run.examples = placeholder(int)
  c.run.dtype = 'auto'  # compute dtype: 'float32', 'bfloat16'; auto: bfloat16 on accelerators
  c.run.nan = (
    'stop'  # a non-finite loss or gradient: 'stop' or 'skip' (the update)
  )
  c.run.resume = ''  # workdir or step of another run to continue from
  c.run.pretrained = (
    ''  # weights to start from: .npz .pth .safetensors, a workdir
  )
  c.run.eval_only = (
    False  # evaluate what resume/pretrained/workdir holds, and stop
  )

  c.data = ConfigDict()
  # 'digits', 'folder', 'packed', 'synthetic', or 'tfds:NAME' (array_record).
  c.data.source = 'digits'
  c.data.dir = ''  # folder, packed directory or TFDS data_dir
  c.data.split = 'train'  # sub-splits as in TFDS: 'train[:98%]'
  c.data.holdout = 0.1  # a flat folder's fraction kept for testing
  c.data.num_classes = placeholder(
    int
  )  # for synthetic; else taken from the source
  c.data.num_examples = placeholder(int)  # for synthetic
  c.data.batch_size = 128
  c.data.image_size = 224  # height (and width) of what the model is given
  c.data.image_width = placeholder(int)  # only if not square
  # Crop of training images: 'inception' (a box of random area and aspect ratio,
  # resized), 'resize_crop' (shorter side to data.resize, random crop),
  # 'squash_crop' (both sides to data.resize, random crop), 'pad_crop' (pad by
  # data.pad, crop back at random, resize; for CIFAR), 'resize' (squash), 'none'.
  c.data.crop = 'inception'
  # What an inception crop draws uniformly: the 'area' (torchvision, timm) or the
  # 'height' (TensorFlow, so Google's recipes; small crops are more frequent).
  c.data.crop_sampling = 'area'
  c.data.area = (0.05, 1.0)  # range, as fractions of the image's area
  c.data.aspect = (3 / 4, 4 / 3)  # range of width / height
  c.data.resize = placeholder(int)  # see data.crop
  c.data.pad = 4
  # 'bilinear' (TensorFlow, no antialias), 'bicubic' (Pillow, antialias),
  # 'random' (timm: Pillow's bilinear or bicubic), or another of
  # preprocessing.INTERPOLATIONS.
  c.data.interpolation = 'bilinear'
  # Of pixels that TensorFlow's interpolations compute: to the 'nearest' integer,
  # 'truncate' (big_vision), or 'none' (vision_transformer; four times the bytes).
  c.data.rounding = 'nearest'
  # Decoding of JPEGs: 'accurate' (OpenCV, Pillow), or 'fast', TensorFlow's
  # default, which Google's recipes used; it needs the package simplejpeg.
  c.data.jpeg_dct = 'accurate'
  c.data.flip = 0.5  # probability of a horizontal flip
  # '' or a policy: 'google(2,15)' (layers, magnitude: AugReg), 'rand-m9-mstd0.5-inc1' (timm).
  c.data.randaugment = ''
  c.data.color_jitter = 0.0
  # Repeated augmentation: each image this many times, spread over this many
  # equal consecutive groups of the batch.
  c.data.repeats = 1
  c.data.repeat_groups = 1
  c.data.normalize = (
    'half'  # 'half' ([-1, 1]), 'imagenet' (mean, std) or 'unit' ([0, 1])
  )
  c.data.max_bad_fraction = (
    0.01  # corrupt images tolerated before the run stops
  )
  c.data.device_cache = 'auto'  # hold a small data set on the device: 'on', 'off', 'auto' (where it pays)
  c.data.device_resize = placeholder(
    int
  )  # size of the host's images, which the device resizes to image_size
  c.data.threads = 4  # decoding threads of each process
  c.data.workers = 0  # decoding processes of each process (0: threads only)
  c.data.prefetch = 2  # batches kept ready on the device
  c.data.labels = (
    ''  # directory of token labels (vit-jax token-labels), '' for none
  )
  c.data.labels_swap_axes = (
    False  # take a crop's rows for columns, as VOLO's released code did
  )
  # On the device, inside the step:
  c.data.mixup = 0.0  # Beta(a, a); 0 = off
  c.data.cutmix = 0.0
  c.data.switch_prob = 0.5  # cutmix instead of mixup when both are on
  c.data.mix_prob = 1.0  # probability of mixing a batch at all
  c.data.mix_style = 'timm'  # 'timm' (reversed partner), 'google' (rolled, lambda >= 1/2), 'permute'
  # Mix within so many groups of the batch, each with a coefficient of its own,
  # as training on so many processes did.
  c.data.mix_groups = 1
  c.data.erasing = 0.0  # probability of random erasing
  c.data.erase_mixed = False  # erase after mixing instead of before

  c.model = ConfigDict()
  c.model.name = 'vit_s16'
  c.model.module = ''  # a Python module of your own that registers the model
  # further fields of the model class, e.g. c.model.patch_size = 4

  c.loss = ConfigDict()
  c.loss.name = (
    'softmax'  # 'softmax', 'sigmoid' (summed over classes), 'bce' (DeiT's)
  )
  c.loss.label_smoothing = 0.0
  # (off, on): the targets of absent and present classes, before smoothing.
  c.loss.label_range = (0.0, 1.0)
  c.loss.distill = 'none'  # 'none', 'soft', 'hard'
  c.loss.distill_alpha = 0.5  # weight of the distillation term
  c.loss.distill_tau = 1.0
  c.loss.teacher = (
    ''  # model name of the teacher, where its weights do not say it
  )
  # Workdir or file; a directory of stored logits; 'random' (to try things out).
  c.loss.teacher_weights = ''
  c.loss.teacher_image_size = placeholder(int)  # default: the student's
  c.loss.teacher_normalize = ''  # '' = as the teacher was trained
  c.loss.token_weight = (
    0.5  # weight of the per-token (dense) loss where labels have it
  )
  c.loss.ground_truth = (
    False  # blend the true label into the class target (VOLO fine-tuning)
  )
  c.loss.cosine_reg = 0.0  # DeepViT: similarity of consecutive attention maps
  c.loss.cosine_reg_blocks = 12

  c.optim = ConfigDict()
  c.optim.name = 'adamw'  # 'adamw', 'adam' (big_vision), 'sgd', 'adafactor'
  c.optim.lr = 1e-3  # peak; multiplied by batch_size / lr_batch if that is set
  c.optim.lr_batch = placeholder(int)
  c.optim.b1 = 0.9
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  c.optim.momentum = 0.9  # sgd
  c.optim.nesterov = False  # sgd
  c.optim.state_dtype = (
    'float32'  # first moment or momentum: 'float32', 'bfloat16'
  )
  c.optim.weight_decay = 0.0
  # 'lr': p -= lr * wd * p (AdamW). 'schedule': p -= (lr / peak) * wd * p (big_vision).
  # 'coupled': wd * p is added to the gradient (L2; PyTorch's SGD).
  c.optim.decay_style = 'lr'
  c.optim.decay_mask = r'.*/kernel$'  # regex over parameter paths that decay
  c.optim.clip = 0.0  # global norm; 0 = off
  c.optim.accumulate = 1  # micro-batches per step; equals the large batch
  c.optim.ema = 0.0  # decay of the parameter average; 0 = off
  c.optim.ema_stats = True  # average the BatchNorm statistics too
  c.optim.ema_ramp = (
    False  # begin with a faster decay: min(ema, (1 + step) / (10 + step))
  )
  c.optim.layer_decay = 1.0  # lr factor per block from the top down
  # ((regex, {'lr': factor, 'decay': factor}), ...): first match; lr 0 freezes.
  c.optim.groups = ()

  c.schedule = ConfigDict()
  c.schedule.name = 'cosine'  # 'constant','cosine','linear','rsqrt','polynomial','step','timm_cosine'
  # Warm-up: at most one of the three.
  c.schedule.warmup_steps = placeholder(int)
  c.schedule.warmup_epochs = placeholder(float)
  c.schedule.warmup_examples = placeholder(int)
  c.schedule.warmup_init = 0.0  # lr at step 0
  c.schedule.end = 0.0  # lr at the end (cosine, linear, polynomial)
  c.schedule.power = 1.0  # polynomial
  c.schedule.timescale = 10_000  # rsqrt: steps
  c.schedule.shift = 0  # rsqrt: as if the curve had begun so many steps before
  # The last steps (or epochs; at most one of the two) of the run: linear to 0;
  # timm_cosine: stays at the end value.
  c.schedule.cooldown_steps = 0
  c.schedule.cooldown_epochs = placeholder(float)
  c.schedule.boundaries = ()  # step: fractions of the run in (0, 1), or steps
  c.schedule.factor = 0.1  # step: lr factor at each boundary
  c.schedule.factors = ()  # step: instead of powers of `factor`, one per boundary
  # timm_cosine: constant within an epoch, as executed officially: epoch e runs
  # at index e - epoch_lag (1: DeiT's loop, which runs the first two epochs at
  # warmup_init; 0: VOLO's).
  c.schedule.by_epoch = False
  c.schedule.epoch_lag = 1
  # timm_cosine, warm restarts: number of cycles, and how much longer each is and
  # how much lower its peak than of the one before.
  c.schedule.cycle_limit = 1
  c.schedule.cycle_mul = 1.0
  c.schedule.cycle_decay = 1.0
  c.schedule.k_decay = 1.0  # timm_cosine: exponent of the time within a cycle
  c.schedule.warmup_prefix = (
    False  # timm_cosine: the cosine begins after the warm-up
  )

  c.mesh = ConfigDict()
  c.mesh.preset = 'data'  # 'data', 'zero', 'fsdp', 'fsdp_tensor'
  c.mesh.fsdp = -1  # devices on the axis; -1 = chosen by the preset
  c.mesh.tensor = -1
  c.mesh.rules = ()  # ((regex, (axis or None, ...)), ...) before the preset's own

  c.eval = ConfigDict()
  # {'name': {'source':..., 'dir':..., 'split':...}, ...}; empty = the source's test split.
  c.eval.sets = ConfigDict()
  c.eval.batch_size = placeholder(int)  # default: data.batch_size
  c.eval.every_steps = placeholder(
    int
  )  # at most one of the two; none = at the end
  c.eval.every_epochs = placeholder(float)
  c.eval.crop = 0.0  # 0: squash to the image size; else shorter side to size / crop, centre crop
  # Before a center crop: 'timm' (shorter side, rounded down), 'resize_small'
  # (shorter side, rounded to the nearest: big_vision) or 'squash' (both sides).
  c.eval.crop_resize = 'timm'
  c.eval.interpolation = 'bilinear'  # one of preprocessing.INTERPOLATIONS
  c.eval.rounding = 'nearest'  # see data.rounding
  c.eval.ema = False  # evaluate the averaged parameters
  # What recipes with a few-shot measure probe on (`vit_jax.ablation.measures`):
  # source and dir as in section data, and the splits train and test.
  c.eval.fewshot = ConfigDict(
    {'source': '', 'dir': '', 'train': 'train', 'test': 'test'}
  )

  c.log = ConfigDict()
  c.log.every_steps = 50
  c.log.checkpoint_steps = placeholder(
    int
  )  # at most one of the two; none = at the end
  c.log.checkpoint_minutes = placeholder(float)
  c.log.keep_latest = 1
  c.log.keep_best = 0  # by the first eval set's top-1
  c.log.keep_every_steps = placeholder(int)
  c.log.tensorboard = True
  c.log.profile_steps = ()  # (first, last): a profiler trace of these steps
  c.log.overview = False  # print the parameter and sharding table at the start

  c.lock()  # a typo in a recipe or flag is an error with the nearest name
  c.model.unlock()
  c.eval.sets.unlock()
  return c


class ConfigError(ValueError):
  """A recipe that cannot work; says the value, what is allowed, the fix."""


# Lengths that can be given in several units: at most one key of a group is set,
# and setting one unsets the others (`vit_jax.recipe.overrides`).
DURATIONS = (
  ('run.steps', 'run.epochs', 'run.examples'),
  (
    'schedule.warmup_steps',
    'schedule.warmup_epochs',
    'schedule.warmup_examples',
  ),
  ('schedule.cooldown_steps', 'schedule.cooldown_epochs'),
  ('eval.every_steps', 'eval.every_epochs'),
  ('log.checkpoint_steps', 'log.checkpoint_minutes'),
)


def get(config, key: str):
  """config.optim.lr of 'optim.lr'."""
  for part in key.split('.'):
    config = config[part]
  return config


def image_shape(config) -> tuple[int, int]:
  """(height, width) of the images that the model is given."""
  size = config.data.image_size
  return size, config.data.image_width or size


def host_shape(config) -> tuple[int, int]:
  """(height, width) of the images that the host makes."""
  size = config.data.device_resize
  return (size, size) if size else image_shape(config)


def preprocessing(config) -> Preprocessing:
  """How the model of a recipe is fed when it is evaluated."""
  return Preprocessing(
    size=image_shape(config),
    crop=config.eval.crop or None,
    interpolation=config.eval.interpolation,
    crop_resize=config.eval.crop_resize,
    rounding=config.eval.rounding,
    normalize=config.data.normalize,
  )


def load_model_module(config) -> None:
  """Imports the user's module `model.module`, which registers the model.

  Raises:
    ConfigError: there is no such module.
  """
  from vit_jax.models.registry import load_module

  if config.model.get('module'):
    try:
      load_module(config.model.module)
    except ValueError as e:
      raise ConfigError(f'model.module={config.model.module!r}: {e}') from e


def model_fields(config) -> dict[str, Any]:
  """The fields of the model class that `config.model` sets."""
  fields = {
    k: v for k, v in config.model.items() if k not in ('name', 'module')
  }
  return {
    k: v.to_dict() if isinstance(v, ConfigDict) else v
    for k, v in fields.items()
  }


def to_json(config) -> dict[str, Any]:
  """The recipe as plain JSON values (for config.json and checkpoints)."""
  return json.loads(config.to_json_best_effort())


def in_steps(
  config, section: str, prefix: str, *, steps_per_epoch: int, default=None
):
  """A duration given in steps, epochs or examples, in whole steps.

  `prefix` is '' for run.{steps,epochs,examples}, 'warmup_' for the schedule,
  'every_' for eval.
  """
  c = config[section]
  if c.get(f'{prefix}steps') is not None:
    return int(c[f'{prefix}steps'])
  if c.get(f'{prefix}epochs') is not None:
    return max(1, round(c[f'{prefix}epochs'] * steps_per_epoch))
  if c.get(f'{prefix}examples') is not None:
    return max(1, round(c[f'{prefix}examples'] / config.data.batch_size))
  return default
