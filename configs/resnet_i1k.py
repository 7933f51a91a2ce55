"""ResNet on ImageNet from scratch, as torchvision and timm trained it.

    python -m vit_jax.main --config=configs/resnet_i1k.py:50 \
        --config.data.dir=TFDS_DIR --workdir=runs/resnet50
    ... :50,a1  :50,a2  :50,a3  procedures A1 to A3 of arXiv:2110.00476

Depths 18, 34, 50, 101, 152. The default is torchvision's reference script (its
first weights): 90 epochs of batch 256, SGD with momentum 0.9 and rate 0.1,
divided by 10 every 30 epochs, L2 penalty 1e-4 on everything, random crops and
flips. A1 to A3 are LAMB with the binary loss on mixed labels: 600 and 300
epochs at 224 px with rate 5e-3, and 100 epochs at 160 px with rate 8e-3. A
class counts as right from a share of 0.2 on, as in the commands for timm.

Cost of depth 50: 4.1 G multiply-accumulates an image at 224 px, 2.1 at 160. On
4 V100 A1 took 4.6 days, A2 2.2 days, A3 15 hours (arXiv:2110.00476, table 1).
Expected top-1 at 224 px (torchvision's weights as timm measures them;
arXiv:2110.00476, tables 1 and 2):

                  18     34     50    101    152
    default    69.75  73.30  76.16  77.40  78.33
    a1                        80.4
    a2                        79.8
    a3                        78.1
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

PROCEDURES = ('a1', 'a2', 'a3')
DEPTHS = ('18', '34', '50', '101', '152')


def get_config(arg=None):
  depth, switches = shared.parse_arg(arg, model='50', options=PROCEDURES)
  shared.check_size(depth, DEPTHS)
  procedure = shared.one_of(switches, PROCEDURES)
  c = default_config()
  shared.imagenet_full(c)
  c.model.name = f'resnet{depth}'
  c.run.name = f'ResNet-{depth} on ImageNet{" " * bool(procedure) + procedure}'
  c.data.area = (0.08, 1.0)
  c.data.interpolation = 'bilinear_antialias'
  c.optim.decay_mask = '.*'
  shared.set_preprocessing(c)
  if procedure:
    set_strikes_back(c, procedure)
  else:
    set_torchvision(c)
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def set_torchvision(c):
  """The reference script: 8 processes of 32 images."""
  c.run.epochs = 90.0
  c.data.batch_size = 256
  c.model.update(zero_init=False, bn_groups=8)
  c.optim.name, c.optim.lr, c.optim.lr_batch = 'sgd', 0.1, 256
  c.optim.decay_style, c.optim.weight_decay = 'coupled', 1e-4
  c.schedule.name, c.schedule.factor = 'step', 0.1
  c.schedule.boundaries = (30 / 90, 60 / 90)
  c.eval.crop, c.eval.interpolation = 224 / 256, 'bilinear_antialias'


def set_strikes_back(c, procedure: str):
  """Table 2 of arXiv:2110.00476."""
  a1, a3 = procedure == 'a1', procedure == 'a3'
  c.run.epochs = {'a1': 600.0, 'a2': 300.0, 'a3': 100.0}[procedure]
  c.data.batch_size = 2048
  c.data.image_size = 160 if a3 else 224
  c.data.interpolation = 'random'
  c.data.randaugment = f'rand-m{6 if a3 else 7}-mstd0.5-inc1'
  c.data.mixup, c.data.cutmix = 0.2 if a1 else 0.1, 1.0
  # 4 processes were published.
  c.data.repeats, c.data.repeat_groups = (1, 1) if a3 else (3, 4)
  c.data.mix_groups = 4
  c.model.update(drop_path=0.0 if a3 else 0.05, bn_groups=4)
  c.loss.name, c.loss.bce_threshold = 'bce', 0.2
  c.loss.label_smoothing = 0.1 if a1 else 0.0
  c.optim.name, c.optim.eps, c.optim.clip = 'lamb', 1e-6, 1.0
  c.optim.lr = 8e-3 if a3 else 5e-3
  c.optim.weight_decay = 0.01 if a1 else 0.02
  c.optim.decay_mask = '.*/kernel'
  shared.timm_schedule(c, epoch_lag=0)
  c.schedule.warmup_init, c.schedule.end = 1e-4, 1e-6
  c.eval.interpolation, c.eval.crop = 'bicubic', 0.95
