"""Position embeddings of ViT-B/16 (arXiv:2010.11929, table 8).

    python -m vit_jax.ablate --config=configs/posemb_d3.py --seeds=1 \
        --config.data.dir=gs://BUCKET/jft --config.eval.fewshot.dir=TFDS_DIR \
        --workdir=gs://BUCKET/posemb
    python -m vit_jax.ablate --config=configs/posemb_d3.py:smoke ...   a minute

    vit-jax figures gs://BUCKET/posemb --positions --metric 5-shot -o d3.png

    python -m vit_jax.main --config=configs/posemb_d3.py:2d,layers ...  one cell

Every cell of the table is a pre-training of B/16 with the settings of
configs/vit_jft.py, then a 5-shot linear probe on ImageNet (the first 65,000
training images, three draws). The schemes are `none`, `1d`, `2d` (a table for
rows and one for columns, each of half the width) and `relative`
(one-dimensional offsets in every attention). Positions are added at the input,
or with `layers` in every layer from its own table, or with `shared` in every
layer from one table.

Cost: eight runs of B/16, 17.6 G multiply-accumulates an image, 7 epochs each.
Expected 5-shot accuracy with JFT (appendix D.4):

                at the input   every layer   every layer, shared
    none        61.382
    1d          64.206         63.964        64.292
    2d          64.001         64.046        64.022
    relative    64.032
"""

from configs import vit_jft
from vit_jax.analysis.published import POSITIONS
from vit_jax.recipe import shared

SCHEMES = {
  'none': 'none',
  '1d': 'learn1d',
  '2d': 'learn2d',
  'relative': 'relative',
}
LAYERS = {'layers': 'every_layer', 'shared': 'every_layer_shared'}
# {(scheme, layers): the paper's 5-shot accuracy in per cent}.
PUBLISHED = {
  (scheme, layers): POSITIONS[posemb, posemb_at]
  for scheme, posemb in SCHEMES.items()
  for layers, posemb_at in {'': 'stem', **LAYERS}.items()
  if (posemb, posemb_at) in POSITIONS
}
COLUMN = '5-shot'


def get_config(arg=None):
  _, switches = shared.parse_arg(arg, options=(*SCHEMES, *LAYERS))
  scheme = shared.one_of(switches, SCHEMES, '1d')
  layers = shared.one_of(switches, LAYERS)
  if (scheme, layers) not in PUBLISHED:
    raise ValueError(f'{scheme} position embeddings are only at the input')
  c = vit_jft.get_config('b16')
  c.run.name = f'position embeddings: {scheme} {layers}'.strip()
  c.model.posemb = SCHEMES[scheme]
  c.model.posemb_at = LAYERS.get(layers, 'stem')
  if scheme == 'relative':
    c.model.class_token_only = False  # relative attention computes all tokens
  shared.fewshot_on_imagenet(c)
  if 'smoke' in switches:
    shared.smoke(c, representation_size=32)
  return c


def sweep(arg=None):
  """Every cell of the table."""
  _, switches = shared.parse_arg(arg)
  return {
    f'{scheme} {layers}'.strip(): {
      'arg': ','.join(filter(None, [scheme, layers, *switches])),
      'published': {COLUMN: value},
    }
    for (scheme, layers), value in PUBLISHED.items()
  }


def measure(config, directory):
  """The 5-shot accuracy of a run, in per cent."""
  from vit_jax.ablation.measures import fewshot_accuracy

  return {COLUMN: fewshot_accuracy(config, directory, 5)}
