"""Shows a model's layers and cost, or what is in a weight file.

vit-jax info vit_b16 --image-size 384
vit-jax info vit_s16 --set 'area_sizes=((1, 2), (2, 2))'
vit-jax info ViT-B_16.npz
vit-jax info runs/flowers
"""

import json
import os

from vit_jax.cli import options

HELP = 'layers, shapes and cost of a model or weight file'


def add_arguments(parser):
  parser.add_argument('name', help='model name, weight file or workdir')
  parser.add_argument(
    '--num-classes',
    type=int,
    metavar='N',
    default=1000,
    help='size of the head of a named model (1000)',
  )
  options.add_model_arguments(parser)
  parser.add_argument('--json', action='store_true', help='as JSON')


def run(args):
  from vit_jax.inference import describe
  from vit_jax.models.registry import list_models

  is_path = (
    os.path.exists(args.name)
    or any(
      args.name.endswith(end)
      for end in ('.npz', '.pth', '.tar', '.bin', '.safetensors')
    )
    or ('/' in args.name or args.name.startswith('hf:'))
  )
  if is_path and args.name not in list_models():
    found = describe.describe_file(args.name, model=args.model)
    show = _show_file
  else:
    found = describe.describe_model(
      args.name,
      image_size=args.image_size,
      num_classes=args.num_classes,
      fields=options.fields(args.set),
    )
    show = _show_model
  if args.json:
    print(json.dumps(found, indent=2))
  else:
    show(found)


def _show_model(found):
  print(
    options.table(
      [('layer', 'shape', 'parameters')]
      + [
        (x['name'], options.shape_text(x['shape']), f'{x["size"]:,}')
        for x in found['layers']
      ],
      right=(2,),
    )
  )
  print(
    f'\n{found["name"]} ({found["module"]}): {found["parameters"]:,} '
    f'parameters, {found["gmacs"]:.3f} GFLOPs '
    f'(multiply-accumulates) at {options.shape_text(found["image_size"])}'
  )
  if found['statistics']:
    print(f'{found["statistics"]:,} BatchNorm statistics besides')
  for block, areas in enumerate(found['areas']):
    print(f'block {block}: attention over {areas:,} areas')
  crop = found['crop']
  print(
    f'fed with: {found["normalize"]} normalisation, '
    f'{"squashed" if crop == "squash" else f"crop ratio {crop}"}, '
    f'{found["interpolation"]}'
  )
  if found['released']:
    print(f'released: {", ".join(found["released"])}')


def _show_file(found):
  print(
    options.table(
      [('tensor', 'shape', 'dtype', 'values')]
      + [
        (
          x['name'],
          options.shape_text(x['shape']),
          x['dtype'],
          f'{x["size"]:,}',
        )
        for x in found['tensors']
      ],
      right=(3,),
    )
  )
  print(
    f'\n{found["source"]} ({found["kind"]}): {len(found["tensors"])} '
    f'tensors, {found["values"]:,} values'
  )
  if found['model']:
    fields = found['metadata'].get('fields', {})
    rest = ''.join(f' {k}={v}' for k, v in fields.items())
    print(f'model: {found["model"]}{rest}')
  elif found['fits']:
    print(f'the tensors fit: {", ".join(found["fits"])}')
  else:
    print('the tensors fit no registered model')
  metadata = found['metadata']
  if metadata.get('image_size'):
    print(f'image size: {options.shape_text(metadata["image_size"])}')
  classes = metadata.get('classes')
  if classes:
    shown = ', '.join(classes[:10])
    print(
      f'{len(classes)} classes: {shown}{", ..." if len(classes) > 10 else ""}'
    )
