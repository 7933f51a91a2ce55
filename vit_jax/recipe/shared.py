"""Functions that recipes share: arguments, common settings, smoke variants."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vit_jax.models.registry import list_models, model_info
from vit_jax.recipe.sections import Config

# Small sizes for each family of models, for the smoke variants. A model belongs
# to the longest prefix of its name.
_VIT = dict(patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
_EFFICIENTNET = dict(
  width_multiplier=1.0,
  depth_multiplier=1.0,
  stages=((1, 3, 1, 1, 8), (2, 3, 2, 6, 16)),
  stem_channels=8,
  head_channels=32,
)
_SMALL: dict[str, dict[str, Any]] = {
  'vit': _VIT,
  'aa_vit': _VIT,
  'deit': _VIT,
  'cait': _VIT,
  'ceit': dict(_VIT, stem_width=16),
  'deepvit': _VIT,
  # Hybrids: two ResNet stages, and patches of one position of their output.
  'r': dict(_VIT, patch_size=1, stem=(1, 1)),
  'bit': dict(num_layers=(1, 1), width_factor=0.5),
  'resnet': dict(num_layers=(1, 1), width=8),
  'regnety': dict(w0=8, wa=8.0, wm=2.0, depth=2, group_size=4, stem_width=8),
  'efficientnet': _EFFICIENTNET,
  'tf_efficientnet': _EFFICIENTNET,
  'mixer': dict(patch_size=8, width=32, depth=2, tokens_mlp_dim=16, mlp_dim=64),
  'volo': dict(
    patch_size=4,
    layers=(1, 1, 1),
    embed_dims=(16, 32, 32),
    num_heads=(2, 2, 2),
    mlp_ratios=(2, 2, 2),
    stem_hidden_dim=8,
    outlook_attention=(True, False, False),
    downsamples=(True, False, False),
    post_layers=('ca',),
  ),
}


def parse_arg(
  arg: str | None, *, model: str = '', options: Iterable[str] = ()
) -> tuple[str, set[str]]:
  """Splits 'b16,ft384,smoke' into a model and switches.

  Args:
    arg: the text after the colon of --config=configs/X.py:ARG.
    model: the model if `arg` names none; '' for a recipe that takes no model.
    options: the switches that the recipe has, besides 'smoke'.

  Returns:
    The model and the set of switches that `arg` names.

  Raises:
    ValueError: a word is neither a switch nor the model.
  """
  words = [w for w in (arg or '').split(',') if w]
  known = {*options, 'smoke'}
  switches = {w for w in words if w in known}
  others = [w for w in words if w not in known]
  if others and model:
    model = others.pop(0)
  if others:
    raise ValueError(
      f'unknown argument {others[0]!r} of this recipe; '
      f'switches: {", ".join(sorted(known))}'
    )
  return model, switches


def one_of(
  switches: Collection[str], choices: Iterable[str], default: str = ''
) -> str:
  """The choice that `switches` names; ValueError if it names several."""
  given = [c for c in choices if c in switches]
  if len(given) > 1:
    raise ValueError(f'{" and ".join(given)} are both given: name one')
  return given[0] if given else default


def check_size(size: str, sizes: Iterable[str]) -> None:
  """ValueError with the allowed sizes, unless `size` is one of them."""
  sizes = list(sizes)
  if size not in sizes:
    raise ValueError(f'unknown size {size!r}; allowed: {", ".join(sizes)}')


def full_name(word: str, prefix: str = 'vit_') -> str:
  """The registered model of 'b16' or 'vit_b16'; ValueError if there is none."""
  name = f'{prefix}{word}'
  return name if name in list_models(prefix) else model_info(word).name


def width(name: str) -> int:
  """Embedding width of a registered ViT."""
  return model_info(name).fields['width']


def imagenet(config: Config) -> None:
  """Sets ImageNet-1k with the splits and images of Google's recipes.

  The last percent of the training split is held out as 'minival', for choosing
  settings; 'val' is the published validation set.
  """
  config.run.fractional_epochs = True
  config.data.source = 'tfds:imagenet2012'
  config.data.split = 'train[:99%]'
  config.mesh.preset = 'zero'
  config.eval.sets = {
    'minival': {'split': 'train[99%:]'},
    'val': {'split': 'validation'},
  }
  big_vision_images(config)
  config.eval.every_epochs = 5.0
  config.log.checkpoint_minutes = 20.0


def tensorflow_crops(config: Config) -> None:
  """Sets random crops as TensorFlow draws them: uniform in height, not in area.

  The arguments are those that Google's recipes give to
  `tf.image.sample_distorted_bounding_box`.
  """
  config.data.crop_sampling = 'height'
  config.data.area, config.data.aspect = (0.05, 1.0), (0.75, 1.33)


def big_vision_images(config: Config) -> None:
  """Sets training and test images as big_vision makes them.

  Pixels are truncated to integers. The shorter side of test images is shrunk to
  256 with the interpolation 'area', and the central 224 pixels are cropped (in
  big_vision's configs, `resize_small(256)|central_crop(224)`). A recipe may add
  data.jpeg_dct='fast', which also decodes JPEGs as TensorFlow does and needs
  the package simplejpeg.
  """
  tensorflow_crops(config)
  config.data.upright = False  # TensorFlow ignores EXIF
  config.data.rounding = config.eval.rounding = 'truncate'
  config.eval.crop, config.eval.crop_resize = 224 / 256, 'resize_small'
  config.eval.interpolation = 'area'


def imagenet_full(config: Config) -> None:
  """Sets ImageNet-1k as DeiT's family uses it: no training image held out."""
  config.data.source = 'tfds:imagenet2012'
  config.eval.sets = {'val': {'split': 'validation'}}
  config.eval.every_epochs = 10.0
  config.log.checkpoint_minutes = 20.0
  config.mesh.preset = 'zero'


def fewshot_on_imagenet(config: Config) -> None:
  """Sets big_vision's few-shot probe on the first 65,000 ImageNet images."""
  config.eval.fewshot.update(
    source='tfds:imagenet2012', train='train[:65000]', test='validation'
  )


def timm_augmentation(config: Config) -> None:
  """Sets DeiT's augmentation (arXiv:2012.12877, table 9), as in timm."""
  config.data.area = (0.08, 1.0)
  config.data.randaugment = 'rand-m9-mstd0.5-inc1'
  config.data.mixup, config.data.cutmix = 0.8, 1.0
  config.data.erasing = 0.25
  config.loss.label_smoothing = 0.1


def timm_schedule(
  config: Config, *, warmup_epochs: float = 5.0, epoch_lag: int
) -> None:
  """Sets timm's cosine, constant within an epoch: warm-up from 1e-6, end 1e-5.

  Args:
    config: changed in place.
    warmup_epochs: length of the linear warm-up in epochs.
    epoch_lag: 1 for DeiT's loop, which sets the rate at the end of an epoch, so
      that the first two epochs run at 1e-6; 0 for VOLO's and DeepViT's.
  """
  config.schedule.name, config.schedule.by_epoch = 'timm_cosine', True
  config.schedule.epoch_lag = epoch_lag
  config.schedule.warmup_epochs = warmup_epochs
  config.schedule.warmup_init = 1e-6
  config.schedule.end = 1e-5


def deit_finetuning(config: Config, image_size: int) -> None:
  """Sets DeiT's fine-tuning at a larger size: 30 epochs at a constant 5e-6.

  The released code fine-tunes in evaluation mode: without drop path, and with
  the BatchNorm statistics of the pre-training (arXiv:2012.12877, section 6.1;
  main.py --finetune).
  """
  config.run.epochs = 30.0
  config.run.train_mode = False
  config.data.image_size, config.data.batch_size = image_size, 512
  config.model.drop_path = 0.0
  config.optim.lr = config.schedule.end = 5e-6
  config.optim.weight_decay = 1e-8
  # The published run had 16 processes with 32 images each.
  config.data.repeat_groups = config.data.mix_groups = 16


def original_vit(config: Config, name: str, *, dropout: float) -> None:
  """Sets model, loss and warm-up of the ViT paper's pre-training.

  The model has a tanh layer before the head. The loss is the sigmoid
  cross-entropy with head bias -10 and targets 0.9999 and 0.0001. The warm-up
  has 10,000 steps. Evaluation resizes the shorter side to 256 and crops 224.
  Source: arXiv:2010.11929, table 3, and the authors in issues 2, 34 and 124 of
  google-research/vision_transformer.

  Args:
    config: changed in place.
    name: a registered ViT or hybrid.
    dropout: 0.1 for ImageNet and ImageNet-21k, 0 for JFT.
  """
  config.run.fractional_epochs = True
  config.model.update(
    name=name,
    dropout=dropout,
    head_bias=-10.0,
    representation_size=width(name),
    # The last block computes only what the class token needs.
    class_token_only=True,
  )
  config.loss.name = 'sigmoid'
  config.loss.label_range = (0.0001, 0.9999)
  config.schedule.warmup_steps = 10_000
  big_vision_images(config)


# AugReg's levels of augmentation (arXiv:2106.10270, section 3.3; named as in
# the published files): RandAugment's (layers, magnitude), and mixup's alpha.
AUGREG: dict[str, tuple[tuple[int, int] | None, float]] = {
  'none': (None, 0.0),
  'light1': ((2, 0), 0.0),
  'light2': ((2, 10), 0.2),
  'medium1': ((2, 15), 0.2),
  'medium2': ((2, 15), 0.5),
  'strong1': ((2, 20), 0.5),
  'strong2': ((2, 20), 0.8),
}


AUGREG_SWITCHES = ('wd0.03', 'do0.1', 'sd0.1', *AUGREG)


def augreg(
  config: Config,
  model: str,
  switches: Collection[str],
  levels: Mapping[str, str],
) -> None:
  """Sets AugReg's optimizer, loss and augmentation.

  Args:
    config: changed in place.
    model: a registered model, or 'b16' for vit_b16.
    switches: among AUGREG_SWITCHES: at most one level, 'wd0.03' (weight decay),
      'do0.1' (dropout), 'sd0.1' (drop path).
    levels: {model: published level}, used if no switch names a level.

  Raises:
    ValueError: the switches name no level, and none was published for the
      model.
  """
  config.run.fractional_epochs = True
  name = config.model.name = full_name(model)
  level = one_of(switches, AUGREG, levels.get(name, ''))
  if not level:
    raise ValueError(
      f'no level of augmentation was published for {name}; those with one: '
      f'{", ".join(levels)}. Name a level after the model: {", ".join(AUGREG)}'
    )
  config.model.dropout = 0.1 if 'do0.1' in switches else 0.0
  config.model.drop_path = 0.1 if 'sd0.1' in switches else 0.0
  config.loss.name = 'sigmoid'
  config.optim.name, config.optim.state_dtype = 'adam', 'bfloat16'
  config.optim.decay_style = 'schedule'
  config.optim.weight_decay = 3e-5 if 'wd0.03' in switches else 1e-4
  config.optim.clip = 1.0
  config.schedule.warmup_steps = 10_000
  policy, config.data.mixup = AUGREG[level]
  config.data.randaugment = 'google({},{})'.format(*policy) if policy else ''
  config.data.mix_style = 'google'


def set_preprocessing(config: Config) -> None:
  """Sets normalization and evaluation transform of the model's authors."""
  preprocessing = model_info(config.model.name).preprocessing
  config.data.normalize = preprocessing.normalize
  # The published pipelines ignore EXIF; photos of a folder are turned upright.
  config.data.upright = config.data.source == 'folder'
  config.eval.crop = preprocessing.crop or 0.0
  config.eval.interpolation = preprocessing.interpolation
  config.eval.crop_resize = preprocessing.crop_resize
  config.eval.rounding = preprocessing.rounding


def smoke(config: Config, **model_fields: Any) -> Config:
  """Shrinks a recipe to a few seconds on one CPU, on synthetic data.

  Model family, loss, optimizer and augmentation stay; the sizes become small.

  Args:
    config: changed in place.
    **model_fields: fields of the model besides the small sizes of its family.

  Returns:
    The config.
  """
  config.run.epochs = config.run.examples = None
  config.run.steps = 4
  config.run.pretrained = ''
  config.data.source, config.data.dir = 'synthetic', ''
  config.data.split = 'train'
  config.data.num_classes, config.data.num_examples = 10, 64
  config.data.batch_size = 16
  config.data.image_size = 32
  config.data.image_width = config.data.device_resize = None
  if config.data.resize is not None:
    config.data.resize = 36
  config.data.labels = config.data.pseudo_dir = ''
  if config.data.pseudo_ratio:
    # The synthetic test images stand for the pseudo-labeled ones.
    config.data.split = 'train+test'
    config.data.pseudo_ratio = min(config.data.pseudo_ratio, 3)
  if 'bn_groups' in config.model:
    config.model.bn_groups = 1
  config.data.repeat_groups = min(config.data.repeat_groups, 2)
  config.data.mix_groups = min(config.data.mix_groups, 2)
  if config.loss.distill != 'none':
    config.loss.teacher, config.loss.teacher_weights = 'vit_ti16', 'random'
    config.loss.teacher_image_size = None
  config.optim.accumulate = min(config.optim.accumulate, 2)
  config.schedule.warmup_epochs = config.schedule.warmup_examples = None
  config.schedule.warmup_steps = 1
  config.schedule.cooldown_epochs = None
  if config.schedule.decay_epochs:
    config.schedule.decay_epochs, config.schedule.decay_steps = None, 1
  config.schedule.cooldown_steps = min(config.schedule.cooldown_steps, 1)
  if config.mesh.preset == 'fsdp_tensor':
    config.mesh.preset = 'fsdp'
  config.mesh.fsdp = config.mesh.tensor = -1
  config.eval.sets = {}
  if config.eval.fewshot.source:
    config.eval.fewshot.update(source='synthetic', train='train', test='test')
  config.eval.every_epochs = None
  config.eval.every_steps = 2
  config.log.every_steps = 1
  config.log.checkpoint_minutes = None
  config.log.checkpoint_steps = 2
  config.model.update(small_fields(config.model.name), **model_fields)
  return config


def small_fields(name: str) -> dict[str, Any]:
  """Fields that make a registered model of any family small."""
  prefixes = [p for p in _SMALL if name.startswith(p)]
  return dict(_SMALL[max(prefixes, key=len)]) if prefixes else {}
