"""ViT from scratch on ImageNet, three published ways.

    python -m vit_jax.main --config=configs/vit_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :b16,augreg      AugReg (arXiv:2106.10270), sigmoid loss
    ... :s16,baseline    the better plain baseline (arXiv:2205.01580)

paper: AdamW 3e-3, weight decay 0.3, cosine, batch 4,096, 300 epochs, dropout
0.1, clip 1, warm-up 10,000 steps (':warm3.4' for table 9's 3.4 epochs: the
two sources disagree, 32 against 3.4 epochs). B/16 77.9, L/16 76.5 at 384 px.
augreg: medium2 (light1 for Ti, medium1 for S/32). baseline: S/16, batch
1,024, 90 epochs (':150', ':300'), 76.5 % after 90, 6 to 7 hours on a v3-8.
"""

from configs import common
from vit_jax.config import default_config

# AugReg's levels: (RandAugment layers, magnitude), mixup alpha.
AUGREG = {
    'none': (None, 0.0), 'light1': ((2, 0), 0.0), 'light2': ((2, 10), 0.2),
    'medium1': ((2, 15), 0.2), 'medium2': ((2, 15), 0.5),
    'strong1': ((2, 20), 0.5), 'strong2': ((2, 20), 0.8),
}


def set_augreg(c, level: str):
  """Applies one of AugReg's augmentation levels."""
  policy, c.data.mixup = AUGREG[level]
  c.data.randaugment = 'google({},{})'.format(*policy) if policy else ''
  c.data.mix_style = 'google'


def get_config(arg=None):
  model, switches = common.parse_arg(
      arg, model='b16',
      options=('augreg', 'baseline', 'warm3.4', '150', '300', *AUGREG))
  c = default_config()
  c.run.name = f'ViT {model} on ImageNet'
  c.run.epochs = 300.0
  c.data.source = 'tfds:imagenet2012'
  c.data.split = 'train[:99%]'
  c.data.batch_size = 4096
  c.model.name = f'vit_{model}'
  c.optim.clip = 1.0
  c.schedule.warmup_steps = 10_000
  c.mesh.preset = 'zero'
  c.eval.sets = {'minival': {'split': 'train[99%:]'},
                 'val': {'split': 'validation'}}
  c.eval.crop = 224 / 256
  c.eval.every_epochs = 5.0
  c.log.checkpoint_minutes = 20.0
  if 'augreg' in switches:
    c.optim.name, c.optim.state_dtype = 'adam', 'bfloat16'
    c.optim.decay_style, c.optim.weight_decay = 'schedule', 1e-4
    c.loss.name, c.model.head_bias = 'sigmoid', -6.9
    level = {'ti16': 'light1', 's32': 'medium1'}.get(model, 'medium2')
    set_augreg(c, next((s for s in switches if s in AUGREG), level))
  elif 'baseline' in switches:
    c.run.epochs = next((float(s) for s in switches if s in ('150', '300')),
                        90.0)
    c.data.batch_size = 1024
    c.model.update(pool='gap', posemb='sincos2d', representation_size=384,
                   init_style='big_vision')
    c.optim.name, c.optim.state_dtype = 'adam', 'bfloat16'
    c.optim.decay_style, c.optim.weight_decay = 'schedule', 1e-4
    c.data.randaugment, c.data.mixup = 'google(2,10)', 0.2
    c.data.mix_style = 'google'
  else:
    c.optim.lr, c.optim.weight_decay = 3e-3, 0.3
    c.model.dropout = 0.1
    if 'warm3.4' in switches:
      c.schedule.warmup_steps = None
      c.schedule.warmup_epochs = 3.4
  if 'smoke' in switches:
    common.smoke(c, **common.VIT_SMOKE)
    if c.model.get('representation_size'):
      c.model.representation_size = 32
  return c
