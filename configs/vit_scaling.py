"""Few-shot accuracy against size and data (arXiv:2010.11929, figures 4 and 5).

    python -m vit_jax.ablate --config=configs/vit_scaling.py --seeds=1 \
        --config.data.dir=gs://BUCKET/jft --config.eval.fewshot.dir=TFDS_DIR \
        --workdir=gs://BUCKET/scaling
    python -m vit_jax.ablate --config=configs/vit_scaling.py:hybrids ...
    ... :smoke                                            a few minutes on a CPU

    python -m vit_jax.main --config=configs/vit_scaling.py:vit_b32,9M ...

The default is figure 4: b/32, B/32 and L/32, L/16 pre-trained on 9 M, 30 M, 90
M and 303 M random images of JFT with the same settings (those of
configs/vit_jft.py, without further regularization), then a 5-shot linear probe
on ImageNet. 'b' is B with all hidden dimensions halved, which is the size of
ViT-S. The smaller sets are the first images of the packed split, which `vit-jax
pack` has shuffled. All runs have as many steps as those on the whole set.

`hybrids` is figure 5: ViTs beside hybrids, 7 epochs each, and 14 epochs for a
second L/16, a second hybrid L/16 and H/14.

Cost: see configs/vit_jft.py. Expected: no numbers are printed in the figures.
At 9 M images the smaller models are better, at 90 M and 303 M the larger ones.
"""

from configs import vit_jft
from vit_jax.recipe import shared

MODELS = ('vit_s32', 'vit_b32', 'vit_l32', 'vit_l16')
HYBRIDS = ('r50_vit_b32', 'r50_vit_b16', 'r50_vit_l32', 'r50_vit_l16')
# {name: fraction of the training split}.
SUBSETS = {'9M': 0.03, '30M': 0.1, '90M': 0.3, '300M': 1.0}
JFT = 303_000_000
COLUMN = '5-shot'


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='vit_b32', options=(*SUBSETS, 'short', 'hybrids')
  )
  subset = shared.one_of(switches, SUBSETS, '300M')
  c = vit_jft.get_config(','.join([model, *switches & {'short'}]))
  c.run.name = f'{model} on {subset} images'
  if SUBSETS[subset] < 1:
    c.data.split = f'train[:{SUBSETS[subset]:.0%}]'
    c.run.examples = int(c.run.epochs * JFT)
    c.run.epochs = c.eval.every_epochs = None
    c.eval.every_steps = 10_000
  shared.fewshot_on_imagenet(c)
  if 'smoke' in switches:
    shared.smoke(c, representation_size=32)
  return c


def sweep(arg=None):
  """Figure 4, or with `hybrids` figure 5."""
  _, switches = shared.parse_arg(arg, options=('hybrids',))
  smoke = ['smoke'] if 'smoke' in switches else []
  if 'hybrids' in switches:
    runs = [(m, 'short') for m in ('vit_b32', 'vit_b16', 'vit_l32', 'vit_l16')]
    runs += [(m, 'short') for m in HYBRIDS]
    runs += [('vit_l16', ''), ('r50_vit_l16', ''), ('vit_h14', '')]
  else:
    runs = [(m, s) for m in MODELS for s in SUBSETS]
  return {
    f'{model} {word}'.strip(): {
      'arg': ','.join(filter(None, [model, word, *smoke]))
    }
    for model, word in runs
  }


def measure(config, directory):
  """The 5-shot accuracy of a run, in per cent."""
  from vit_jax.ablation.measures import fewshot_accuracy

  return {COLUMN: fewshot_accuracy(config, directory, 5)}
