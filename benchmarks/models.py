"""Tables of models, batch sizes and dtypes, for inference and training."""

import argparse
from collections.abc import Sequence
import importlib.util
import sys

from benchmarks import machine, turns
from vit_jax import allocation

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
# (width, heads) of the models that jimm and equimo have as well.
_PEERS = {
  'vit_tiny_patch16_224': (192, 3),
  'vit_small_patch16_224': (384, 6),
  'vit_base_patch16_224': (768, 12),
}
_QUICK = ('vit_tiny_patch16_224',)
_SIZE = 224
PRODUCTS = 'matrix products, '  # how the titles of their tables begin
# Floating-point operations for each multiply-accumulate of the forward pass.
_FLOPS_PER_MAC = {'inference': 2, 'training': 6}
# (rows and columns, products in a run) of the matrix product that is measured.
_PRODUCTS = {'cpu': (2048, 1), 'gpu': (8192, 8)}


def candidates(
  what: str, model: str, batch: int, dtype: str, device: str = 'cpu'
) -> list[turns.Candidate]:
  """This package and its installed peers.

  Args:
    what: 'inference' or 'training'.
    model: a name of timm.
    batch: number of images.
    dtype: 'float32' or 'bfloat16'.
    device: one of turns.DEVICES.
  """
  settings = {
    'model': model,
    'batch': batch,
    'size': _SIZE,
    'dtype': dtype,
    'device': device,
  }

  def one(name: str, module: str, function: str, **more) -> turns.Candidate:
    prepare = f'benchmarks.{module}:{function}'
    env = turns.on_device(device)
    if name == 'vit_jax':  # as the commands of vit-jax start themselves
      env = {**env, **allocation.settings()}
    return turns.Candidate(name, prepare, {**settings, **more}, batch, env)

  rows = [one('vit_jax', 'models_jax', what)]
  if _has('torch', 'timm'):
    rows.append(one('timm', 'models_torch', what))
    rows.append(one('timm, compiled', 'models_torch', what, compile=True))
  if (
    what == 'inference'
    and model.startswith(('vit_', 'deit_'))
    and _has('torch', 'timm', 'transformers')
  ):
    function = 'transformers_inference'
    rows.append(one('transformers', 'models_torch', function))
  if model in _PEERS:
    width, heads = _PEERS[model]
    if _has('jimm', 'tokamax'):
      size = {'width': width, 'heads': heads}
      rows.append(one('jimm', 'models_peers', f'jimm_{what}', **size))
    if _has('equimo', 'equinox'):
      rows.append(one('equimo', 'models_peers', f'equimo_{what}'))
  return rows


def matrix_products(dtype: str, device: str) -> list[turns.Candidate]:
  """Large matrix products, whose rate is the limit of this machine.

  Args:
    dtype: 'float32' or 'bfloat16'.
    device: one of turns.DEVICES.
  """
  size, count = _PRODUCTS[device]
  settings = {'size': size, 'count': count, 'dtype': dtype, 'device': device}
  rows = [('jax', 'models_jax')]
  if _has('torch'):
    rows.append(('torch', 'models_torch'))
  return [
    turns.Candidate(
      f'{name}, {count} products of {size} x {size}',
      f'benchmarks.{module}:matrix_product',
      settings,
      amount=2e-12 * count * size**3,
      env=turns.on_device(device),
    )
    for name, module in rows
  ]


def share_of_peak(
  what: str, measured: Sequence[turns.Measured], rate: float, tflops: float
) -> float:
  """The MFU: the work of a model's own products as a share of a rate.

  Args:
    what: 'inference' or 'training'.
    measured: the candidates of one model, one of which knows its work.
    rate: images per second.
    tflops: TFLOP/s of a large product.
  """
  macs = max((m.facts.get('_macs', 0) for m in measured), default=0)
  return rate * macs * _FLOPS_PER_MAC[what] / 1e12 / tflops if tflops else 0.0


def utilization(
  what: str, measured: Sequence[turns.Measured], tflops: float
) -> str:
  """A line with the MFU of all candidates; '' if it is not known.

  Args:
    what: 'inference' or 'training'.
    measured: the candidates of one model.
    tflops: TFLOP/s of the large product.
  """
  shares = {
    m.candidate.name: share_of_peak(
      what, measured, turns.best_rate([m]), tflops
    )
    for m in measured
  }
  known = [f'{name} {share:.2f}' for name, share in shares.items() if share]
  return f'MFU at {tflops:.3g} TFLOP/s: ' + ', '.join(known) if known else ''


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
  parser.add_argument('--device', choices=turns.DEVICES, default='cpu')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument(
    '--quick', action='store_true', help='one small model, under 5 minutes'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  if args.quick:
    args.models, args.rounds, args.dtypes = _QUICK, 5, ['float32']
  for package in ('torch', 'timm', 'transformers', 'jimm', 'equimo'):
    if not _has(package):
      print(f'{package} is not installed: left out', file=sys.stderr)
  print(machine.describe())
  groups, rates = {}, {}
  for dtype in args.dtypes:
    title = f'{PRODUCTS}{dtype}'
    groups[title] = turns.measure(
      matrix_products(dtype, args.device), args.rounds
    )
    rates[dtype] = turns.best_rate(groups[title])
    print(f'\n{title}\n\n{turns.table(groups[title], "", "TFLOP")}', flush=True)
  for model in args.models:
    for dtype in args.dtypes:
      for batch in args.batches:
        title = f'{model}, {what}, batch {batch}, {dtype}'
        rows = candidates(what, model, batch, dtype, args.device)
        measured = turns.measure(rows, args.rounds)
        groups[title] = measured
        table = turns.table(measured, 'timm', 'img')
        share = utilization(what, measured, rates[dtype])
        print(f'\n{title}\n\n{table}\n\n{share}', flush=True)
        if args.json:  # after every table, because the whole takes an hour
          turns.write_json(args.json, groups)


if __name__ == '__main__':
  sys.exit('run benchmarks.inference or benchmarks.train_step')
