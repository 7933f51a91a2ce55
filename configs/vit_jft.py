"""ViT pre-training on JFT-300M, JFT-3B or another large multi-label data set.

    python -m vit_jax.main --config=configs/vit_jft.py:h14 \
        --config.data.dir=gs://BUCKET/jft --workdir=gs://BUCKET/h14
    ... :h14,gap      mean pooling instead of the class token
    ... :g14,adamw    the settings of H/14 instead of Adafactor

Any packed multi-label data set will do; JFT is not public. It has 303 M images
of 18,291 classes; set data.num_classes to that of your data.

b32 to h14, hybrids (arXiv:2010.11929, table 3; the class token, a tanh layer
before the head): batch 4,096, Adam, linear decay to 1e-5, weight decay 0.1,
10,000 warm-up steps, clip 1, no dropout, head bias -10, targets 0.9999 and
0.0001:

    model          epochs   rate        model          epochs   rate
    b32, b16       7        8e-4        r50_vit_b16    7        8e-4
    l32            7        6e-4        r50_vit_b32    7        8e-4
    l16            14 (7)   4e-4        r50_vit_l32    7        2e-4
    h14            14       3e-4        r50_vit_l16    14 (7)   4e-4

`short` takes the 7 epochs of L/16. s32 and s16 are the 'ViT-b' of the paper's
few-shot figure: B with all hidden dimensions halved. They have B's settings.

g14, G14 (arXiv:2106.04560; the published config train_vit_g of big_vision):
JFT-3B, batch 16,384, 1 M steps, Adafactor with a bfloat16 first moment, rate
8e-4 with 10,000 warm-up steps, an inverse square root with timescale 10,000 and
50,000 steps of cooldown, weight decay 0.03 times the rate on kernels, 100 times
that on the head, clip 1, pooling by attention (MAP).

Variants that were not published:

    gap      mean pooling, as the 256 patches without a class token fill the
             tiles of a TPU exactly; the paper's table has the class token
    adamw    g14 and G14 with the optimizer, schedule and batch of H/14, for
             clusters that do not hold a batch of 16,384

Cost: H/14 2.5k and L/16 0.68k TPUv3-core-days (table 2). Expected with JFT
after fine-tuning on ImageNet with configs/finetune.py: H/14 88.55 +- 0.04
(':h14,imagenet2012,res518'), L/16 87.76 +- 0.03 (':l16,imagenet2012,res512').
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

# model: (epochs, peak learning rate)
SETTINGS = {
  'vit_s32': (7, 8e-4),
  'vit_s16': (7, 8e-4),
  'vit_b32': (7, 8e-4),
  'vit_b16': (7, 8e-4),
  'vit_l32': (7, 6e-4),
  'vit_l16': (14, 4e-4),
  'vit_h14': (14, 3e-4),
  'r50_vit_b32': (7, 8e-4),
  'r50_vit_b16': (7, 8e-4),
  'r50_vit_l32': (7, 2e-4),
  'r50_vit_l16': (14, 4e-4),
  # For the variant `adamw`.
  'vit_g14': (14, 3e-4),
  'vit_G14': (14, 3e-4),
}
GIANT = ('vit_g14', 'vit_G14')


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='h14', options=('short', 'gap', 'adamw')
  )
  name = model if model in SETTINGS else f'vit_{model}'
  if name not in SETTINGS:
    raise ValueError(
      f'unknown model {model!r} of this recipe; allowed: {", ".join(SETTINGS)}'
    )
  c = default_config()
  c.run.name = f'{name} on JFT'
  c.data.source = 'packed'
  c.data.num_classes = 18_291
  if name in GIANT and 'adamw' not in switches:
    _giant(c, name)
  else:
    _original(c, name, short='short' in switches)
  if 'gap' in switches:
    c.model.pool, c.model.class_token_only = 'gap', False
  c.mesh.preset = 'zero'
  if name in GIANT:
    c.mesh.preset, c.mesh.fsdp = 'fsdp', 32
  if name in GIANT:
    c.model.remat, c.model.scan = 'full', True
    c.model.class_token_only = False  # all scanned blocks must be the same
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 20.0
  c.log.keep_latest = 2
  if 'smoke' in switches:
    is_map = c.model.get('pool') == 'map'
    small = {} if is_map else {'representation_size': 32}
    shared.smoke(c, **small)
  return c


def _original(c, name: str, short: bool):
  """Table 3 of arXiv:2010.11929."""
  epochs, c.optim.lr = SETTINGS[name]
  c.run.epochs = 7.0 if short else float(epochs)
  c.data.batch_size = 4096
  shared.original_vit(c, name, dropout=0.0)
  c.optim.weight_decay = 0.1
  c.optim.clip = 1.0
  c.schedule.name, c.schedule.end = 'linear', 1e-5
  c.eval.every_epochs = 1.0


def _giant(c, name: str):
  """big_vision's train_vit_g."""
  c.run.steps = 1_000_000
  c.data.batch_size = 16_384
  c.model.update(name=name, pool='map', head_bias=-10.0)
  c.model.init_style = 'big_vision'
  shared.big_vision_images(c)
  c.loss.name = 'sigmoid'
  c.optim.name, c.optim.state_dtype = 'adafactor', 'bfloat16'
  c.optim.lr, c.optim.clip = 8e-4, 1.0
  c.optim.decay_style, c.optim.weight_decay = 'schedule', 0.03 * 8e-4
  c.optim.groups = (('head/kernel', {'decay': 100.0}),)
  c.schedule.name, c.schedule.timescale = 'rsqrt', 10_000
  c.schedule.warmup_steps, c.schedule.cooldown_steps = 10_000, 50_000
  c.eval.every_steps = 10_000
