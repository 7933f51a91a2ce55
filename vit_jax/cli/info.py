"""Shows the layers and cost of a model, or the tensors of a weight file.

  vit-jax info vit_b16 --image-size 384
  vit-jax info vit_s16 --set 'area_sizes=((1, 2), (2, 2))'
  vit-jax info ViT-B_16.npz
  vit-jax info runs/flowers

Long names are folded at the width of the terminal, or at 80 columns in a pipe;
COLUMNS=200 before the command sets another width.
"""

import argparse
import json
import os
from typing import Any

from vit_jax import text
from vit_jax.cli import options

HELP = 'show the layers and cost of a model, or a weight file'
_WEIGHT_SUFFIXES = ('.npz', '.pth', '.tar', '.bin', '.safetensors')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('name', help='model name, weight file or workdir')
  parser.add_argument(
    '--num-classes',
    type=int,
    metavar='N',
    default=1000,
    help='number of classes of the head, for the name of a model (1000)',
  )
  options.add_model_arguments(parser)
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference import describe
  from vit_jax.models.registry import list_models, load_module

  if args.module:
    load_module(args.module)
  if _is_path(args.name) and args.name not in list_models():
    description = describe.describe_file(
      args.name, model=args.model, prefix=args.prefix
    )
    show = _show_file
  else:
    description = describe.describe_model(
      args.name,
      image_size=args.image_size,
      num_classes=args.num_classes,
      fields=options.fields(args.set),
    )
    show = _show_model
  if args.json:
    print(json.dumps(description, indent=2))
  else:
    show(description)


def _is_path(name: str) -> bool:
  """Whether a name is that of a file, directory or hub entry."""
  return (
    os.path.exists(name)
    or name.endswith(_WEIGHT_SUFFIXES)
    or '/' in name
    or name.startswith('hf:')
  )


def _show_model(model: dict[str, Any]) -> None:
  rows = [
    (x['name'], text.shape(x['shape']), f'{x["size"]:,}')
    for x in model['layers']
  ]
  header = ('layer', 'shape', 'parameters')
  width = text.line_width()
  print(text.table(rows, header=header, right=(2,), width=width))
  cost = (
    f'{model["name"]} ({model["module"]}): {model["parameters"]:,} '
    f'parameters, {model["gmacs"]:.3f} GFLOPs '
    f'(multiply-accumulates) at {text.shape(model["image_size"])}'
  )
  print('\n' + text.wrap(cost))
  if model['statistics']:
    print(
      f'{model["statistics"]:,} statistics of batch normalization, which are '
      'not parameters'
    )
  for block, areas in enumerate(model['areas']):
    print(f'block {block}: attention over {areas:,} areas')
  crop = model['crop']
  print(
    f'preprocessing: {model["normalize"]} normalization, '
    f'{"squashed" if crop is None else f"crop ratio {crop}"}, '
    f'{model["interpolation"]}'
  )
  if model['released']:
    print(text.wrap(f'released: {", ".join(model["released"])}'))


def _show_file(file: dict[str, Any]) -> None:
  rows = [
    (x['name'], text.shape(x['shape']), x['dtype'], f'{x["size"]:,}')
    for x in file['tensors']
  ]
  header = ('tensor', 'shape', 'dtype', 'values')
  width = text.line_width()
  print(text.table(rows, header=header, right=(3,), width=width))
  print(
    f'\n{file["source"]} ({file["kind"]}): {len(file["tensors"])} '
    f'tensors, {file["values"]:,} values'
  )
  if file['model']:
    fields = file['metadata'].get('fields', {})
    rest = ''.join(f' {k}={v}' for k, v in fields.items())
    print(f'model: {file["model"]}{rest}')
  elif file['fits']:
    print(text.wrap(f'the tensors fit: {", ".join(file["fits"])}'))
  else:
    print('the tensors fit no registered model')
  metadata = file['metadata']
  if metadata.get('image_size'):
    print(f'image size: {text.shape(metadata["image_size"])}')
  classes = metadata.get('classes')
  if classes:
    shown = ', '.join(classes[:10])
    more = ', ...' if len(classes) > 10 else ''
    print(text.wrap(f'{len(classes)} classes: {shown}{more}'))
