"""BiT pre-training on ImageNet (arXiv:1912.11370; BiT-S).

    python -m vit_jax.main --config=configs/bit_i1k.py:r50x1 \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :r50x1,big_vision     big_vision's recipe, with its ResNet V1

90 epochs, batch 4,096, SGD with momentum 0.9, softmax loss. The paper's rate is
0.03 x 4,096 / 256 = 0.48, divided by 10 after epochs 30, 60 and 80, with 5,000
warm-up steps and L2 1e-4 (see configs/bit_i21k.py). `big_vision` has the rate
0.1 x 16 with a cosine to 0, 1,000 warm-up steps, clip 1, bfloat16 momentum,
weight decay 1e-4 x 16 times the schedule.

Cost: big_vision's R50x1 takes about 32 minutes on a v3-128; 4.1 G
multiply-accumulates an image. Expected for r50x1,big_vision: about 76
(big_vision's config). No accuracy at the end of the paper's own run was
published.
"""

from configs import bit_i21k
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='r50x1', options=('big_vision',)
  )
  big_vision = 'big_vision' in switches
  c = default_config()
  c.run.name = f'BiT {model} on ImageNet'
  c.run.epochs = 90.0
  shared.imagenet(c)
  c.data.batch_size = 4096
  c.model.name = shared.full_name(model, 'bit_v1_' if big_vision else 'bit_')
  c.optim.name = 'sgd'
  if big_vision:
    c.optim.lr, c.optim.lr_batch = 0.1, 256
    c.optim.state_dtype = 'bfloat16'
    c.optim.clip = 1.0
    c.optim.decay_style, c.optim.weight_decay = 'schedule', 1e-4 * 16
    c.schedule.warmup_steps = 1_000
  else:
    c.optim.lr, c.optim.lr_batch = 0.03, 256
    bit_i21k.set_paper_decay(c)
    c.schedule.warmup_steps = 5_000
  if 'smoke' in switches:
    shared.smoke(c)
  return c
