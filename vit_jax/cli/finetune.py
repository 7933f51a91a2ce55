"""Fine-tunes a model on a folder of your own images.

  vit-jax finetune --model vit_b16 --weights ViT-B_16.npz --data flowers \\
      --dry-run --show-batch batch.png
  vit-jax finetune --model vit_b16 --weights ViT-B_16.npz --data flowers
  vit-jax finetune --weights runs/flowers --data more_flowers --epochs 10 \\
      --head-only
  vit-jax finetune --model vit_b16 --weights ViT-B_16.npz --data flowers \\
      --more-epochs 5 --lr 0.001

The folder has one directory of images per class, or train/ and test/ with such
directories. Without test/, some of the images are held out for testing. The
settings are the published ones. A stopped run continues when the same command
is started again. Any other key of a recipe is set by --config.KEY=VALUE.
"""

import argparse
import json
import os
from typing import Any

from vit_jax import text
from vit_jax.cli import options

HELP = 'train a model on your folder of images'
OPTIONS = {
  'model.name': '--model',
  'model.module': '--module',
  'model.': '--set ',
  'run.pretrained': '--weights',
  'run.resume': '--weights',
  'run.prefix': '--prefix',
  'run.steps': '--steps',
  'run.epochs': '--epochs',
  'run.extend': '--more-epochs',
  'run.seed': '--seed',
  'data.dir': '--data',
  'data.batch_size': '--batch-size',
  'data.image_size': '--image-size',
  'data.holdout': '--holdout',
  'data.max_bad_fraction': '--max-bad-fraction',
  'data.flat=True': '--flat',
  'data.match_classes': '--match-classes',
  'optim.lr': '--lr',
  'optim.layer_decay': '--layer-decay',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--model',
    metavar='NAME',
    help='a name that vit-jax models lists; default: the model that the '
    'weights name',
  )
  parser.add_argument(
    '--weights',
    default='',
    metavar='PATH',
    help='.npz, .pth, .safetensors, workdir or hub name; default, or the word '
    'none: random initial parameters',
  )
  parser.add_argument(
    '--prefix',
    default='',
    metavar='NAME',
    help="what stands before the names of the model's tensors in the file, "
    'such as model_ema; default: it is searched',
  )
  parser.add_argument(
    '--data',
    required=True,
    metavar='DIR',
    help='image folder, or what vit-jax pack wrote',
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='directory for checkpoints and metrics; default: runs/MODEL-DATA',
  )
  options.add_preview_arguments(parser)
  _add_settings(parser)
  options.add_module_argument(parser)
  options.add_set_argument(parser)
  options.add_json_argument(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
  """Adds the settings of training."""
  length = parser.add_mutually_exclusive_group()
  length.add_argument(
    '--steps',
    type=options.positive,
    metavar='N',
    help='length of training; default: 500 steps below 20,000 images, 10,000 '
    'below 500,000, else 20,000',
  )
  length.add_argument(
    '--epochs',
    type=options.above_zero,
    metavar='N',
    help='length of training in epochs',
  )
  options.add_more_epochs_argument(parser)
  parser.add_argument(
    '--lr',
    type=options.above_zero,
    metavar='RATE',
    help='peak learning rate; default: 0.03 x batch size / 512',
  )
  parser.add_argument(
    '--batch-size',
    type=options.positive,
    metavar='N',
    help='batch size of all devices together; default 512, on a CPU 32',
  )
  parser.add_argument(
    '--image-size',
    type=options.size,
    metavar='N',
    help="pixels, N or HxW; default: the model's own; the papers use 384",
  )
  parser.add_argument(
    '--head-only',
    action='store_true',
    help='a linear probe: only the head is trained',
  )
  parser.add_argument(
    '--layer-decay',
    type=float,
    default=1.0,
    metavar='X',
    help='factor of the learning rate from each block to the block before it, '
    'such as 0.75 (1)',
  )
  parser.add_argument(
    '--holdout',
    type=options.fraction,
    default=0.1,
    metavar='X',
    help='fraction of the images for testing, if the folder has no test '
    'directory (0.1); 0 trains on all of them and evaluates nothing',
  )
  options.add_flat_argument(parser)
  options.add_match_argument(parser, ('names', 'numbers', 'new'))
  parser.add_argument(
    '--max-bad-fraction',
    type=float,
    default=0.01,
    metavar='X',
    help='fraction of the images that may be unreadable (0.01); one always may',
  )
  parser.add_argument(
    '--seed',
    type=int,
    default=0,
    metavar='N',
    help='seed of the initial head, the order of images and augmentation (0)',
  )


def run(args: argparse.Namespace) -> None:
  weights = '' if args.weights.lower() == 'none' else args.weights
  if not args.weights:
    text.note('without --weights, the model starts from random parameters')
  workdir = args.workdir or os.path.join(
    'runs',
    '-'.join(
      os.path.basename(os.path.normpath(name)).split('.')[0]
      for name in (args.model or weights or 'model', args.data)
    ),
  )
  given = (args.model, weights, args.data)
  if args.dry_run:
    from vit_jax.preview import in_words, preview
    from vit_jax.recipe.finetuning import folder_config

    config = folder_config(*given, **_settings(args))
    facts = preview(config, workdir, show_batch=args.show_batch)
    print(json.dumps(facts, indent=2) if args.json else in_words(facts))
    return
  from vit_jax.files import as_path
  from vit_jax.finetuning import finetune

  with text.result_lines(args.json):
    finetune(*given, workdir, show_batch=args.show_batch, **_settings(args))
  if args.json:
    print((as_path(workdir) / 'summary.json').read_text(), end='')


def _settings(args: argparse.Namespace) -> dict[str, Any]:
  """The settings of `folder_config`."""
  return {
    'steps': args.steps,
    'epochs': args.epochs,
    'lr': args.lr,
    'batch_size': args.batch_size,
    'image_size': args.image_size,
    'head_only': args.head_only,
    'layer_decay': args.layer_decay,
    'holdout': args.holdout,
    'max_bad_fraction': args.max_bad_fraction,
    'flat': args.flat,
    'match_classes': args.match_classes,
    'keys': {'run.prefix': args.prefix, 'run.extend': args.more_epochs}
    | args.keys,
    'seed': args.seed,
    'module': args.module,
    'fields': options.fields(args.set),
  }
