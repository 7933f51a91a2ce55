"""Tables of models, batch sizes and dtypes, for inference and training."""

import argparse
import importlib.util
import sys

from benchmarks import turns

# timm's names; BiT-R50x1 is `resnetv2_50x1_bit`.
MODELS = (
  'vit_tiny_patch16_224',
  'vit_small_patch16_224',
  'vit_base_patch16_224',
  'deit_small_patch16_224',
  'cait_xxs24_224',
  'volo_d1_224',
  'mixer_b16_224',
  'resnetv2_50x1_bit',
)
_QUICK = ('vit_tiny_patch16_224',)
_SIZE = 224


def candidates(
  what: str, model: str, batch: int, dtype: str
) -> list[turns.Candidate]:
  """This package and its installed peers.

  Args:
    what: 'inference' or 'training'.
    model: a name of timm.
    batch: number of images.
    dtype: 'float32' or 'bfloat16'.
  """
  settings = {'model': model, 'batch': batch, 'size': _SIZE, 'dtype': dtype}

  def one(name: str, module: str, function: str, **more) -> turns.Candidate:
    prepare = f'benchmarks.{module}:{function}'
    return turns.Candidate(name, prepare, {**settings, **more}, amount=batch)

  rows = [one('vit_jax', 'models_jax', what)]
  if _has('torch', 'timm'):
    rows.append(one('timm', 'models_torch', what))
    rows.append(one('timm, compiled', 'models_torch', what, compile=True))
  if what == 'inference' and model.startswith(('vit_', 'deit_')):
    if _has('torch', 'timm', 'transformers'):
      function = 'transformers_inference'
      rows.append(one('transformers', 'models_torch', function))
    if _has('jimm'):
      rows.append(one('jimm', 'models_jax', 'jimm_inference'))
  return rows


def _has(*packages: str) -> bool:
  return all(importlib.util.find_spec(p) is not None for p in packages)


def main(what: str, description: str | None) -> None:
  """Reads the command line, measures, prints the tables and writes JSON."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--models', nargs='+', default=MODELS, metavar='MODEL')
  parser.add_argument('--batches', nargs='+', type=int, default=[1, 16])
  parser.add_argument(
    '--dtypes', nargs='+', default=['float32', 'bfloat16'], metavar='DTYPE'
  )
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument(
    '--quick', action='store_true', help='one small model, under 5 minutes'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  if args.quick:
    args.models, args.rounds, args.dtypes = _QUICK, 5, ['float32']
  for package in ('torch', 'timm', 'transformers', 'jimm'):
    if not _has(package):
      print(f'{package} is not installed: left out', file=sys.stderr)
  print(turns.describe())
  groups = {}
  for model in args.models:
    for dtype in args.dtypes:
      for batch in args.batches:
        title = f'{model}, {what}, batch {batch}, {dtype}'
        rows = candidates(what, model, batch, dtype)
        measured = turns.measure(rows, args.rounds)
        groups[title] = measured
        print(
          f'\n{title}\n\n{turns.table(measured, "timm", "img")}', flush=True
        )
        if args.json:  # after every table, because the whole takes an hour
          turns.write_json(args.json, groups)


if __name__ == '__main__':
  sys.exit('run benchmarks.inference or benchmarks.train_step')
