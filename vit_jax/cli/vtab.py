"""Fine-tunes weights on the 19 tasks of VTAB-1k, and writes their table.

  vit-jax vtab ViT-B_16.npz --model vit_b16 --data TFDS_DIR -o runs/vtab
  vit-jax vtab ViT-B_16.npz --model vit_b16 --light --tasks eurosat dtd \\
      --data TFDS_DIR eurosat=photos/eurosat -o runs/vtab

A task has 1,000 training images. Every task is trained with the same settings,
those of the ViT paper, or with --light those of the benchmark's own script, and
tested on its whole test split. The table has the accuracies by group (natural,
specialized, structured) beside those of the paper. The data sets are those of
TFDS, prepared as array_record; TASK=DIR gives a folder of images or a packed
data set in place of one. The runs are in DIR/TASK. When the same command is
started again, finished tasks are skipped and a stopped one continues. Any other
key of a recipe is set by --config.KEY=VALUE.
"""

import argparse
import json
import os

from vit_jax import text
from vit_jax.cli import options

HELP = 'fine-tune on the 19 tasks of VTAB-1k, with a table of their groups'
OPTIONS = {
  'model.name': '--model',
  'model.module': '--module',
  'model.': '--set ',
  'run.pretrained': 'WEIGHTS',
  'run.prefix': '--prefix',
  'run.steps': '--steps',
  'run.seed': '--seed',
  'data.dir': '--data',
  'data.batch_size': '--batch-size',
  'data.image_size': '--image-size',
  'optim.lr': '--lr',
  'tasks=': '--tasks ',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights',
    help='workdir, .npz, .pth, .safetensors, hub name, or none for random '
    'parameters',
  )
  parser.add_argument(
    '--data',
    nargs='+',
    action='extend',
    required=True,
    metavar='DIR',
    help='data_dir of TFDS, or TASK=DIR for a folder or packed data set of one '
    'task',
  )
  parser.add_argument(
    '-o',
    '--output',
    required=True,
    metavar='DIR',
    help='directory for the runs and the table',
  )
  parser.add_argument(
    '--tasks',
    nargs='+',
    metavar='TASK',
    help='only these, such as eurosat; default: all 19',
  )
  parser.add_argument(
    '--light',
    action='store_true',
    help="the benchmark's setting: 1,000 steps of 64 images of 224 pixels",
  )
  parser.add_argument(
    '--steps',
    type=options.positive,
    metavar='N',
    help='length of training; default: 2,500 steps, with --light 1,000',
  )
  parser.add_argument(
    '--lr',
    type=options.above_zero,
    metavar='RATE',
    help='peak learning rate; default: 0.01 x batch size / 512, with --light / '
    '64',
  )
  parser.add_argument(
    '--batch-size',
    type=options.positive,
    metavar='N',
    help='batch size of all devices together; default 512, with --light 64',
  )
  parser.add_argument(
    '--seed',
    type=int,
    default=0,
    metavar='N',
    help='seed of the order of images and of the initial head (0)',
  )
  options.add_model_arguments(parser)
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.sources.vtab import TASKS
  from vit_jax.evaluation.vtab import table
  from vit_jax.finetuning import vtab

  with text.result_lines(args.json):
    results = vtab(
      args.model,
      '' if args.weights.lower() == 'none' else args.weights,
      _directories(args.data),
      args.output,
      tasks=args.tasks or tuple(TASKS),
      say=text.note,
      light=args.light,
      steps=args.steps,
      lr=args.lr,
      batch_size=args.batch_size,
      image_size=args.image_size,
      seed=args.seed,
      module=args.module,
      fields=options.fields(args.set),
      keys={'run.prefix': args.prefix or ''} | args.keys,
    )
  if args.json:
    print(json.dumps(results, indent=2))
    return
  print(f'\n{table(results)}')
  print(f'wrote {os.path.join(args.output, "vtab.md")} and vtab.json')


def _directories(words: list[str]) -> dict[str, str]:
  """{task: directory}, with the directory of the other tasks under ''."""
  from vit_jax.data.sources.vtab import find_task

  result = {}
  for word in words:
    task, equals, directory = word.partition('=')
    if not equals or os.sep in task:
      task, directory = '', word
    else:
      find_task(task)
    if task in result:
      raise ValueError(
        f'--data gives {result[task]} and {directory} for '
        f'{task or "all other tasks"}: give one of them'
      )
    result[task] = directory
  return result
