"""Writes docs/recipes.md: every recipe beside what was published.

    python docs/recipes.py

Each `Variant` lists the published settings of a recipe by key, with the source,
and the deviations with their reasons. `tests/recipe/test_page.py` fails when a
recipe has other values, or when the page is not the one that this writes.
"""

import dataclasses
import functools
import importlib
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'recipes.md'
sys.path.insert(0, str(ROOT))
# {task: published accuracy in per cent} of VTAB-1k.
VTAB = importlib.import_module('vit_jax.evaluation.vtab').PUBLISHED['L/16 I21k']


@dataclasses.dataclass(frozen=True)
class Variant:
  """A recipe with an argument, and what was published of it.

  Attributes:
    recipe: name of configs/RECIPE.py.
    arg: its argument.
    source: where the settings were published.
    settings: {key: published value}.
    expected: published result, with the setting that it belongs to.
    deviations: {key: reason} where the recipe differs from `settings`.
  """

  recipe: str
  arg: str
  source: str
  settings: dict[str, Any]
  expected: str
  deviations: dict[str, str] = dataclasses.field(default_factory=dict)


# --- Settings that several recipes have in common ----------------------------

GOOGLE_IMAGES = {  # big_vision's preprocessing
  'data.crop_sampling': 'height',
  'data.area': (0.05, 1.0),
  'data.aspect': (0.75, 1.33),
  'data.rounding': 'truncate',
  'data.jpeg_dct': 'fast',
  'data.normalize': 'half',
  'eval.crop': 224 / 256,
  'eval.crop_resize': 'resize_small',
  'eval.interpolation': 'area',
  'eval.rounding': 'truncate',
}
ORIGINAL = {  # arXiv:2010.11929, pre-training
  **GOOGLE_IMAGES,
  'run.fractional_epochs': True,
  'data.batch_size': 4096,
  'data.image_size': 224,
  'data.flip': 0.5,
  'data.randaugment': '',
  'data.mixup': 0.0,
  'loss.name': 'sigmoid',
  'loss.label_range': (0.0001, 0.9999),
  'model.head_bias': -10.0,
  'optim.name': 'adamw',
  'optim.b1': 0.9,
  'optim.b2': 0.999,
  'schedule.warmup_steps': 10_000,
}
BIG_VISION = {  # AugReg and the plain baseline
  **GOOGLE_IMAGES,
  'run.fractional_epochs': True,
  'optim.name': 'adam',
  'optim.lr': 1e-3,
  'optim.decay_style': 'schedule',
  'optim.weight_decay': 1e-4,
  'optim.clip': 1.0,
  'schedule.warmup_steps': 10_000,
  'data.mix_style': 'google',
}
AUGREG = {
  **BIG_VISION,
  'run.epochs': 300.0,
  'data.batch_size': 4096,
  'loss.name': 'sigmoid',
  'optim.state_dtype': 'bfloat16',
  'schedule.name': 'cosine',
  'schedule.end': 0.0,
}
FINETUNE = {  # arXiv:2010.11929, table 4
  'data.batch_size': 512,
  'data.image_size': 384,
  'data.crop_sampling': 'height',
  'data.area': (0.05, 1.0),
  'data.aspect': (0.75, 1.33),
  'data.rounding': 'none',
  'data.jpeg_dct': 'fast',
  'optim.name': 'sgd',
  'optim.momentum': 0.9,
  'optim.state_dtype': 'bfloat16',
  'optim.clip': 1.0,
  'optim.weight_decay': 0.0,
  'optim.accumulate': 8,
  'schedule.name': 'cosine',
  'eval.crop': 0.0,
  'eval.rounding': 'none',
}
TIMM = {  # arXiv:2012.12877, table 9
  'run.fractional_epochs': False,
  'data.crop_sampling': 'area',
  'data.area': (0.08, 1.0),
  'data.randaugment': 'rand-m9-mstd0.5-inc1',
  'data.mixup': 0.8,
  'data.cutmix': 1.0,
  'data.erasing': 0.25,
  'loss.name': 'softmax',
  'loss.label_smoothing': 0.1,
  'optim.name': 'adamw',
  'optim.weight_decay': 0.05,
  'optim.clip': 0.0,
  'schedule.name': 'timm_cosine',
  'schedule.by_epoch': True,
  'schedule.warmup_init': 1e-6,
  'schedule.end': 1e-5,
}
DEIT = {
  **TIMM,
  'run.epochs': 300.0,
  'data.batch_size': 1024,
  'data.interpolation': 'bicubic',
  'data.repeats': 3,
  'data.repeat_groups': 4,
  'data.mix_groups': 4,
  'data.normalize': 'imagenet',
  'model.drop_path': 0.1,
  'optim.lr': 5e-4,
  'optim.lr_batch': 512,
  'optim.ema': 0.99996,
  'schedule.warmup_epochs': 5.0,
  'schedule.epoch_lag': 1,
  'eval.crop': 0.875,
  'eval.interpolation': 'bicubic',
  'eval.ema': False,
}
VOLO = {
  **TIMM,
  'run.epochs': 310.0,
  'data.batch_size': 1024,
  'data.interpolation': 'random',
  'data.mixup': 0.0,
  'data.cutmix': 0.0,
  'loss.token_weight': 0.5,
  'schedule.warmup_epochs': 20.0,
  'schedule.cooldown_epochs': 10.0,
  'schedule.epoch_lag': 0,
  'optim.ema': 0.0,
}
TABLE3 = (
  'arXiv:2010.11929, table 3; issues {} of google-research/vision_transformer'
)
FAST_DCT = (
  "TensorFlow's fast decoding of JPEGs needs the package simplejpeg: set "
  '--config.data.jpeg_dct=fast. Pixels differ by 1 of 255 on average.'
)
TORCHVISION = {  # reference script, 8 processes
  'run.epochs': 90.0,
  'data.batch_size': 256,
  'data.area': (0.08, 1.0),
  'data.flip': 0.5,
  'data.normalize': 'imagenet',
  'loss.name': 'softmax',
  'loss.label_smoothing': 0.0,
  'model.zero_init': False,
  'model.bn_groups': 8,
  'optim.name': 'sgd',
  'optim.momentum': 0.9,
  'optim.nesterov': False,
  'optim.lr': 0.1,
  'optim.lr_batch': 256,
  'optim.decay_style': 'coupled',
  'optim.weight_decay': 1e-4,
  'optim.decay_mask': '.*',
  'schedule.name': 'step',
  'schedule.boundaries': (30 / 90, 60 / 90),
  'schedule.factor': 0.1,
  'eval.crop': 224 / 256,
}
# arXiv:2110.00476, table 2; the threshold is that of timm's commands.
STRIKES_BACK = {
  'data.batch_size': 2048,
  'data.mixup': 0.1,
  'data.cutmix': 1.0,
  'data.erasing': 0.0,
  'loss.name': 'bce',
  'loss.bce_threshold': 0.2,
  'loss.label_smoothing': 0.0,
  'optim.name': 'lamb',
  'optim.weight_decay': 0.02,
  'schedule.name': 'timm_cosine',
  'schedule.warmup_epochs': 5.0,
  'eval.crop': 0.95,
}
PYCLS = {  # configs of RegNetY for 8 GPUs
  'run.epochs': 100.0,
  'data.area': (0.08, 1.0),
  'data.flip': 0.5,
  'data.color_jitter': 0.1,
  'data.normalize': 'imagenet',
  'loss.label_smoothing': 0.0,
  'model.zero_init': False,
  'optim.name': 'sgd',
  'optim.momentum': 0.9,
  'optim.nesterov': True,
  'optim.lr': 0.1,
  'optim.lr_batch': 128,
  'optim.decay_style': 'coupled',
  'optim.weight_decay': 5e-5,
  'optim.decay_mask': '.*',
  'schedule.name': 'cosine',
  'schedule.warmup_epochs': 5.0,
}
EFFICIENTNET = {  # tensorflow/tpu and google-research/noisystudent
  'data.area': (0.08, 1.0),
  'data.crop_sampling': 'height',
  'data.interpolation': 'tf_bicubic',
  'data.flip': 0.5,
  'data.normalize': 'imagenet',
  'loss.name': 'softmax',
  'loss.label_smoothing': 0.1,
  'model.drop_path': 0.2,
  'optim.name': 'rmsprop',
  'optim.b2': 0.9,
  'optim.momentum': 0.9,
  'optim.eps': 1e-3,
  'optim.lr': 0.016,
  'optim.decay_style': 'coupled',
  'optim.weight_decay': 1e-5,
  'optim.ema': 0.9999,
  'optim.ema_stats': True,
  'optim.ema_ramp': True,
  'eval.ema': True,
  'eval.interpolation': 'tf_bicubic',
  'schedule.name': 'exponential',
  'schedule.factor': 0.97,
  'schedule.warmup_epochs': 5.0,
}
BICUBIC = (
  "The weights are tested with Pillow's bicubic interpolation, as timm does; "
  "--config.eval.interpolation=tf_bicubic is TensorFlow's."
)
LIGHTING = (
  'The published lighting noise of strength 0.1 along the principal colors is '
  'not available; color jitter is another noise and is not used in its place.'
)
NO_CLIP = (
  'No clipping was published for this data set. The norm of the gradient is '
  'clipped at 1 as in all other recipes of the authors.'
)

VARIANTS = [
  Variant(
    'vit_b16_i1k',
    'b16',
    TABLE3.format('62, 89 and 124'),
    {
      **ORIGINAL,
      'run.epochs': 300.0,
      'model.dropout': 0.1,
      'model.representation_size': 768,
      'optim.lr': 3e-3,
      'optim.weight_decay': 0.3,
      'optim.clip': 1.0,
      'schedule.name': 'cosine',
    },
    '74.79 on the validation set at 224 px; 77.91 after fine-tuning at 384 px',
  ),
  Variant(
    'vit_i21k',
    'b16',
    TABLE3.format('2, 34 and 124'),
    {
      **ORIGINAL,
      'run.epochs': 90.0,
      'model.dropout': 0.1,
      'model.representation_size': 768,
      'optim.lr': 1e-3,
      'optim.weight_decay': 0.03,
      'optim.clip': 0.0,
      'schedule.name': 'linear',
      'schedule.end': 1e-5,
    },
    'precision at 1 of 47.88 on held-out images; 84.53 on ImageNet after '
    'fine-tuning at 384 px with dropout 0',
    {'optim.clip': NO_CLIP},
  ),
  Variant(
    'vit_i21k',
    'l16',
    TABLE3.format('2, 34 and 124'),
    {
      **ORIGINAL,
      'run.epochs': 90.0,
      'model.dropout': 0.1,
      'model.representation_size': 1024,
      'optim.lr': 1e-3,
      'optim.weight_decay': 0.03,
      'optim.clip': 0.0,
      'schedule.name': 'linear',
      'schedule.end': 1e-5,
    },
    'precision at 1 of 49.90 on held-out images; 85.30 on ImageNet after '
    'fine-tuning at 512 px with averaged parameters, 84.47 at 384 px',
    {'optim.clip': NO_CLIP},
  ),
  Variant(
    'vit_jft',
    'h14',
    'arXiv:2010.11929, table 3',
    {
      **ORIGINAL,
      'run.epochs': 14.0,
      'model.dropout': 0.0,
      'model.representation_size': 1280,
      'optim.lr': 3e-4,
      'optim.weight_decay': 0.1,
      'optim.clip': 1.0,
      'schedule.name': 'linear',
      'schedule.end': 1e-5,
    },
    '88.55 +- 0.04 on ImageNet after fine-tuning at 518 px with averaged '
    'parameters',
  ),
  Variant(
    'vit_jft',
    'g14',
    'arXiv:2106.04560; big_vision, configs/proj/scaling_laws/train_vit_g.py',
    {
      'run.steps': 1_000_000,
      'data.batch_size': 16_384,
      'loss.name': 'sigmoid',
      'model.pool': 'map',
      'model.head_bias': -10.0,
      'optim.name': 'adafactor',
      'optim.state_dtype': 'bfloat16',
      'optim.lr': 8e-4,
      'optim.clip': 1.0,
      'optim.decay_style': 'schedule',
      'optim.weight_decay': 0.03 * 8e-4,
      'optim.groups': (('head/kernel', {'decay': 100.0}),),
      'schedule.name': 'rsqrt',
      'schedule.timescale': 10_000,
      'schedule.warmup_steps': 10_000,
      'schedule.cooldown_steps': 50_000,
    },
    '90.45 of ViT-G/14 on ImageNet after fine-tuning, with JFT-3B (the paper)',
  ),
  Variant(
    'augreg_i21k',
    'b16',
    'arXiv:2106.10270; file B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-'
    'sd_0.0 of the README of google-research/vision_transformer',
    {
      **AUGREG,
      'data.randaugment': 'google(2,15)',
      'data.mixup': 0.2,
      'model.head_bias': -10.0,
      'model.dropout': 0.0,
      'model.drop_path': 0.0,
    },
    '85.49 on ImageNet after 20,000 steps of fine-tuning at 384 px, rate 0.03',
  ),
  Variant(
    'augreg_i21k',
    'r50_vit_l32',
    'arXiv:2106.10270; file R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-'
    'do_0.1-sd_0.1 of the same README',
    {
      **AUGREG,
      'data.randaugment': 'google(2,15)',
      'data.mixup': 0.2,
      'model.head_bias': -10.0,
      'model.dropout': 0.1,
      'model.drop_path': 0.1,
    },
    '85.99 on ImageNet after 20,000 steps of fine-tuning at 384 px, rate 0.01',
  ),
  Variant(
    'augreg_i1k',
    'b16',
    'arXiv:2106.10270; big_vision, configs/vit_i1k.py',
    {
      **AUGREG,
      'data.randaugment': 'google(2,15)',
      'data.mixup': 0.5,
      'model.head_bias': -6.9,
      'model.representation_size': 768,
    },
    'about 79 on the validation set at 224 px (issue 7 of google-research/'
    'big_vision)',
  ),
  Variant(
    'vit_s16_i1k',
    's16',
    'arXiv:2205.01580; big_vision, configs/vit_s16_i1k.py',
    {
      **BIG_VISION,
      'run.epochs': 90.0,
      'data.batch_size': 1024,
      'data.randaugment': 'google(2,10)',
      'data.mixup': 0.2,
      'loss.name': 'softmax',
      'model.pool': 'gap',
      'model.posemb': 'sincos2d',
      'model.representation_size': 384,
      'optim.state_dtype': 'bfloat16',
      'schedule.name': 'cosine',
    },
    '76.5 on the validation set at 224 px',
  ),
  Variant(
    'mixer_i1k',
    'b16',
    'arXiv:2105.01601; big_vision, configs/mlp_mixer_i1k.py',
    {
      **BIG_VISION,
      'run.epochs': 300.0,
      'data.batch_size': 4096,
      'data.randaugment': 'google(2,15)',
      'data.mixup': 0.5,
      'loss.name': 'sigmoid',
      'model.drop_path': 0.1,
      'model.head_bias': -6.9,
      'optim.state_dtype': 'float32',
      'schedule.name': 'linear',
      'schedule.end': 1e-8,
    },
    '76.3 on the validation set at 224 px',
  ),
  Variant(
    'bit_i21k',
    'r50x1',
    'arXiv:1912.11370, section 3.1',
    {
      'run.epochs': 90.0,
      'data.batch_size': 4096,
      'loss.name': 'sigmoid',
      'optim.name': 'sgd',
      'optim.momentum': 0.9,
      'optim.lr': 0.03,
      'optim.lr_batch': 256,
      'schedule.name': 'step',
      'schedule.boundaries': (30 / 90, 60 / 90, 80 / 90),
      'schedule.factor': 0.1,
      'schedule.warmup_steps': 5_000,
    },
    '80.68 on ImageNet after BiT-HyperRule on the whole training split',
  ),
  Variant(
    'bit_i1k',
    'r50x1,big_vision',
    'big_vision, configs/bit_i1k.py',
    {
      'run.epochs': 90.0,
      'data.batch_size': 4096,
      'loss.name': 'softmax',
      'optim.name': 'sgd',
      'optim.state_dtype': 'bfloat16',
      'optim.lr': 0.1,
      'optim.lr_batch': 256,
      'optim.clip': 1.0,
      'optim.decay_style': 'schedule',
      'optim.weight_decay': 1e-4 * 16,
      'schedule.name': 'cosine',
      'schedule.warmup_steps': 1_000,
    },
    'about 76 on the validation set at 224 px',
  ),
  Variant(
    'bit_hyperrule',
    'r50x1,cifar10,whole',
    'arXiv:1912.11370, section 3.3; bit_hyperrule.py and bit_pytorch/train.py '
    'of google-research/big_transfer',
    {
      'run.steps': 10_000,
      'data.batch_size': 512,
      'data.resize': 160,
      'data.image_size': 128,
      'data.interpolation': 'bilinear_antialias',
      'data.mixup': 0.1,
      'data.mix_style': 'permute',
      'data.flip': 0.5,
      'eval.interpolation': 'bilinear_antialias',
      'optim.name': 'sgd',
      'optim.lr': 0.003,
      'optim.weight_decay': 0.0,
      'schedule.name': 'step',
      'schedule.boundaries': (3_001, 6_001, 9_001),
      'schedule.warmup_steps': 500,
    },
    '97.4 on the test set with BiT-M, batch 128 and rate 0.001',
  ),
  Variant(
    'resnet_i1k',
    '50',
    'references/classification of pytorch/vision; documents of timm',
    TORCHVISION,
    '76.16 on the validation set at 224 px (timm, of the released weights)',
  ),
  Variant(
    'resnet_i1k',
    '50,a1',
    'arXiv:2110.00476, table 2',
    {
      **STRIKES_BACK,
      'run.epochs': 600.0,
      'data.image_size': 224,
      'data.repeats': 3,
      'data.randaugment': 'rand-m7-mstd0.5-inc1',
      'data.mixup': 0.2,
      'loss.label_smoothing': 0.1,
      'model.drop_path': 0.05,
      'optim.lr': 5e-3,
      'optim.weight_decay': 0.01,
    },
    '80.4 on the validation set at 224 px',
  ),
  Variant(
    'resnet_i1k',
    '50,a2',
    'arXiv:2110.00476, table 2',
    {
      **STRIKES_BACK,
      'run.epochs': 300.0,
      'data.image_size': 224,
      'data.repeats': 3,
      'data.randaugment': 'rand-m7-mstd0.5-inc1',
      'model.drop_path': 0.05,
      'optim.lr': 5e-3,
    },
    '79.8 on the validation set at 224 px',
  ),
  Variant(
    'resnet_i1k',
    '50,a3',
    'arXiv:2110.00476, table 2',
    {
      **STRIKES_BACK,
      'run.epochs': 100.0,
      'data.image_size': 160,
      'data.repeats': 1,
      'data.randaugment': 'rand-m6-mstd0.5-inc1',
      'model.drop_path': 0.0,
      'optim.lr': 8e-3,
    },
    '78.1 on the validation set at 224 px',
  ),
  Variant(
    'regnety_i1k',
    '160',
    'configs/dds_baselines/regnety of facebookresearch/pycls',
    {**PYCLS, 'data.batch_size': 256},
    '80.28 on the validation set at 224 px (timm, of the released weights)',
    {'data.color_jitter': LIGHTING},
  ),
  Variant(
    'regnety_i1k',
    '160,deit',
    'arXiv:2012.12877, section 5',
    {k: v for k, v in DEIT.items() if k != 'model.drop_path'},
    '82.9 on the validation set at 224 px, as the teacher of DeiT',
  ),
  Variant(
    'efficientnet_i1k',
    'b0',
    'tensorflow/tpu, models/official/efficientnet',
    {
      **EFFICIENTNET,
      'run.epochs': 350.0,
      'data.batch_size': 2048,
      'data.image_size': 224,
      'data.randaugment': '',
      'model.dropout': 0.2,
      'optim.lr_batch': 256,
      'schedule.decay_epochs': 2.4,
    },
    '76.7 on the validation set at 224 px',
    {'eval.interpolation': BICUBIC},
  ),
  Variant(
    'efficientnet_i1k',
    'b7,randaugment',
    'tensorflow/tpu, models/official/efficientnet',
    {
      **EFFICIENTNET,
      'run.epochs': 350.0,
      'data.batch_size': 2048,
      'data.image_size': 600,
      'data.randaugment': 'google(2,28)',
      'model.dropout': 0.5,
      'optim.lr_batch': 256,
      'schedule.decay_epochs': 2.4,
    },
    '84.7 on the validation set at 600 px',
    {'eval.interpolation': BICUBIC},
  ),
  Variant(
    'noisy_student',
    'b7',
    'arXiv:1911.04252; train.sh of google-research/noisystudent',
    {
      **EFFICIENTNET,
      'run.epochs': 350.0,
      'data.batch_size': 4 * 2048,
      'data.pseudo_ratio': 3,
      'data.image_size': 600,
      'data.randaugment': 'google(2,27)',
      'loss.smooth_soft': False,
      'loss.weight': 4.0,
      'model.dropout': 0.5,
      'optim.lr_batch': 4 * 256,
      'schedule.decay_epochs': 2.4,
    },
    '86.9 on the validation set at 600 px, with JFT without labels',
    {'eval.interpolation': BICUBIC},
  ),
  Variant(
    'noisy_student',
    'l2',
    'arXiv:1911.04252; google-research/noisystudent',
    {
      **EFFICIENTNET,
      'run.epochs': 350.0,
      'data.batch_size': 15 * 2048,
      'data.pseudo_ratio': 14,
      'data.image_size': 475,
      'data.randaugment': 'google(2,27)',
      'loss.smooth_soft': False,
      'loss.weight': 15.0,
      'model.dropout': 0.5,
      'optim.lr_batch': 15 * 256,
      'schedule.decay_epochs': 2.4,
    },
    '88.2 at 475 px and 88.4 at 800 px after all iterations, with JFT without '
    'labels',
    {'eval.interpolation': BICUBIC},
  ),
  Variant(
    'finetune',
    'b16,cifar10',
    'arXiv:2010.11929, table 4; configs of google-research/vision_transformer',
    {
      **FINETUNE,
      'run.steps': 10_000,
      'schedule.warmup_steps': 500,
      'data.split': 'train[:98%]',
      'optim.lr': 0.01,
    },
    '99.02 on the test set from the ImageNet-21k file, dropout 0',
  ),
  Variant(
    'finetune',
    'l16,imagenet2012',
    'arXiv:2010.11929, table 4; configs of google-research/vision_transformer',
    {
      **FINETUNE,
      'run.steps': 20_000,
      'schedule.warmup_steps': 500,
      'data.split': 'train[:99%]',
      'optim.lr': 0.03,
    },
    '84.47 on the validation set from the ImageNet-21k file, dropout 0',
  ),
  Variant(
    'augreg_finetune',
    'r26_vit_s32,oxford_iiit_pet',
    'arXiv:2106.10270, section 3.4',
    {
      **FINETUNE,
      'run.steps': 500,
      'schedule.warmup_steps': 100,
      'optim.lr': 0.003,
    },
    '94.19 on the test set from the recommended file',
  ),
  Variant(
    'vtab',
    'l16,eurosat',
    'arXiv:2010.11929, table 4 and appendix B.1.1; splits, labels, images: '
    'google-research/task_adaptation',
    {
      'run.steps': 2_500,
      'data.split': 'train800val200',
      'data.batch_size': 512,
      'data.image_size': 384,
      'data.crop': 'resize',
      'data.flip': 0.0,
      'data.interpolation': 'bilinear',
      'optim.name': 'sgd',
      'optim.momentum': 0.9,
      'optim.lr': 0.01,
      'optim.clip': 1.0,
      'optim.weight_decay': 0.0,
      'schedule.name': 'cosine',
      'eval.crop': 0.0,
    },
    '95.6 on the test set from the ImageNet-21k file; mean of 19 tasks 72.7',
  ),
  Variant(
    'vtab',
    'b16,eurosat,light',
    'google-research/task_adaptation, scripts/run_all_tasks.sh',
    {
      'run.steps': 1_000,
      'data.split': 'train800val200',
      'data.batch_size': 64,
      'data.image_size': 224,
      'data.crop': 'resize',
      'data.flip': 0.0,
      'optim.name': 'sgd',
      'optim.lr': 0.01,
      'schedule.name': 'step',
      'schedule.boundaries': (0.3, 0.6, 0.9),
      'schedule.factor': 0.1,
      'schedule.warmup_steps': 80,
      'eval.crop': 0.0,
    },
    'no published accuracy of a Vision Transformer',
  ),
  Variant(
    'deit_i1k',
    's16',
    'arXiv:2012.12877, table 9; main.py of facebookresearch/deit',
    {**DEIT, 'loss.distill': 'none'},
    '79.8 (paper), 79.85 (released file)',
  ),
  Variant(
    'deit_i1k',
    's16,distill',
    'arXiv:2012.12877, table 9; main.py of facebookresearch/deit',
    {**DEIT, 'loss.distill': 'hard', 'loss.distill_alpha': 0.5},
    '81.2 (paper), 81.16 (released file), with RegNetY-16GF as the teacher',
  ),
  Variant(
    'deit_i1k',
    's16,soft',
    'arXiv:2012.12877, section 5 and table 3',
    {
      **DEIT,
      'loss.distill': 'soft',
      'loss.distill_alpha': 0.1,
      'loss.distill_tau': 3.0,
    },
    '79.8 (paper), with RegNetY-16GF as the teacher',
  ),
  Variant(
    'deit_finetune',
    'b16,384',
    'arXiv:2012.12877, section 6.1; README of facebookresearch/deit',
    {
      'run.epochs': 30.0,
      'run.train_mode': False,
      'data.batch_size': 512,
      'data.image_size': 384,
      'optim.lr': 5e-6,
      'schedule.end': 5e-6,
      'optim.weight_decay': 1e-8,
      'model.drop_path': 0.0,
    },
    '83.1 (paper), 82.89 (released file)',
  ),
  Variant(
    'deit_finetune',
    'b16,cifar10',
    'issues 45 and 105 of facebookresearch/deit',
    {
      'run.epochs': 1000.0,
      'data.batch_size': 768,
      'data.erasing': 0.0,
      'optim.name': 'sgd',
      'optim.lr': 0.01,
      'optim.weight_decay': 1e-4,
    },
    '99.1 (paper, table 7)',
  ),
  Variant(
    'cait_i1k',
    's24',
    'arXiv:2103.17239, section 5; issue 104 of facebookresearch/deit',
    {**DEIT, 'run.epochs': 400.0, 'eval.crop': 1.0},
    '82.7 at 224 px without a teacher',
  ),
  Variant(
    'ceit_i1k',
    't',
    'arXiv:2103.11816; main.py of coeusguo/ceit',
    DEIT,
    '76.4 at 224 px (released file)',
  ),
  Variant(
    'deepvit_i1k',
    's',
    'arXiv:2103.11886; scripts of zhoudaquan/dvit_repo',
    {
      **TIMM,
      'run.epochs': 310.0,
      'data.batch_size': 32,
      'data.interpolation': 'random',
      'data.erase_mixed': True,
      'model.drop_path': 0.2,
      'optim.ema': 0.99996,
      'eval.ema': True,
      'optim.lr': 5e-4,
      'optim.lr_batch': None,
      'schedule.warmup_epochs': 5.0,
      'schedule.cooldown_epochs': 10.0,
      'schedule.epoch_lag': 0,
      'eval.crop': 0.9,
    },
    '82.3 at 224 px',
    {
      'data.batch_size': '32 images a process were published, without the '
      'number of processes. Here the batch is that of 8.'
    },
  ),
  Variant(
    'volo_i1k',
    'd1',
    'arXiv:2106.13112; README of sail-sg/volo',
    {**VOLO, 'optim.lr': 1.6e-3, 'model.drop_path': 0.1, 'eval.crop': 0.96},
    '84.2 at 224 px with label maps of NFNet-F6',
  ),
  Variant(
    'volo_i1k',
    'd1,ft384',
    'README of sail-sg/volo',
    {
      'run.epochs': 40.0,
      'data.batch_size': 512,
      'data.image_size': 384,
      'loss.ground_truth': True,
      'optim.lr': 8e-6,
      'optim.weight_decay': 1e-8,
      'schedule.warmup_epochs': 5.0,
      'schedule.end': 4e-6,
    },
    '85.2 at 384 px',
  ),
  Variant(
    'aa_vit_cifar10',
    's16,2',
    'oshertidhar/ViT-AA: main.py, AAVitFactory.py and report',
    {
      **TIMM,
      'run.epochs': 300.0,
      'data.batch_size': 64,
      'data.image_size': 224,
      'data.interpolation': 'bicubic',
      'data.normalize': 'imagenet',
      'model.drop_path': 0.0,
      'model.area_sizes': ((1, 2), (1, 2)),
      'optim.lr': 5e-4,
      'optim.lr_batch': 512,
      'optim.decay_mask': r'.*/kernel|cls|.*pos_embedding',
      'schedule.warmup_epochs': 5.0,
      'schedule.epoch_lag': 1,
      'eval.crop': 224 / 256,
      'eval.interpolation': 'bicubic',
    },
    'top-1 91.44, top-5 99.6, loss 0.408 (first table); top-1 92.19 (later)',
  ),
  Variant(
    'aa_vit_cifar10',
    's16',
    'oshertidhar/ViT-AA: main.py, timm 0.3.2 and report',
    {
      **TIMM,
      'run.epochs': 300.0,
      'data.batch_size': 64,
      'data.image_size': 224,
      'data.interpolation': 'bicubic',
      'model.name': 'deit_s16',
      'model.drop_path': 0.1,
      'optim.lr': 5e-4,
      'optim.lr_batch': 512,
      'schedule.warmup_epochs': 5.0,
      'schedule.epoch_lag': 1,
      'eval.crop': 224 / 256,
    },
    'top-1 90.02, top-5 99.6, loss 0.432 (first table); top-1 90.6 (later)',
  ),
]


# Every recipe with TensorFlow's decoding deviates in the same way.
VARIANTS = [
  dataclasses.replace(v, deviations={**v.deviations, 'data.jpeg_dct': FAST_DCT})
  if 'data.jpeg_dct' in v.settings
  else v
  for v in VARIANTS
]


# --- Other models and switches of the recipes ---------------------------------

GOOGLE_README = 'README of google-research/vision_transformer'
ISSUE_62 = (
  'arXiv:2010.11929, table 5; issue 62 of google-research/vision_transformer'
)
DATA_SET = 'the data set; settings as above'
OURS = 'not published'  # a choice of this project, or a study

# {recipe: {argument: what was published of it}}, beside the first variant of
# the recipe, or the default of a recipe without one.
OTHERS = {
  'vit_b16_i1k': {
    'b16,warm3.4': 'warm-up of arXiv:2012.12877, table 9',
    'b32': f'{ISSUE_62}; 69.19 at 224 px, 73.38 at 384 px',
    'l32': f'{ISSUE_62}; 66.90 at 224 px, 71.16 at 384 px',
    'l16': f'{ISSUE_62}; 72.59 at 224 px, 76.53 at 384 px',
  },
  'vit_i21k': {
    'l16,short': 'arXiv:2010.11929, table 3 (30 epochs); no accuracy',
    'r50_vit_b16': f'{GOOGLE_README}; 83.72 on ImageNet at 384 px',
    'r50_vit_l32': 'arXiv:2010.11929, table 3; no accuracy',
  },
  'vit_jft': {
    'l16': 'arXiv:2010.11929, table 3; 87.76 on ImageNet at 512 px, averaged',
    'l16,short': 'arXiv:2010.11929, table 3 (7 epochs), figure 5',
    'b16': 'arXiv:2010.11929, table 3',
    'l32': 'arXiv:2010.11929, table 3',
    's32': 'arXiv:2010.11929, figure 4 (ViT-b: B halved)',
    'r50_vit_b32': 'arXiv:2010.11929, table 3 and figure 5',
    'r50_vit_l32': 'arXiv:2010.11929, table 3 and figure 5',
    'r50_vit_l16': 'arXiv:2010.11929, table 3 and figure 5',
    'h14,gap': f'{OURS}: fills the tiles of a TPU',
    'g14,adamw': f'{OURS}: for clusters without room for a batch of 16,384',
  },
  'augreg_i21k': {
    'ti16': f'{GOOGLE_README}; 78.22 on ImageNet at 384 px',
    's32': f'{GOOGLE_README}; 79.58 on ImageNet at 384 px',
    's16': f'{GOOGLE_README}; 83.73 on ImageNet at 384 px',
    'b32': f'{GOOGLE_README}; 83.59 on ImageNet at 384 px',
    'b8': f'{GOOGLE_README}; 85.58 on ImageNet at 224 px',
    'l16': f'{GOOGLE_README}; 85.59 on ImageNet at 384 px',
    'r_vit_ti16': f'{GOOGLE_README}; 75.40 on ImageNet at 384 px',
    'r26_vit_s32': f'{GOOGLE_README}; 83.85 on ImageNet at 384 px',
    'b16,big_vision': 'big_vision, configs/vit_i21k.py; no accuracy',
    **{
      f'b16,{level}': 'level of arXiv:2106.10270'
      for level in (
        'none',
        'light1',
        'light2',
        'medium1',
        'medium2',
        'strong1',
        'strong2',
      )
    },
    'b16,wd0.03': 'weight decay of the grid of arXiv:2106.10270',
    's16,wd0.1': 'weight decay of the grid of arXiv:2106.10270',
    'b16,do0.1': 'dropout of the grid of arXiv:2106.10270',
    'b16,sd0.1': 'drop path of the grid of arXiv:2106.10270',
    'r50_vit_l32,do0,sd0': 'regularization of the grid of arXiv:2106.10270',
  },
  'augreg_i1k': {
    'ti16': 'big_vision, configs/vit_i1k.py',
    's32': 'big_vision, configs/vit_i1k.py',
    **{
      f'b16,{level}': 'level of arXiv:2106.10270'
      for level in (
        'none',
        'light1',
        'light2',
        'medium1',
        'medium2',
        'strong1',
        'strong2',
      )
    },
    'b16,wd0.03': 'weight decay of the grid of arXiv:2106.10270',
    'b16,do0.1': 'dropout of the grid of arXiv:2106.10270',
    'b16,sd0.1': 'drop path of the grid of arXiv:2106.10270',
  },
  'vit_s16_i1k': {
    's16,90': 'arXiv:2205.01580, table 1; 76.5',
    's16,150': 'arXiv:2205.01580, table 1; 78.5',
    's16,300': 'arXiv:2205.01580, table 1; 80.0',
  },
  'mixer_i1k': {'b16,60': 'big_vision, configs/mlp_mixer_i1k.py; 70.5'},
  'bit_i21k': {
    'r50x1,big_vision': 'big_vision, configs/bit_i21k.py; no accuracy',
    'r152x2': '85.15 on ImageNet after BiT-HyperRule on the whole split',
  },
  'bit_i1k': {'r50x1': 'arXiv:1912.11370, section 3.1; no accuracy'},
  'bit_hyperrule': {
    'r101x3,cifar10,whole': 'README of big_transfer; 98.6',
    'r152x2,cifar10,whole': 'README of big_transfer; 98.5',
    'r50x1,imagenet2012,whole': 'README of big_transfer; 80.68',
    'r152x2,imagenet2012,whole': 'README of big_transfer; 85.15',
    'r50x1,imagenet2012,448': 'arXiv:1912.11370, section 3.3',
    'r50x1,cifar100': DATA_SET,
    'r50x1,oxford_iiit_pet': DATA_SET,
    'r50x1,oxford_flowers102': DATA_SET,
    'r50x1,folder,3000x640': f'{OURS}: images of your own',
  },
  'finetune': {
    'b32,cifar10': f'{GOOGLE_README}; 98.88',
    'l32,cifar10': f'{GOOGLE_README}; 99.06',
    'l16,cifar10': f'{GOOGLE_README}; 99.13',
    'r50_vit_b16,cifar10': f'{GOOGLE_README}; 98.72',
    'b16,cifar10,short': f'{GOOGLE_README}; 98.59',
    'mixer_b16,cifar10': f'{GOOGLE_README}; 96.72 from the ImageNet file',
    'b16,cifar100': f'{GOOGLE_README}; 92.06',
    'b16,imagenet2012': f'{GOOGLE_README}; 84.53',
    'l16,imagenet2012,res512': 'arXiv:2010.11929, table 2; 85.30 (I21k)',
    'h14,imagenet2012,res518': 'arXiv:2010.11929, table 2; 88.55 (JFT)',
    'b16,oxford_iiit_pet': 'arXiv:2010.11929, table 4',
    'b16,oxford_flowers102': 'arXiv:2010.11929, table 4',
    'b16,folder': f'{OURS}: images of your own',
    'b16,cifar10,head': f'{OURS}: a linear probe',
    'b16,cifar10,layerdecay': f'{OURS}: rates that fall from the top down',
  },
  'vtab': {
    **{
      f'l16,{task}': f'arXiv:2010.11929, appendix; {top1} (I21k)'
      for task, top1 in VTAB.items()
    },
    'b16,eurosat,head': f'{OURS}: a linear probe',
  },
  'augreg_finetune': {
    'ti16,imagenet2012': f'{GOOGLE_README}; 78.22',
    'l16,imagenet2012': f'{GOOGLE_README}; 85.59',
    'b16,cifar10': 'arXiv:2106.10270, section 3.4; best of the grid',
    'b16,cifar100': 'arXiv:2106.10270, section 3.4; best of the grid',
    'b16,oxford_flowers102': 'arXiv:2106.10270, section 3.4; best of the grid',
    'b16,oxford_iiit_pet,long': 'arXiv:2106.10270, section 3.4; the longer run',
    'b16,imagenet2012,224': 'arXiv:2106.10270, section 3.4',
    **{
      f'b32,{name},big_vision': f'big_vision, configs/transfer.py; {top1}'
      for name, top1 in {
        'imagenet2012': '83.27',
        'cifar10': '98.55',
        'cifar100': '91.35',
        'oxford_iiit_pet': '93.78',
        'oxford_flowers102': '99.43',
      }.items()
    },
    'b16,folder': f'{OURS}: images of your own',
    'b16,cifar10,head': f'{OURS}: a linear probe',
    'b16,cifar10,layerdecay': f'{OURS}: rates that fall from the top down',
  },
  'deit_i1k': {
    'ti16': 'arXiv:2012.12877, table 3; 72.2 (file 72.20)',
    'b16': 'arXiv:2012.12877, table 3; 81.8 (file 81.85)',
    's16,hard': 'arXiv:2012.12877, table 3; 80.9',
    'ti16,distill': 'arXiv:2012.12877, table 3; 74.5 (file 74.48)',
    'b16,distill': 'arXiv:2012.12877, table 3; 83.4 (file 83.37)',
    's16,bce': 'option --bce-loss of facebookresearch/deit; no accuracy',
    's16,plaincosine': f'{OURS}: the schedule by its formula',
  },
  'deit_finetune': {
    'b16,384,distill': 'arXiv:2012.12877, table 3; 84.5 with RegNetY-16GF',
    'b16,384,hard': 'arXiv:2012.12877, table 3; 84.0 with RegNetY-16GF',
    'b16,384,soft': 'arXiv:2012.12877, table 3; 83.2 with RegNetY-16GF',
    'b16,cifar100': 'arXiv:2012.12877, table 7; 90.8',
    'b16,cars': 'issue 45 of facebookresearch/deit; 92.1',
    'b16,flowers': 'arXiv:2012.12877, table 7; 98.4; settings of cars',
    'b16,pets': f'{OURS}: settings of cars',
    'b16,inat18': 'issue 105 of facebookresearch/deit; 73.2',
    'b16,inat19': 'issue 105 of facebookresearch/deit; 77.7',
  },
  'cait_i1k': {
    'xxs24': 'arXiv:2103.17239, table 3; 77.6',
    'xxs36': 'arXiv:2103.17239, table 3; 79.1',
    'xs24': 'arXiv:2103.17239, table 3; 81.8',
    'xs36': 'arXiv:2103.17239, table 3; 82.6',
    's36': 'arXiv:2103.17239, table 3; 83.3',
    's48': 'arXiv:2103.17239, table 3; 83.5',
    'm24': 'arXiv:2103.17239, table 3; 83.4',
    'm36': 'arXiv:2103.17239, table 3; 83.8',
    's24,distill': 'arXiv:2103.17239, table 3; 83.5',
    's24,ft384': 'arXiv:2103.17239, table 3; 84.3',
    's24,distill,ft384': 'arXiv:2103.17239, table 3; 85.1',
    'm48,ft448': 'issues 108 and 117 of facebookresearch/deit; 86.5',
  },
  'ceit_i1k': {
    's': 'README of coeusguo/ceit; 82.0',
    'b': 'README of coeusguo/ceit; 82.5',
    'b,100': 'README of coeusguo/ceit; 81.9',
    't,ft384': 'README of coeusguo/ceit; 78.8; settings of DeiT',
    's,ft384': 'README of coeusguo/ceit; 83.3; settings of DeiT',
    't,noi2t,noleff,nolca': 'DeiT-Ti; 72.2',
    't,noi2t': OURS,
    't,noleff': OURS,
    't,nolca': OURS,
  },
  'ceit_transfer': {
    't,384,cifar10': 'arXiv:2103.11816, table 6; 98.5',
    's,cifar10': 'arXiv:2103.11816, table 6; 99.0',
    't,inat18': 'arXiv:2103.11816, table 6; 64.3',
    't,inat19': 'arXiv:2103.11816, table 6; 72.8',
    't,cars': 'arXiv:2103.11816, table 6; 90.5',
    't,flowers': 'arXiv:2103.11816, table 6; 96.9',
    't,pets': 'arXiv:2103.11816, table 6; 93.8',
    't,cifar100': 'arXiv:2103.11816, table 6; 88.4',
  },
  'deepvit_i1k': {
    '16': 'README of zhoudaquan/dvit_repo; 79.10',
    '24': 'README of zhoudaquan/dvit_repo; 79.99',
    '32': 'README of zhoudaquan/dvit_repo; 80.90',
    '16,plain': 'README of zhoudaquan/dvit_repo; 78.88',
    '24,plain': 'README of zhoudaquan/dvit_repo; 79.35',
    '32,plain': 'README of zhoudaquan/dvit_repo; 79.27',
    'l': 'README of zhoudaquan/dvit_repo; 83.1',
    'l408': 'the size that arXiv:2103.11886 gives for L',
    'l,ft384': 'README of zhoudaquan/dvit_repo; 84.25; settings of DeiT',
    '32,plain,width256': 'arXiv:2103.11886, figure 5; similarity of attention',
    '32,plain,width384': 'arXiv:2103.11886, figure 5; similarity of attention',
    '32,plain,width512': 'arXiv:2103.11886, figure 5; similarity of attention',
    '32,plain,width768': 'arXiv:2103.11886, figure 5; similarity of attention',
  },
  'volo_i1k': {
    'd2': 'README of sail-sg/volo; 85.2',
    'd3': 'README of sail-sg/volo; 85.4',
    'd4': 'README of sail-sg/volo; 85.7; rate of d3',
    'd5': 'README of sail-sg/volo; 86.1; rate of d3',
    'd2,ft384': 'README of sail-sg/volo; 86.0',
    'd3,ft448': 'README of sail-sg/volo; 86.3',
    'd4,ft448': 'README of sail-sg/volo; 86.8',
    'd5,ft448': 'README of sail-sg/volo; 87.0',
    'd5,ft512': 'README of sail-sg/volo; 87.1',
  },
  'aa_vit_cifar10': {
    's16,3': 'oshertidhar/ViT-AA; 87.77, 98.69, 0.526; later 89.32',
    's16,4': 'oshertidhar/ViT-AA; 84.61, 98.17, 0.602; later 85.67',
    'ti16': 'oshertidhar/ViT-AA; 85.49, 99.49, 0.576',
    'ti16,2': 'oshertidhar/ViT-AA; 86.14, 99.52, 0.557',
    's16,2x2': f'{OURS}: areas of the grid of patches',
    's16,3x3': f'{OURS}: areas of the grid of patches',
    's16,2,distill': 'a next step that the report names; no accuracy',
    's16,matched': f'{OURS}: only the attention differs from the area models',
    's16,2,droppath': f'{OURS}: the drop path of the plain rows',
    's16,2,fast': f'{OURS}: for a small device',
    'small,2': f'{OURS}: for a CPU',
  },
  'posemb_d3': {
    'none': 'arXiv:2010.11929, table 8; 61.382',
    '1d': 'arXiv:2010.11929, table 8; 64.206',
    '1d,layers': 'arXiv:2010.11929, table 8; 63.964',
    '1d,shared': 'arXiv:2010.11929, table 8; 64.292',
    '2d': 'arXiv:2010.11929, table 8; 64.001',
    '2d,layers': 'arXiv:2010.11929, table 8; 64.046',
    '2d,shared': 'arXiv:2010.11929, table 8; 64.022',
    'relative': 'arXiv:2010.11929, table 8; 64.032',
  },
  'vit_scaling': {
    'vit_b32,9M': 'arXiv:2010.11929, figure 4',
    'vit_b32,30M': 'arXiv:2010.11929, figure 4',
    'vit_b32,90M': 'arXiv:2010.11929, figure 4',
    'vit_l16,300M': 'arXiv:2010.11929, figure 4',
    'vit_s32': 'arXiv:2010.11929, figure 4 (ViT-b)',
    'r50_vit_b32,short,hybrids': 'arXiv:2010.11929, figure 5',
    'r50_vit_l16,short,hybrids': 'arXiv:2010.11929, figure 5',
  },
  'noisy_student': {
    'b0': 'README of the released weights; 78.8',
    'l2,last': 'arXiv:1911.04252; the last of the iterations',
    'l2,resolution': 'arXiv:1911.04252; 88.4 at 800 px',
    's16': f'{OURS}: a ViT with the noise of DeiT',
  },
  'noisy_student_cifar10': {
    'student': f'{OURS}: one iteration for a CPU',
    'labels': f'{OURS}: the student without unlabeled images',
  },
  'cifar10': {
    's16': f'{OURS}: ViT-S with patches of 4',
    **{
      family: f'{OURS}: families of one size'
      for family in (
        'vit',
        'deepvit',
        'cait',
        'ceit',
        'volo',
      )
    },
  },
  'deit_cifar10': {
    'teacher': f'{OURS}: the teacher of the study',
    'hard': f'{OURS}: the study of table 3 for a CPU',
    'soft': f'{OURS}: the study of table 3 for a CPU',
    'regnet': f'{OURS}: a RegNetY as the teacher',
  },
  'digits': {},
  'scaling_cifar10': {
    f'w64,{images}': f'{OURS}: figures 4 and 5 of ViT for a CPU'
    for images in ('2.5k', '10k', '40k')
  },
  'imagefolder': {},
}
# Keys that say nothing about what is learned.
UNIMPORTANT = (
  'run.name',
  'eval.every_steps',
  'eval.every_epochs',
  'log.checkpoint_steps',
  'log.checkpoint_minutes',
  'log.keep_best',
  'mesh.preset',
  'mesh.fsdp',
)
# Names of recipes that others replace: they import them.
ALIASES = {
  'vit_G14_jft': 'vit_jft:G14',
  'vit_b16_i21k': 'vit_i21k:b16',
  'vit_h14_jft': 'vit_jft:h14',
  'vit_l16_i21k': 'vit_i21k:l16',
  'vit_l16_jft': 'vit_jft:l16',
}


@functools.cache
def load(recipe: str, arg: str | None = None):
  """The config of configs/RECIPE.py with an argument."""
  return importlib.import_module(f'configs.{recipe}').get_config(arg)


def config_of(variant: Variant):
  """The config of a variant."""
  return load(variant.recipe, variant.arg)


def base_argument(recipe: str) -> str | None:
  """What the table of a recipe compares with: its first variant."""
  return next((v.arg for v in VARIANTS if v.recipe == recipe), None)


def changes(recipe: str, arg: str) -> dict[str, Any]:
  """{key: value} in which an argument differs from the base of its recipe."""
  values = [
    {
      f'{section}.{key}': value
      for section, keys in config.to_dict().items()
      for key, value in keys.items()
    }
    for config in (load(recipe, base_argument(recipe)), load(recipe, arg))
  ]
  before, after = values
  return {
    key: after.get(key)
    for key in {**before, **after}
    if key not in UNIMPORTANT and before.get(key) != after.get(key)
  }


def value_of(config, key: str) -> Any:
  """The value of a key; None for a field of the model that is not set."""
  section, _, name = key.partition('.')
  return config[section].get(name)


def differences(variant: Variant) -> dict[str, tuple[Any, Any]]:
  """{key: (here, published)} where a recipe differs from its publication."""
  config = config_of(variant)
  return {
    key: (value_of(config, key), published)
    for key, published in variant.settings.items()
    if not _equal(value_of(config, key), published)
  }


def _equal(a: Any, b: Any) -> bool:
  if isinstance(a, float) and isinstance(b, float):
    return abs(a - b) <= 1e-9 * max(abs(a), abs(b))
  return a == b


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.6g}'
  if isinstance(value, str):
    return f"'{value}'"
  if isinstance(value, tuple) and all(isinstance(x, float) for x in value):
    return f'({", ".join(map(_text, value))})'
  return str(value)


def _other_lines(recipe: str, arguments: dict[str, str]) -> list[str]:
  """The lines about arguments of a recipe that are no `Variant`."""
  base = base_argument(recipe)
  lines = ['', f'### `configs/{recipe}.py`', '']
  if not arguments:
    return [*lines, 'A study of this project, without a published model.']
  lines += [
    f'Against `:{base}`:' if base else 'Against the recipe without argument:',
    '',
    '| argument | other settings here | published |',
    '|---|---|---|',
  ]
  for arg, published in arguments.items():
    different = ', '.join(
      f'`{key}` {_text(value)}'.replace('|', '\\|')
      for key, value in changes(recipe, arg).items()
    )
    lines.append(f'| `{arg}` | {different or "none"} | {published} |')
  return lines


def page() -> str:
  """The text of docs/recipes.md."""
  lines = [
    '# Recipes beside what was published',
    '',
    'Written by `python docs/recipes.py`; a test fails when a recipe and this '
    'page disagree.',
    'Settings that are not listed have no published value. The learning rate '
    'is multiplied by batch / `lr_batch` where that is set.',
  ]
  for variant in VARIANTS:
    config = config_of(variant)
    different = differences(variant)
    lines += [
      '',
      f'## `configs/{variant.recipe}.py:{variant.arg}`',
      '',
      f'Source: {variant.source}.',
      '',
      f'Expected: {variant.expected}.',
      '',
      '| key | here | published |',
      '|---|---|---|',
    ]
    for key, published in variant.settings.items():
      here = _text(value_of(config, key)).replace('|', '\\|')
      same = key not in different
      other = 'the same' if same else _text(published).replace('|', '\\|')
      lines.append(f'| `{key}` | {here} | {other} |')
    lines += [''] * bool(variant.deviations)
    lines += [f'`{k}`: {why}' for k, why in variant.deviations.items()]
  lines += ['', '## Other models and switches']
  for recipe, arguments in OTHERS.items():
    lines += _other_lines(recipe, arguments)
  lines += ['', '## Recipes with the name of a model', '']
  lines += [
    f'`configs/{name}.py` is `configs/{recipe.replace(":", ".py:")}`.'
    for name, recipe in ALIASES.items()
  ]
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  PAGE.write_text(page())
