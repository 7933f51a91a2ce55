"""Noisy Student (arXiv:1911.04252): a noised student of pseudo-labeled images.

The published iterations; UNLABELED is a folder or tar files of images:

    python -m vit_jax.main --config=configs/efficientnet_i1k.py:b7,randaugment \
        --config.data.dir=TFDS_DIR --workdir=runs/b7              the teacher
    vit-jax pseudo-label runs/b7 UNLABELED -o P1 --threshold 0.3 \
        --per-class 130000
    python -m vit_jax.main --config=configs/noisy_student.py:l2 \
        --config.data.dir=TFDS_DIR --config.data.pseudo_dir=P1 --workdir=runs/l2
    vit-jax pseudo-label runs/l2 UNLABELED -o P2 --threshold 0.3 \
        --per-class 130000
    ... :l2         --config.data.pseudo_dir=P2 --workdir=runs/l2_2
    ... :l2,last    with the labels of runs/l2_2: 28 unlabeled images for each
                    labeled one instead of 14
    ... :l2,resolution --config.run.pretrained=runs/l2_3    1.5 epochs at 800 px

Sizes b0 ... b8 and l2: the student should be as large as the teacher or larger.
The teacher labels images that are not augmented, at its own resolution. Its
soft labels above a confidence of 0.3 are kept and balanced by copies (130,000 a
class of JFT's 300 million images). The student is noised: RandAugment of 2
operations, dropout 0.5, stochastic depth that keeps the last block with
probability 0.8 (a drop path of 0.2). A batch has 2,048 labeled images, and 1
(b0), 3 or 14 (l2) unlabeled ones for each of them; the two losses are added.
Optimizer and schedule are those of configs/efficientnet_i1k.py: 700 epochs of
the labeled images up to b4, 350 above (google-research/noisystudent, train.sh;
dropout and batch are those of the paper, where the script has 0.2 to 0.5 by
size and 4,096). `resolution` is the correction of the resolution between
training and testing (arXiv:1906.06423): 1.5 epochs on labeled images without
augmentation. Its rate (that of the end of the training) and the stages that do
not move (stem and first three) were not published; they are choices here.

    ... :s16  and other ViTs    this project's variant: a ViT with DeiT's noise,
        --config.data.dir=DATA  on the packed splits 'train' and 'pseudo'

Cost of l2: 171 G multiply-accumulates an image at 475 px, 476 G at 800 px; the
authors took 12,300 TPUv3-core-days for all iterations. An estimate for a slice:

    vit-jax aot configs/noisy_student.py:l2 --topology=v3-2048 \
        --effort=fast

A core needs 13.6 of 15.5 GiB (19.4 with model.remat='dots'). A step of 30,720
images takes an estimated 5.2 s, and the 350 epochs 13 days or 26,900 core-days,
more than twice what the authors report for all iterations: only 5 % of the peak
is reached, because most of the time goes to BatchNorm, depthwise convolutions
and activations, which move more data than they compute.

Expected top-1 on ImageNet (released weights; l2 at 475 and 800 px; 85.5 without
unlabeled images, arXiv:1911.04252): no number is published for a ViT.

      b0    b1    b2    b3    b4    b5    b6    b7        l2
    78.8  81.5  82.4  84.1  85.3  86.1  86.4  86.9  88.2, 88.4
"""

from configs import deit_i1k, efficientnet_i1k
from vit_jax.models.efficientnet import SIZES
from vit_jax.recipe import shared

# Unlabeled images for each labeled one, and RandAugment's magnitude; 3 and 27
# for other sizes.
RATIOS = {'b0': 1, 'l2': 14}
MAGNITUDES = {'b0': 0, 'b1': 0, 'b2': 6, 'b3': 12, 'b4': 15, 'b5': 18, 'b6': 24}
LONG = ('b0', 'b1', 'b2', 'b3', 'b4')  # twice the epochs


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='b7', options=('last', 'resolution')
  )
  c = _efficientnet(model, switches) if model in SIZES else _vit(model)
  c.run.name = f'{c.model.name}, noisy student'
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def _efficientnet(size: str, switches):
  """The published student of a size."""
  c = efficientnet_i1k.base(size)
  c.model.dropout = 0.5
  if size == 'l2':
    c.data.image_size = 475
    c.mesh.preset, c.model.remat = 'fsdp', 'full'
  if 'resolution' in switches:
    _set_resolution(c, 800 if size == 'l2' else SIZES[size][2])
    return c
  ratio = 28 if 'last' in switches else RATIOS.get(size, 3)
  c.data.pseudo_ratio = ratio
  c.data.batch_size, c.optim.lr_batch = 2048 * (1 + ratio), 256 * (1 + ratio)
  magnitude = MAGNITUDES.get(size, 27)
  c.data.randaugment = f'google(2,{magnitude})' if magnitude else ''
  # The mean of the labeled images' losses and `ratio` times that of the
  # unlabeled ones are added; soft labels are not smoothed.
  c.loss.weight, c.loss.smooth_soft = 1.0 + ratio, False
  if size in LONG:
    c.run.epochs, c.schedule.decay_epochs = 700.0, 4.8
  return c


def _set_resolution(c, size: int):
  """1.5 epochs on labeled images without augmentation at a larger size."""
  c.run.epochs = 1.5
  c.data.image_size = size
  c.data.crop, c.data.flip = 'resize', 0.0
  c.optim.groups = ((r'(conv_root|norm_root|block[123])/.*', {'lr': 0.0}),)
  c.optim.lr, c.optim.lr_batch = 1.5e-3, 2048
  c.optim.ema, c.eval.ema = 0.0, False
  c.schedule.name, c.schedule.decay_epochs = 'constant', None
  c.schedule.warmup_epochs = None
  c.eval.every_epochs = 0.5


def _vit(model: str):
  """A ViT with DeiT's noise, dropout added."""
  c = deit_i1k.base()
  c.model.name = f'deit_{model}' if model in deit_i1k.SIZES else model
  c.data.source, c.data.split = 'packed', 'train+pseudo'
  c.data.repeats = c.data.repeat_groups = 1  # balancing copies images already
  c.data.mixup = c.data.cutmix = 0.0  # the paper mixes nothing
  c.data.mix_groups = 1
  c.loss.label_smoothing = 0.0  # soft labels are smooth
  c.model.drop_path = 0.2
  c.model.dropout = 0.1
  c.optim.decay_mask = r'.*/kernel'
  c.eval.sets = {'test': {'split': 'test'}}
  shared.set_preprocessing(c)
  return c
