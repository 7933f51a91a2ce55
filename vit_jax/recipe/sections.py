"""The keys of every section of a recipe, with their defaults.

A key that may be None is a `placeholder` of its type. The comment above a key
says what the key does. Its allowed values are listed beside the code that reads
it.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

placeholder = config_dict.placeholder
# A ConfigDict. Type checkers do not know its keys, so they take it as it is.
Config = Any


def run() -> Config:
  """Seed, length and start of the run."""
  c: Config = ConfigDict()
  # Name of the run in the log; by default the name of the model.
  c.name = ''
  # Seed of all random numbers: initial parameters, order of the data,
  # augmentation, dropout.
  c.seed = 0
  # Length of training: set one of these three. On the command line, setting one
  # unsets the others.
  c.steps = placeholder(int)
  c.epochs = placeholder(float)
  c.examples = placeholder(int)
  # Epochs that the run goes on for after its length, also when it has finished
  # (`vit_jax.recipe.extension` says with which learning rate).
  c.extend = placeholder(float)
  # Where the settings of a finished run changed; the run sets it itself.
  c.extended = ()
  # How lengths in epochs become steps. False: an epoch has images //
  # data.batch_size steps, as timm's loaders have it. True: it has images /
  # data.batch_size steps, and the whole length is rounded, as in big_vision.
  c.fractional_epochs = False
  # Whether compiled programs are kept in the user's cache folder, where the
  # next start finds them; see `vit_jax.program_cache`.
  c.compilation_cache = True
  # Compute dtype: 'float32', 'bfloat16', or 'auto', which is bfloat16 on
  # accelerators and float32 on a CPU.
  c.dtype = 'auto'
  # What to do if a loss or gradient is not finite: 'stop' the run, or 'skip'
  # the update of that step.
  c.nan = 'stop'
  # Workdir or step of another run to continue from.
  c.resume = ''
  # Weights to start from: .npz, .pth, .safetensors, a workdir or a hub name.
  c.pretrained = ''
  # What stands before the names of the model's tensors in the file of
  # `pretrained`, such as 'model_ema'; '' searches it.
  c.prefix = ''
  # False trains a model that stays in evaluation mode: no dropout and no drop
  # path, and BatchNorm keeps the statistics that it was loaded with (DeiT's
  # released fine-tuning).
  c.train_mode = True
  # Do not train, but evaluate the parameters of the workdir, of `resume` or of
  # `pretrained`.
  c.eval_only = False
  return c


def model() -> Config:
  """The model."""
  c: Config = ConfigDict()
  # Registered name (`vit-jax models`). Other keys of this section are fields of
  # the model's class, such as patch_size.
  c.name = 'vit_s16'
  # Python module of your own that registers the model.
  c.module = ''
  return c


def loss() -> Config:
  """Classification loss, distillation and regularization."""
  c: Config = ConfigDict()
  # 'softmax', 'sigmoid' (binary cross-entropy, summed over the classes) or
  # 'bce' (DeiT's: averaged over the classes).
  c.name = 'softmax'
  # For 'bce': targets above this, after label smoothing, become 1, others 0.
  c.bce_threshold = 0.0
  # Part of the target that is spread evenly over all classes.
  c.label_smoothing = 0.0
  # False smooths only labels of a single class, not soft ones (pseudo-labels).
  c.smooth_soft = True
  # Factor of the loss. The loss is a mean over the batch; Noisy Student adds
  # the means over the labeled and over the pseudo-labeled images.
  c.weight = 1.0
  # (off, on): the targets of wrong and right classes, before label smoothing.
  c.label_range = (0.0, 1.0)
  # Distillation: 'none', 'soft' (the teacher's probabilities) or 'hard' (the
  # teacher's best class).
  c.distill = 'none'
  # Weight of the distillation term (the classification loss has the rest of 1),
  # and temperature of soft labels.
  c.distill_alpha = 0.5
  c.distill_tau = 1.0
  # Model of the teacher, if its weights do not name it.
  c.teacher = ''
  # Weights of the teacher: a workdir or file, a directory of stored logits
  # (`vit-jax teacher-logits`), or 'random' for trial runs.
  c.teacher_weights = ''
  # Image size and normalization of the teacher's images. By default the size is
  # the student's, and the normalization that of the teacher's training ('').
  c.teacher_image_size = placeholder(int)
  c.teacher_normalize = ''
  # Weight of the mean loss of the tokens, for models with token logits.
  c.token_weight = 0.5
  # Blend the true label into the class target (VOLO's fine-tuning).
  c.ground_truth = False
  # Weight of the similarity of consecutive attention maps (DeepViT), and the
  # number of pairs of blocks, from the first on, that are compared.
  c.cosine_reg = 0.0
  c.cosine_reg_blocks = 12
  return c


def optim() -> Config:
  """Optimizer, weight decay and moving average."""
  c: Config = ConfigDict()
  # 'adamw', 'adam' (the same with big_vision's name), 'sgd', 'adafactor',
  # 'lamb' (as in timm) or 'rmsprop' (TensorFlow's; its decay rate is b2).
  c.name = 'adamw'
  # Peak learning rate. If lr_batch is set, the rate is multiplied by
  # data.batch_size / lr_batch.
  c.lr = 1e-3
  c.lr_batch = placeholder(int)
  # Decay rates of Adam's moments, and the constant in its denominator.
  c.b1 = 0.9
  c.b2 = 0.999
  c.eps = 1e-8
  # Momentum of sgd.
  c.momentum = 0.9
  # Nesterov's form of the momentum of sgd, or of adam (NAdam).
  c.nesterov = False
  # Settings of 'adafactor'. Second moments of matrices with at least
  # `min_factored` rows and columns are factored. Their decay at step t is 1 -
  # (t - decay_offset)^-decay_exponent, but at most b2. `eps` is added to the
  # squared gradient. `update_clip` limits the root mean square of the update of
  # each tensor (0 for no limit).
  c.adafactor = ConfigDict(
    {
      'min_factored': 32,
      'decay_exponent': 0.8,
      'decay_offset': 0,
      'eps': 1e-30,
      'update_clip': 0.0,
    }
  )
  # Type in which the first moment or the momentum is stored: 'float32' or
  # 'bfloat16'.
  c.state_dtype = 'float32'
  # Weight decay of the parameters that `decay_mask` matches; 0 for none.
  c.weight_decay = 0.0
  # 'lr': p -= lr * weight_decay * p (AdamW). 'schedule': p -= (lr / peak) *
  # weight_decay * p (big_vision). 'coupled': weight_decay * p is added to the
  # gradient (L2; PyTorch's SGD).
  c.decay_style = 'lr'
  # Regular expression: parameters whose whole path it matches decay.
  c.decay_mask = r'.*/kernel$'
  # Largest global norm of the gradient; 0 for no clipping.
  c.clip = 0.0
  # Number of micro-batches whose gradients are averaged in a step. The result
  # is that of the whole batch, with less memory.
  c.accumulate = 1
  # Decay of the moving average of the parameters, such as 0.9999; 0 for none.
  c.ema = 0.0
  # Average the BatchNorm statistics too.
  c.ema_stats = True
  # Use the decay min(ema, (1 + step) / (10 + step)), so that a short run
  # forgets its initial parameters; False for a constant decay, as in timm.
  c.ema_ramp = False
  # Factor of the learning rate from each block to the block before it, such as
  # 0.75: blocks near the input learn more slowly.
  c.layer_decay = 1.0
  # ((regex, {'lr': factor, 'decay': factor}), ...): factors of the learning
  # rate and of the weight decay for parameters whose whole path matches. The
  # first match counts. An lr factor of 0 freezes the parameter.
  c.groups = ()
  return c


def schedule() -> Config:
  """Learning-rate schedule."""
  c: Config = ConfigDict()
  # 'constant', 'cosine', 'linear', 'rsqrt', 'polynomial', 'step',
  # 'exponential' or 'timm_cosine'.
  c.name = 'cosine'
  # Length of the linear warm-up: set at most one of the three.
  c.warmup_steps = placeholder(int)
  c.warmup_epochs = placeholder(float)
  c.warmup_examples = placeholder(int)
  # Learning rate at the start of the warm-up.
  c.warmup_init = 0.0
  # Learning rate at the end (cosine, linear, polynomial, timm_cosine).
  c.end = 0.0
  # Exponent of 'polynomial'.
  c.power = 1.0
  # For 'rsqrt', in steps: the rate is peak / sqrt(1 + (n + shift) / timescale),
  # n steps after the warm-up.
  c.timescale = 10_000
  c.shift = 0
  # Length of the cooldown at the end of the run: set at most one of the two.
  # The rate falls linearly to 0; with 'timm_cosine' it stays at `end`.
  c.cooldown_steps = 0
  c.cooldown_epochs = placeholder(float)
  # For 'step': steps, or fractions of the run in (0, 1), at which the rate is
  # multiplied by `factor`. `factors`, if set, has a factor of the peak for each
  # boundary instead.
  c.boundaries = ()
  # For 'exponential': the rate is multiplied by `factor` after each of these
  # intervals, which begin at step 0.
  c.decay_steps = placeholder(int)
  c.decay_epochs = placeholder(float)
  c.factor = 0.1
  c.factors = ()
  # Keep the rate constant within an epoch, as the released code of timm's
  # schedules does. Epoch e has the rate of epoch e - epoch_lag: 1 for DeiT's
  # loop, which runs the first two epochs at warmup_init, 0 for VOLO's.
  c.by_epoch = False
  c.epoch_lag = 1
  # For 'timm_cosine' with warm restarts: the number of cycles, and the factors
  # of length and peak from each cycle to the next.
  c.cycle_limit = 1
  c.cycle_mul = 1.0
  c.cycle_decay = 1.0
  # For 'timm_cosine': exponent of the time within a cycle, and whether the
  # cosine begins after the warm-up instead of at step 0.
  c.k_decay = 1.0
  c.warmup_prefix = False
  return c


def mesh() -> Config:
  """How parameters and optimizer state are sharded over the devices."""
  c: Config = ConfigDict()
  # What is sharded: 'data' (nothing but the batch), 'zero' (optimizer state and
  # stored parameters), 'fsdp' (parameters in a step too) or 'fsdp_tensor' (also
  # within layers).
  c.preset = 'data'
  # Number of devices on the axes fsdp and tensor; -1 lets the preset choose.
  c.fsdp = -1
  c.tensor = -1
  # ((regex, spec), ...): shardings of parameters by their path, tried before
  # those of the preset. A spec is (axis or None, ...), an axis such as 'fsdp',
  # an axis and what it splits first ('fsdp:-2'), or 'replicated'.
  c.rules = ()
  return c


def eval() -> Config:
  """Evaluation during and after training."""
  c: Config = ConfigDict()
  # {name: {'source': ..., 'dir': ..., 'split': ...}}; by default the test split
  # of the training source.
  c.sets = ConfigDict()
  # Images of one evaluation step, on all devices; by default data.batch_size.
  c.batch_size = placeholder(int)
  # How often to evaluate: set at most one of the two. With neither, only at the
  # end.
  c.every_steps = placeholder(int)
  c.every_epochs = placeholder(float)
  # 0 resizes both sides to the image size, whatever the aspect ratio. A ratio
  # such as 0.875 resizes to size / crop and takes the center.
  c.crop = 0.0
  # What is resized before the center crop: 'timm' (the shorter side, to size /
  # crop rounded down), 'resize_small' (the shorter side, rounded to the nearest
  # integer, as in big_vision), 'resize_long' (the longer side; the rest of the
  # crop is black) or 'squash' (both sides).
  c.crop_resize = 'timm'
  # Like data.interpolation and data.rounding, for evaluation.
  c.interpolation = 'bilinear'
  c.rounding = 'nearest'
  # Evaluate the moving average of the parameters (optim.ema).
  c.ema = False
  # Few-shot probes of the features, as `vit-jax fewshot` makes them. `shots`
  # are the numbers of images per class, such as (1, 5, 10), of the probes at
  # every evaluation; () for none. source and dir are as in section data, whose
  # values count where they are '', and `train` and `test` are splits. Ablations
  # probe the same data at the end (`vit_jax.ablation.measures`).
  c.fewshot = ConfigDict(
    {'source': '', 'dir': '', 'train': 'train', 'test': 'test', 'shots': ()}
  )
  return c


def log() -> Config:
  """Log, checkpoints and profiler."""
  c: Config = ConfigDict()
  # How often metrics are logged.
  c.every_steps = 50
  # How often the state is saved: set at most one of the two. With neither, only
  # at the end.
  c.checkpoint_steps = placeholder(int)
  c.checkpoint_minutes = placeholder(float)
  # Which saved steps are kept: a number of latest ones, a number of best ones
  # by the top-1 of the first eval set, and the multiples of a number of steps.
  c.keep_latest = 2
  c.keep_best = 0
  c.keep_every_steps = placeholder(int)
  # Write TensorBoard event files too.
  c.tensorboard = True
  # Other programs that get the metrics: 'wandb' and 'mlflow', if they are
  # installed (`vit_jax.training.trackers`).
  c.writers = ()
  # Images of the first batch, as the model gets them, in TensorBoard and
  # `writers`; 0 for none.
  c.images = 16
  # (first, last): record a profiler trace of these steps; () for none.
  c.profile_steps = ()
  # Print the table of parameters and shardings at the start.
  c.overview = False
  return c
