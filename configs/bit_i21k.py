"""BiT pre-training on ImageNet-21k (arXiv:1912.11370; BiT-M).

    python -m vit_jax.main --config=configs/bit_i21k.py:r50x1 \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/r50x1
    ... :r50x1,big_vision     big_vision's recipe
    ... :r101x3, :r152x2, :r152x4     the other sizes

90 epochs, batch 4,096, SGD with momentum 0.9, rate 0.03 x 4,096 / 256 = 0.48,
5,000 warm-up steps, sigmoid loss. The paper divides the rate by 10 after epochs
30, 60 and 80, and has an L2 penalty of 1e-4, which goes through the momentum.
`big_vision` has a cosine to 0, clip 1, bfloat16 momentum, weight decay
3e-5 x 16 times the schedule, head bias -10, and a root pooling that pads with
-inf instead of zeros.

Cost in multiply-accumulates an image: R50x1 4.1 G, R152x2 45.8 G, R152x4 183 G.
Expected on ImageNet after configs/bit_hyperrule.py:MODEL,imagenet2012,whole
(README of google-research/big_transfer): R50x1 80.68, R152x2 85.15.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='r50x1', options=('big_vision',)
  )
  c = default_config()
  c.run.name = f'BiT {model} on ImageNet-21k'
  c.run.epochs, c.run.fractional_epochs = 90.0, True
  c.data.source = 'packed'
  c.data.num_classes = 21_843
  c.data.batch_size = 4096
  c.model.name = shared.full_name(model, 'bit_')
  c.loss.name = 'sigmoid'
  c.schedule.warmup_steps = 5_000
  shared.big_vision_images(c)
  c.eval.every_epochs = 5.0
  c.log.checkpoint_minutes = 20.0
  c.mesh.preset = 'zero'
  c.optim.name = 'sgd'
  c.optim.lr, c.optim.lr_batch = 0.03, 256
  if 'big_vision' in switches:
    c.model.head_bias = -10.0
    c.model.pool_padding = '-inf'
    c.optim.state_dtype = 'bfloat16'
    c.optim.clip = 1.0
    c.optim.decay_style, c.optim.weight_decay = 'schedule', 3e-5 * 16
  else:
    set_paper_decay(c)
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def set_paper_decay(c):
  """Sets the paper's steps of the learning rate and its L2 penalty."""
  c.schedule.name, c.schedule.factor = 'step', 0.1
  c.schedule.boundaries = (30 / 90, 60 / 90, 80 / 90)
  c.optim.decay_style, c.optim.weight_decay = 'coupled', 1e-4
