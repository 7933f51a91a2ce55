"""A ViT from scratch on a folder of your images.

    python -m vit_jax.main --config=configs/imagefolder.py:PATH --workdir=DIR
    ... --config.model.name=vit_s16 --config.data.image_size=96 \
        --config.model.patch_size=8 --config.data.batch_size=32

PATH has train/CLASS/x.jpg and test/CLASS/x.jpg (or val, validation), or only
CLASS/x.jpg, of which a tenth is held out (`data.holdout`). The settings are
those of the plain baseline (configs/vit_s16_i1k.py), scaled to a small data
set: ViT-Ti/16, mean pooling, fixed positions, RandAugment, mixup, 100 epochs,
batch 64.

From scratch a ViT needs many images. With fewer than about 10,000, start from
released weights instead: `vit-jax finetune --data PATH`. The README has the
cost and the result for 1,800 EuroSAT tiles of 10 classes at 64 px with patches
of 8.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  path, smoke = (arg or ''), False
  if path == 'smoke' or path.endswith(',smoke'):
    path, smoke = path.removesuffix('smoke').removesuffix(','), True
  c = default_config()
  c.run.name = f'ViT on {path or "a folder of images"}'
  c.run.epochs = 100.0
  c.data.source, c.data.dir = 'folder', path
  c.data.batch_size = 64
  c.data.randaugment, c.data.mixup = 'google(2,10)', 0.2
  c.data.mix_style = 'google'
  c.data.area = (0.25, 1.0)
  c.data.normalize = 'imagenet'
  c.model.update(name='vit_ti16', pool='gap', posemb='sincos2d', drop_path=0.1)
  c.loss.label_smoothing = 0.1
  c.optim.lr = 1e-3
  c.optim.weight_decay = 0.05
  c.optim.clip = 1.0
  c.schedule.warmup_epochs = 5.0
  c.eval.every_epochs = 10.0
  c.eval.crop = 224 / 256
  c.log.every_steps = 20
  c.log.checkpoint_minutes = 10.0
  if smoke:
    shared.smoke(c)
  return c
