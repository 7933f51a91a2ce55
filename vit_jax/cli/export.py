"""Exports a model as one StableHLO program with its weights.

  vit-jax export runs/flowers flowers.stablehlo
  vit-jax predict flowers.stablehlo photo.jpg

It runs on CPU, CUDA and TPU with JAX alone, for any batch size: uint8 images
in, logits out. FILE.json beside it has class names and preprocessing. ONNX, for
other runtimes, needs pip install 'vit_jax[onnx]'.
"""

from vit_jax.cli import options

HELP = 'a program that runs without this package'


def add_arguments(parser):
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument('output', help='file to write, such as x.stablehlo')
  parser.add_argument(
    '--format',
    choices=('stablehlo', 'onnx'),
    help='default: by the suffix, onnx for .onnx',
  )
  parser.add_argument(
    '--batch', type=int, metavar='N', help='a fixed batch size; default: free'
  )
  parser.add_argument(
    '--platforms',
    nargs='+',
    metavar='NAME',
    default=['cpu', 'cuda', 'tpu'],
    help='of stablehlo; default: cpu cuda tpu',
  )
  options.add_model_arguments(parser)


def run(args):
  from vit_jax.inference.export import export

  fmt = args.format or (
    'onnx' if args.output.endswith('.onnx') else 'stablehlo'
  )
  found = export(
    args.weights,
    args.output,
    fmt=fmt,
    batch=args.batch,
    platforms=args.platforms,
    **options.loading(args),
  )
  print(
    f'wrote {args.output} '
    f'({", ".join([fmt, *found.get("platforms", [])])}): '
    f'{found["input"]} -> {found["output"]}\n'
    f'wrote {args.output}.json: class names, preprocessing'
  )
