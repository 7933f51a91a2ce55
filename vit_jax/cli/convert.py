"""Converts weights: .npz, .pth, .safetensors or workdir, to another of them.

  vit-jax convert runs/flowers flowers.safetensors
  vit-jax convert ViT-B_16.npz vit_b16.safetensors --model vit_b16

.npz has the published Google names, .safetensors timm's (or the authors' own);
a target without suffix becomes a workdir. Model, image size, preprocessing and
class names travel along.
"""

from vit_jax.cli import options

HELP = 'weights from one format to another'


def add_arguments(parser):
  parser.add_argument('source', help='what to read')
  parser.add_argument('target', help='.npz, .safetensors, or a new directory')
  options.add_model_arguments(parser)
  parser.add_argument(
    '--format',
    metavar='NAMING',
    help='names of the tensors:'
    " 'npz', 'big_vision', 'timm', 'official' or 'flax', "
    'where the model has them',
  )


def run(args):
  from vit_jax.inference.convert import convert

  loaded = convert(
    args.source, args.target, fmt=args.format, **options.loading(args)
  )
  print(
    f'{loaded.report}\nwrote {args.target}: {loaded.name} at '
    f'{options.shape_text(loaded.image_size)}, {loaded.num_classes} '
    'classes'
  )
