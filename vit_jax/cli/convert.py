"""Converts weights from one format to another.

  vit-jax convert runs/flowers flowers.safetensors
  vit-jax convert ViT-B_16.npz vit_b16.safetensors --model vit_b16

It reads .npz, .pth, .safetensors and workdirs. The suffix of the target chooses
the format: .npz has Google's published names, .safetensors has the names of
timm or of the authors, and a target without a suffix becomes a workdir. The
result also has the model's name, its preprocessing and the class names.
"""

import argparse

from vit_jax import text
from vit_jax.cli import options

HELP = 'write weights in another format'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'source', help='workdir, .npz, .pth, .safetensors or hub name'
  )
  parser.add_argument('target', help='.npz, .safetensors, or a new directory')
  options.add_model_arguments(parser)
  parser.add_argument(
    '--format',
    metavar='NAMING',
    help="names of the tensors, if the model has them: 'npz', 'big_vision', "
    "'timm', 'official' or 'flax'",
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference.convert import convert

  loaded = convert(
    args.source, args.target, fmt=args.format, **options.loading(args)
  )
  print(
    f'{loaded.report}\nwrote {args.target}: {loaded.name} at '
    f'{text.shape(loaded.preprocessing.size)}, {loaded.num_classes} '
    'classes'
  )
