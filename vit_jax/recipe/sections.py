"""The keys of every section of a recipe, with their defaults.

A key that may be None is a `placeholder` of its type. The comment above a key
says what it does; its allowed values stand beside the code that reads it.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

placeholder = config_dict.placeholder
# A ConfigDict. Type checkers do not know its keys, so they take it as it is.
Config = Any


def run() -> Config:
  c: Config = ConfigDict()
  # Shown in the log.
  c.name = ''
  # The one seed: parameters, order of the data, augmentation, dropout.
  c.seed = 0
  # Length of training: one of the three. On the command line, giving one unsets
  # the others.
  c.steps = placeholder(int)
  c.epochs = placeholder(float)
  c.examples = placeholder(int)
  # Compute dtype, of DTYPES: 'auto' is bfloat16 on accelerators, float32 on a
  # CPU.
  c.dtype = 'auto'
  # A loss or gradient that is not finite: 'stop', or 'skip' that update.
  c.nan = 'stop'
  # Workdir or step of another run to continue from.
  c.resume = ''
  # Weights to start from: .npz, .pth, .safetensors, a workdir or a hub name.
  c.pretrained = ''
  # False trains a model that stays in evaluation mode: no dropout and no drop
  # path, and BatchNorm keeps the statistics that it was loaded with (DeiT's
  # released fine-tuning).
  c.train_mode = True
  # Evaluate what the workdir, `resume` or `pretrained` holds, and train
  # nothing.
  c.eval_only = False
  return c


def data() -> Config:
  """Source, and what the host does to the images."""
  c: Config = ConfigDict()
  # 'digits', 'folder', 'packed', 'synthetic', or 'tfds:NAME' (array_record).
  c.source = 'digits'
  # Image folder, packed directory, or data_dir of TFDS.
  c.dir = ''
  # Training split; sub-splits as in TFDS: 'train[:98%]'.
  c.split = 'train'
  # Fraction of a flat folder that is kept for testing.
  c.holdout = 0.1
  # For synthetic data, and packed data without class names; else the source's
  # own.
  c.num_classes = placeholder(int)
  # For synthetic data.
  c.num_examples = placeholder(int)
  c.batch_size = 128
  # Height, and width if the images are square, of what the model is given.
  c.image_size = 224
  # Width, if the images are not square.
  c.image_width = placeholder(int)
  # Crop of training images: 'inception' (a box of random area and aspect ratio,
  # resized), 'resize_crop' (shorter side to data.resize, random crop),
  # 'squash_crop' (both sides to data.resize, random crop), 'pad_crop' (pad by
  # data.pad, crop back at random, resize; for CIFAR), 'resize' (both sides to
  # the image size), 'none'.
  c.crop = 'inception'
  # What an inception crop draws uniformly: the 'area' (torchvision, timm) or
  # the 'height' (TensorFlow, so Google's recipes; small crops are more
  # frequent).
  c.crop_sampling = 'area'
  # Range of an inception crop's area, as fractions of the image's.
  c.area = (0.05, 1.0)
  # Range of an inception crop's width / height.
  c.aspect = (3 / 4, 4 / 3)
  # Pixels: the shorter side before resize_crop, both before squash_crop.
  c.resize = placeholder(int)
  # Pixels on each side, for pad_crop.
  c.pad = 4
  # 'bilinear' (TensorFlow's, without antialiasing), 'bicubic' (Pillow's, with
  # it), 'random' (timm: Pillow's bilinear or bicubic), or another of
  # `preprocessing.INTERPOLATIONS`.
  c.interpolation = 'bilinear'
  # Of pixels that TensorFlow's interpolations compute: to the 'nearest'
  # integer, 'truncate' (big_vision), or 'none' (vision_transformer; four times
  # the bytes).
  c.rounding = 'nearest'
  # Decoding of JPEGs: 'accurate' (OpenCV, Pillow), or 'fast', TensorFlow's
  # default, which Google's recipes used; it needs the package simplejpeg.
  c.jpeg_dct = 'accurate'
  # Probability of a horizontal flip.
  c.flip = 0.5
  # '' for none, or a policy: 'google(2,15)' (layers, magnitude: AugReg) or
  # 'rand-m9-mstd0.5-inc1' (timm).
  c.randaugment = ''
  # Strength of brightness, contrast and saturation jitter; not with
  # RandAugment.
  c.color_jitter = 0.0
  # Repeated augmentation: how often an image is in the batch, spread over this
  # many equal consecutive groups of the batch.
  c.repeats = 1
  c.repeat_groups = 1
  # Key of `preprocessing.NORMALIZATION`: 'half' ([-1, 1]), 'imagenet' (mean and
  # deviation of ImageNet), 'unit' ([0, 1]). It happens on the device.
  c.normalize = 'half'
  _add_loading(c)
  return c


def _add_loading(c: Config) -> None:
  """The keys of section `data` that say how images are read and kept."""
  # Fraction of corrupt images above which the run stops.
  c.max_bad_fraction = 0.01
  # Hold a small data set on the device: 'on', 'off', or 'auto' (where it pays).
  c.device_cache = 'auto'
  # Size of the host's images, which the device then resizes to image_size.
  c.device_resize = placeholder(int)
  # Decoding threads of each process.
  c.threads = 4
  # Decoding processes of each process; 0 for threads only.
  c.workers = 0
  # Batches that are kept ready on the device.
  c.prefetch = 2
  # Directory of token labels (`vit-jax token-labels`), '' for none.
  c.labels = ''
  # Take a crop's rows for columns in token labels, as VOLO's released code did.
  c.labels_swap_axes = False


def augmentation() -> Config:
  """What the device does to a batch of training images, also in section
  data."""
  c: Config = ConfigDict()
  # Alpha of the Beta distribution of mixup's and CutMix's coefficients; 0 for
  # none.
  c.mixup = 0.0
  c.cutmix = 0.0
  # Probability of CutMix where both are on.
  c.switch_prob = 0.5
  # Probability that a batch is mixed at all.
  c.mix_prob = 1.0
  # The image that each one is mixed with, of `mixing.PARTNERS`: 'timm' (of the
  # reversed batch), 'google' (of the batch rolled by one, with a coefficient of
  # at least 1/2) or 'permute' (of a random permutation).
  c.mix_style = 'timm'
  # Mix within this many groups of the batch, each with its own coefficient, as
  # training on this many processes did.
  c.mix_groups = 1
  # Probability of random erasing.
  c.erasing = 0.0
  # Erase after mixing instead of before.
  c.erase_mixed = False
  return c


def model() -> Config:
  c: Config = ConfigDict()
  # Registered name (`vit-jax models`). Other keys of this section are fields of
  # the model's class, such as patch_size.
  c.name = 'vit_s16'
  # Python module of your own that registers the model.
  c.module = ''
  return c


def loss() -> Config:
  c: Config = ConfigDict()
  # 'softmax', 'sigmoid' (summed over the classes) or 'bce' (DeiT's: averaged).
  c.name = 'softmax'
  c.label_smoothing = 0.0
  # (off, on): the targets of absent and present classes, before smoothing.
  c.label_range = (0.0, 1.0)
  # What is learned from a teacher: 'none', its 'soft' or its 'hard' labels.
  c.distill = 'none'
  # Weight of the distillation term, and temperature of soft labels.
  c.distill_alpha = 0.5
  c.distill_tau = 1.0
  # Model of the teacher, where its weights do not say it.
  c.teacher = ''
  # Workdir or file; a directory of stored logits; 'random' to try things out.
  c.teacher_weights = ''
  # By default the student's image size, and the normalization of the teacher's
  # training ('').
  c.teacher_image_size = placeholder(int)
  c.teacher_normalize = ''
  # Weight of the loss per token, where the labels have one for each token.
  c.token_weight = 0.5
  # Blend the true label into the class target (VOLO's fine-tuning).
  c.ground_truth = False
  # Weight of the similarity of consecutive attention maps (DeepViT), and the
  # number of blocks that count.
  c.cosine_reg = 0.0
  c.cosine_reg_blocks = 12
  return c


def optim() -> Config:
  c: Config = ConfigDict()
  # 'adamw', 'adam' (the same with big_vision's name), 'sgd' or 'adafactor'.
  c.name = 'adamw'
  # Peak learning rate. It is multiplied by data.batch_size / lr_batch if that
  # is set.
  c.lr = 1e-3
  c.lr_batch = placeholder(int)
  # Decay rates of the moments, and the constant in the denominator.
  c.b1 = 0.9
  c.b2 = 0.999
  c.eps = 1e-8
  # Of sgd.
  c.momentum = 0.9
  c.nesterov = False
  # Of the first moment or the momentum: 'float32' or 'bfloat16'.
  c.state_dtype = 'float32'
  c.weight_decay = 0.0
  # 'lr': p -= lr * weight_decay * p (AdamW). 'schedule': p -= (lr / peak) *
  # weight_decay * p (big_vision). 'coupled': weight_decay * p is added to the
  # gradient (L2; PyTorch's SGD).
  c.decay_style = 'lr'
  # Regular expression over whole parameter paths: those that decay.
  c.decay_mask = r'.*/kernel$'
  # Largest global norm of the gradient; 0 for no clipping.
  c.clip = 0.0
  # Micro-batches of a step; the result is that of the whole batch.
  c.accumulate = 1
  # Decay of the average of the parameters, constant as in timm; 0 for no
  # average.
  c.ema = 0.0
  # Average the BatchNorm statistics too.
  c.ema_stats = True
  # Begin with a faster decay, min(ema, (1 + step) / (10 + step)), so that a
  # short run forgets its start.
  c.ema_ramp = False
  # Factor of the learning rate from block to block, from the top down.
  c.layer_decay = 1.0
  # ((regex, {'lr': factor, 'decay': factor}), ...): the first match counts, and
  # an lr factor of 0 freezes the parameter.
  c.groups = ()
  return c


def schedule() -> Config:
  c: Config = ConfigDict()
  # One of `schedules.SCHEDULES`.
  c.name = 'cosine'
  # Length of the linear warm-up: at most one of the three.
  c.warmup_steps = placeholder(int)
  c.warmup_epochs = placeholder(float)
  c.warmup_examples = placeholder(int)
  # Learning rate at the start of the warm-up.
  c.warmup_init = 0.0
  # Learning rate at the end (cosine, linear, polynomial, timm_cosine).
  c.end = 0.0
  # Exponent of polynomial.
  c.power = 1.0
  # Of rsqrt, in steps; the curve goes as if it had begun `shift` steps before.
  c.timescale = 10_000
  c.shift = 0
  # The last steps or epochs of the run, at most one of the two: linear to 0;
  # with timm_cosine the rate stays at its end.
  c.cooldown_steps = 0
  c.cooldown_epochs = placeholder(float)
  # Of step: fractions of the run in (0, 1), or steps, at which the rate is
  # multiplied by `factor`; or `factors`, one for each boundary.
  c.boundaries = ()
  c.factor = 0.1
  c.factors = ()
  # Of timm_cosine: constant within an epoch, as it was executed officially.
  # Epoch e runs at index e - epoch_lag (1: DeiT's loop, which runs the first
  # two epochs at warmup_init; 0: VOLO's).
  c.by_epoch = False
  c.epoch_lag = 1
  # Of timm_cosine: warm restarts. The number of cycles, how much longer each is
  # than the one before, and how much lower its peak.
  c.cycle_limit = 1
  c.cycle_mul = 1.0
  c.cycle_decay = 1.0
  # Of timm_cosine: exponent of the time within a cycle, and whether the cosine
  # begins after the warm-up.
  c.k_decay = 1.0
  c.warmup_prefix = False
  return c


def mesh() -> Config:
  c: Config = ConfigDict()
  # Of `mesh.PRESETS`: 'data', 'zero', 'fsdp' or 'fsdp_tensor'.
  c.preset = 'data'
  # Devices on each axis; -1 lets the preset choose.
  c.fsdp = -1
  c.tensor = -1
  # ((regex, (axis or None, ...)), ...): shardings that go before the preset's
  # own.
  c.rules = ()
  return c


def eval() -> Config:
  c: Config = ConfigDict()
  # {name: {'source': ..., 'dir': ..., 'split': ...}}; by default the test split
  # of the training source.
  c.sets = ConfigDict()
  # By default data.batch_size.
  c.batch_size = placeholder(int)
  # How often: at most one of the two; with none only at the end.
  c.every_steps = placeholder(int)
  c.every_epochs = placeholder(float)
  # 0 resizes to the image size without regard to the aspect ratio. A ratio
  # resizes to size / crop and takes the center.
  c.crop = 0.0
  # Before a center crop: 'timm' (shorter side, rounded down), 'resize_small'
  # (shorter side, rounded to the nearest: big_vision) or 'squash' (both sides).
  c.crop_resize = 'timm'
  # As data.interpolation and data.rounding.
  c.interpolation = 'bilinear'
  c.rounding = 'nearest'
  # Evaluate the averaged parameters.
  c.ema = False
  # What recipes with a few-shot measure probe on (`vit_jax.ablation.measures`):
  # source and dir as in section data, and the splits.
  c.fewshot = ConfigDict(
    {'source': '', 'dir': '', 'train': 'train', 'test': 'test'}
  )
  return c


def log() -> Config:
  c: Config = ConfigDict()
  c.every_steps = 50
  # How often the state is saved: at most one of the two; with none only at the
  # end.
  c.checkpoint_steps = placeholder(int)
  c.checkpoint_minutes = placeholder(float)
  # Steps that are kept: the latest, the best by the first eval set's top-1, and
  # every so many steps.
  c.keep_latest = 1
  c.keep_best = 0
  c.keep_every_steps = placeholder(int)
  c.tensorboard = True
  # (first, last): a profiler trace of these steps.
  c.profile_steps = ()
  # Print the table of parameters and shardings at the start.
  c.overview = False
  return c
