"""EfficientNet on ImageNet from scratch (arXiv:1905.11946), 350 epochs.

    python -m vit_jax.main --config=configs/efficientnet_i1k.py:b0 \
        --config.data.dir=TFDS_DIR --workdir=runs/efficientnet_b0
    ... :b7,randaugment     RandAugment 2 x 28, as published for B5 and B7

Sizes b0 ... b8, l2. The released code (tensorflow/tpu, models/official/
efficientnet): RMSProp of TensorFlow with decay and momentum 0.9 and epsilon
1e-3, batch 2,048, rate 0.016 x batch / 256, multiplied by 0.97 after every 2.4
epochs, 5 epochs of warm-up; L2 penalty 1e-5 on all but BatchNorm; label
smoothing 0.1; dropout before the head by size, stochastic depth 0.2; the
average of the parameters and of BatchNorm's statistics (0.9999) is tested.

Cost: 0.39 G multiply-accumulates an image for b0 at 224 px, 37.7 G for b7 at
600 px. No accelerator time was published. Expected top-1 at each size's own
resolution (results of the same code; AutoAugment is not available here):

                  b0    b1    b2    b3    b4    b5    b6    b7
    plain       76.7  78.7  79.8  81.1  82.5  83.1
    AutoAugment 77.1  79.1  80.1  81.6  82.9  83.6  84.0  84.3
    RandAugment                             83.7        84.7
"""

from vit_jax.models.efficientnet import SIZES
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

# Magnitudes of RandAugment that were published: B5, B7 and B8.
MAGNITUDES = {'b5': 17, 'b7': 28, 'b8': 28}


def base(size: str):
  """Data, optimizer and schedule of the released code, for a batch of 2,048."""
  shared.check_size(size, SIZES)
  c = default_config()
  c.run.epochs = 350.0
  shared.imagenet_full(c)
  c.data.crop_sampling, c.data.area = 'height', (0.08, 1.0)
  c.data.interpolation = 'tf_bicubic'
  c.data.batch_size = 2048
  c.data.image_size = SIZES[size][2]
  c.model.update(
    name=f'tf_efficientnet_{size}', dropout=SIZES[size][3], drop_path=0.2
  )
  c.loss.label_smoothing = 0.1
  c.optim.name, c.optim.eps = 'rmsprop', 1e-3
  c.optim.b2, c.optim.momentum = 0.9, 0.9
  c.optim.lr, c.optim.lr_batch = 0.016, 256
  c.optim.decay_style, c.optim.weight_decay = 'coupled', 1e-5
  c.optim.decay_mask = r'.*/kernel|.*/se/\w+/bias|head/bias'
  c.optim.ema, c.optim.ema_ramp, c.eval.ema = 0.9999, True, True
  c.schedule.name, c.schedule.factor = 'exponential', 0.97
  c.schedule.decay_epochs, c.schedule.warmup_epochs = 2.4, 5.0
  shared.set_preprocessing(c)
  return c


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='b0', options=('randaugment',))
  c = base(size)
  c.run.name = f'EfficientNet-{size.upper()} on ImageNet'
  if 'randaugment' in switches:
    shared.check_size(size, MAGNITUDES)
    c.data.randaugment = f'google(2,{MAGNITUDES[size]})'
  if 'smoke' in switches:
    shared.smoke(c)
  return c
