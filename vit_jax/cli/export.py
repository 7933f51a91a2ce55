"""Exports a model as one StableHLO program with its weights.

  vit-jax export runs/flowers -o flowers.stablehlo
  vit-jax export ViT-B_16.npz --model vit_b16 -o vit_b16.onnx --batch-size 1

`vit-jax predict flowers.stablehlo photo.jpg` runs it.

The program needs only JAX, and runs on CPU, CUDA and TPU with any batch size.
It takes images with pixels in [0, 255] and returns logits. FILE.json beside it
has the class names and the preprocessing. For ONNX, pip install
'vit_jax[onnx]'.
"""

import argparse

from vit_jax.cli import options

HELP = 'write a program that runs without this package'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  options.add_output_argument(
    parser, 'FILE', 'file to write, such as x.stablehlo'
  )
  parser.add_argument(
    '--format',
    choices=('stablehlo', 'onnx'),
    help='default: onnx for a file X.onnx, else stablehlo',
  )
  parser.add_argument(
    '--batch-size',
    type=options.positive,
    metavar='N',
    help='a fixed batch size; default: any batch size',
  )
  parser.add_argument(
    '--platforms',
    nargs='+',
    type=options.platform,
    metavar='NAME',
    default=['cpu', 'cuda', 'tpu'],
    help='platforms of a stablehlo program; default: cpu cuda tpu',
  )
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference.export import export

  output = options.output(args)
  description = export(
    args.weights,
    output,
    fmt=args.format,
    batch=args.batch_size,
    platforms=args.platforms,
    **options.loading(args),
  )
  platforms = description.get('platforms')  # ONNX has none
  kind = ', '.join(['stablehlo', *platforms]) if platforms else 'onnx'
  print(
    f'wrote {output} ({kind}): '
    f'{description["input"]} -> {description["output"]}\n'
    f'wrote {output}.json: class names, preprocessing'
  )
