"""Few-shot accuracy of frozen features on a folder of images.

  vit-jax fewshot ViT-B_16.npz --model vit_b16 --data flowers

A ridge regression on the features of 1, 5, 10 and 25 images per class, tested
on the test part of the folder; mean of three draws.
"""

import json

from vit_jax.cli import options

HELP = 'linear probe of frozen features, 1 to 25 images a class'


def add_arguments(parser):
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    '--data',
    required=True,
    metavar='DIR',
    help='image folder, or what vit-jax pack wrote',
  )
  parser.add_argument(
    '--shots', type=int, nargs='+', default=[1, 5, 10, 25], metavar='N'
  )
  parser.add_argument('--seeds', type=int, default=3, metavar='N')
  parser.add_argument(
    '--holdout',
    type=float,
    default=0.5,
    metavar='X',
    help='fraction of a flat folder for testing (0.5)',
  )
  parser.add_argument('--batch', type=int, default=32, metavar='N')
  options.add_model_arguments(parser)
  parser.add_argument('--json', action='store_true', help='as JSON')


def run(args):
  from vit_jax.evaluation.fewshot import fewshot

  results = fewshot(
    args.weights,
    args.data,
    shots=args.shots,
    seeds=args.seeds,
    holdout=args.holdout,
    batch_size=args.batch,
    **options.loading(args),
  )
  if args.json:
    print(json.dumps(results))
    return
  print(
    options.table(
      [('shots', 'accuracy', 'of each draw')]
      + [
        (n, f'{r["mean"]:.2%}', ', '.join(f'{x:.2%}' for x in r['seeds']))
        for n, r in results.items()
      ],
      right=(0, 1),
    )
  )
