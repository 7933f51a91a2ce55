"""Converts weights from one format to another.

  vit-jax convert runs/flowers -o flowers.safetensors
  vit-jax convert ViT-B_16.npz --model vit_b16 -o vit_b16.safetensors

It reads .npz, .pth, .safetensors and workdirs. The suffix of the output chooses
the format: .npz has Google's published names, .safetensors has the names of
timm or of the authors, and an output without a suffix becomes a workdir. The
result also has the model's name, its preprocessing and the class names.
"""

import argparse

from vit_jax import text
from vit_jax.cli import options

HELP = 'write weights in another format'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors or hub name'
  )
  options.add_output_argument(
    parser, 'PATH', '.npz, .safetensors, or a new directory'
  )
  options.add_model_arguments(parser)
  parser.add_argument(
    '--format',
    metavar='NAMING',
    help="names of the tensors, if the model has them: 'npz', 'big_vision', "
    "'timm', 'official' or 'flax'; default: by the suffix",
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference.convert import convert

  output = options.output(args)
  loaded = convert(
    args.weights, output, fmt=args.format, **options.loading(args)
  )
  print(
    f'{loaded.report}\nwrote {output}: {loaded.name} at '
    f'{text.shape(loaded.preprocessing.size)}, {loaded.num_classes} '
    'classes'
  )
