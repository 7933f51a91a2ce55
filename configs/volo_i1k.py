"""VOLO on ImageNet with token labels (arXiv:2106.13112), 300 + 10 epochs.

    vit-jax token-labels TEACHER --source tfds:imagenet2012 \
        --data-dir TFDS_DIR -o LABELS
    python -m vit_jax.main --config=configs/volo_i1k.py:d1 \
        --config.data.dir=TFDS_DIR --config.data.labels=LABELS \
        --workdir=runs/volo_d1
    ... :d1,ft384 --config.run.pretrained=runs/volo_d1      30 + 10 epochs

Batch 1,024. No training time was published; G multiply-accumulates an image,
parameters at 224, expected top-1 at 224 and after fine-tuning:

    d1    6.92 G    26.6 M   84.2   85.2 at 384 (22.7 G)
    d2   14.3       58.7     85.2   86.0 at 384 (46.1)
    d3   20.7       86.3     85.4   86.3 at 448 (96.1)
    d4   44.3      193       85.7   86.8 at 448 (197)
    d5   72.3      295       86.1   87.0 at 448 (315), 87.1 at 512 (425)

The authors' label maps are of NFNet-F6, which is not in this project: TEACHER
is a VOLO, or a ViT with a head. Without label maps the class label stands for
every token: about 83.8 for d1 by the authors, 81.7 by a user. The rates of d4
and d5 were not published, those of d3 are taken; their drop path and the batch
of their fine-tuning are not certain. Each of 8 devices' images were normalised
by themselves: model.bn_groups=8.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

# size: peak rate, drop path, image sizes and batch of fine-tuning.
SIZES = {
  'd1': (1.6e-3, 0.1, (384,), 512),
  'd2': (1e-3, 0.2, (384,), 384),
  'd3': (1e-3, 0.5, (448,), 240),
  'd4': (1e-3, 0.5, (448,), 240),
  'd5': (1e-3, 0.75, (448, 512), 240),
}
OPTIONS = ('ft384', 'ft448', 'ft512')
SMOKE = dict(
  patch_size=4,
  layers=(1, 1, 1),
  embed_dims=(16, 32, 32),
  num_heads=(2, 2, 2),
  mlp_ratios=(2, 2, 2),
  stem_hidden_dim=8,
  outlook_attention=(True, False, False),
  downsamples=(True, False, False),
  post_layers=('ca',),
)


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='d1', options=OPTIONS)
  if size not in SIZES:
    raise ValueError(f'unknown size {size!r}; allowed: {", ".join(SIZES)}')
  rate, drop_path, large, batch = SIZES[size]
  c = default_config()
  c.run.name = f'VOLO-{size.upper()} on ImageNet'
  c.run.epochs = 310.0

  c.data.source = 'tfds:imagenet2012'
  c.data.batch_size = 1024
  c.data.area = (0.08, 1.0)
  c.data.interpolation = 'random'
  c.data.randaugment = 'rand-m9-mstd0.5-inc1'
  c.data.erasing = 0.25

  c.model.name = f'volo_{size}'
  c.model.drop_path = drop_path
  c.model.bn_groups = 8
  c.model.scan = True
  c.loss.label_smoothing = 0.1
  c.loss.token_weight = 0.5

  c.optim.lr = rate
  c.optim.weight_decay = 0.05
  c.schedule.name, c.schedule.by_epoch = 'timm_cosine', True
  c.schedule.epoch_lag = 0
  c.schedule.warmup_epochs, c.schedule.warmup_init = 20.0, 1e-6
  c.schedule.cooldown_epochs = 10.0
  c.schedule.end = 1e-5
  c.mesh.preset = 'zero'

  c.eval.sets = {'val': {'split': 'validation'}}
  c.eval.every_epochs = 10.0
  c.log.checkpoint_minutes = 20.0
  shared.feed_as_trained(c)

  tuned = [int(s[2:]) for s in switches if s.startswith('ft')]
  if tuned:
    if tuned[0] not in large or len(tuned) > 1:
      raise ValueError(
        f'{size} is fine-tuned at one of {", ".join(map(str, large))}'
      )
    c.run.epochs = 40.0
    c.data.image_size, c.data.batch_size = tuned[0], batch
    c.loss.ground_truth = True
    c.optim.lr = 8e-6
    c.optim.weight_decay = 1e-8
    c.schedule.warmup_epochs = 5.0
    c.schedule.end = 4e-6
  if 'smoke' in switches:
    shared.smoke(c, **SMOKE)
    c.schedule.cooldown_epochs = None
  return c
