"""DeepViT on ImageNet (arXiv:2103.11886), 300 epochs and 10 of cooldown.

    python -m vit_jax.main --config=configs/deepvit_i1k.py:s \
        --config.data.dir=TFDS_DIR --workdir=runs/deepvit_s
    ... :16,plain                       a plain ViT of that depth and width
    ... :l,ft384 --config.run.pretrained=runs/deepvit_l     30 epochs at 384 px

    python -m vit_jax.ablate --config=configs/deepvit_i1k.py \
        --config.data.dir=TFDS_DIR --workdir=runs/deepvit_table
        runs ViT and DeepViT with 16, 24 and 32 blocks, and shows the published
        numbers beside the results
    ... :widths     measures plain ViTs of 32 blocks, 8 heads and width 256,
    384,
                    512 or 768: the fraction of blocks whose attention maps are
                    similar to those of the block before (figure 5, for which no
                    numbers are printed)

No training time was published. The table has G multiply-accumulates per image,
parameters in millions, and the expected top-1 (README of zhoudaquan/dvit_repo):

    16      5.3 G   24.4 M   79.10   (plain 78.88)
    24      7.9     36.3     79.99   (plain 79.35)
    32     10.5     48.1     80.90   (plain 79.27), cosine regularizer
    s       6.4     27.3     82.3    convolutional patches, 16 blocks
    l      13.1     58.9     83.1    convolutional patches, 32 blocks
    l408   12.5     55.6             the size that the paper gives for L
    l,ft384  44.8   59.0     84.25

The published rate, 5e-4, does not depend on the batch size. 32 images per
process were published, but not the number of processes. The batch of 256 here
is that of 8 processes, and images are mixed and normalized in 8 groups, as in
as many processes (data.mix_groups, model.bn_groups). The step with the best
accuracy of the averaged parameters is kept beside the last one. 16, 24 and the
plain models have the settings of s. The settings of the fine-tuning were not
published, so they are DeiT's, except that batch, drop path and training mode
stay: this code never fine-tunes in evaluation mode.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

SIZES = ('16', '24', '32', 's', 'l', 'l408')
WIDTHS = (256, 384, 512, 768)
OPTIONS = ('plain', 'ft384', *(f'width{n}' for n in WIDTHS))
PUBLISHED = {  # plain ViT, DeepViT
  '16': (78.88, 79.10),
  '24': (79.35, 79.99),
  '32': (79.27, 80.90),
}


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='s', options=OPTIONS)
  shared.check_size(size, SIZES)
  c = default_config()
  c.run.name = f'DeepViT-{size.upper()} on ImageNet'
  c.run.epochs = 310.0

  shared.imagenet_full(c)
  c.data.batch_size = 256
  c.data.interpolation = 'random'
  shared.timm_augmentation(c)
  c.data.erase_mixed = True  # DeepViT's loader mixes before it erases
  c.data.mix_groups = 8

  c.model.name = f'deepvit_{size}'
  c.model.drop_path = 0.2
  c.model.scan = True
  c.model.bn_groups = 8

  c.optim.lr = 5e-4
  c.optim.ema = 0.99996
  c.eval.ema, c.log.keep_best = True, 1
  c.optim.weight_decay = 0.05
  shared.timm_schedule(c, epoch_lag=0)
  c.schedule.cooldown_epochs = 10.0
  shared.set_preprocessing(c)

  width = shared.one_of(switches, OPTIONS[2:])
  if 'plain' in switches:
    shared.check_size(size, PUBLISHED)
    c.run.name = f'plain ViT with {size} blocks on ImageNet'
    c.model.reattn = (False,) * int(size)
    if width:
      c.model.width = int(width.removeprefix('width'))
      c.model.num_heads, c.model.mlp_dim = 8, 3 * c.model.width
  elif size == '32':
    c.data.mixup, c.data.cutmix = 0.1, 0.0
    c.loss.cosine_reg, c.loss.cosine_reg_blocks = 0.1, 12
  if 'ft384' in switches:
    batch_size = c.data.batch_size
    shared.deit_finetuning(c, 384)
    c.data.batch_size, c.model.drop_path = batch_size, 0.2
    c.run.train_mode = True
    c.schedule.cooldown_epochs = None
  if 'smoke' in switches:
    shared.smoke(c)
    c.loss.cosine_reg_blocks = 1
    if 'plain' in switches:
      c.model.reattn = (False, False)
      if width:  # so that the variants differ in small, too
        c.model.width = int(width.removeprefix('width')) // 16
        c.model.mlp_dim = 3 * c.model.width
    elif size in ('s', 'l', 'l408'):
      c.model.reattn = (False, True)
  return c


def sweep(arg=None):
  """The rows of 16, 24 and 32 blocks, or with `widths` those of figure 5."""
  _, switches = shared.parse_arg(arg, options=('widths',))
  smoke = ['smoke'] if 'smoke' in switches else []
  if 'widths' in switches:
    return {
      f'width {n}': {'arg': ','.join(['32', 'plain', f'width{n}', *smoke])}
      for n in WIDTHS
    }
  variants = {}
  for size, (plain, deep) in PUBLISHED.items():
    variants[f'ViT-{size}'] = {
      'arg': ','.join([size, 'plain', *smoke]),
      'published': plain,
    }
    variants[f'DeepViT-{size}'] = {
      'arg': ','.join([size, *smoke]),
      'published': deep,
    }
  return variants


def measure(config, directory):
  """The fraction of blocks with attention similar to the block before."""
  from vit_jax.ablation.measures import similar_attention

  return {'similar blocks': similar_attention(config, directory)}
