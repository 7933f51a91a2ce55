"""Lists the models, with what they cost.

GFLOPs are multiply-accumulates of one forward pass at the model's image size,
as papers give them.
"""

import json

HELP = 'list models: parameters, GFLOPs, released files'


def add_arguments(parser):
  parser.add_argument(
    'pattern',
    nargs='?',
    default='*',
    help="shell pattern, such as 'vit_b*'; 'vit' is 'vit*'",
  )
  parser.add_argument('--json', action='store_true', help='as JSON')


def run(args):
  from vit_jax.inference import describe
  from vit_jax.models.registry import list_models

  names = list_models(args.pattern)
  if not names:
    raise ValueError(
      f'no model matches {args.pattern!r}; vit-jax models '
      'without a pattern lists all'
    )
  if args.json:
    print(json.dumps(list(describe.models(args.pattern)), indent=2))
    return
  width = max(map(len, names))
  print(
    f'{"model":{width}}  {"parameters":>13}  {"GFLOPs":>8}  {"px":>4}  '
    'released files'
  )
  for row in describe.models(args.pattern):  # each as soon as it is counted
    files = ', '.join(row['released'][:2])
    more = len(row['released']) - 2
    print(
      f'{row["name"]:{width}}  {row["parameters"]:13,}  '
      f'{row["gmacs"]:8.2f}  {row["image_size"]:4}  {files}'
      f'{f" and {more} more" if more > 0 else ""}'.rstrip(),
      flush=True,
    )
