"""Measures this package on timm's zoo: `python -m tests.zoo`.

For each architecture, timm makes a model with random weights and saves it, as
its hub files are: model.safetensors with a config.json beside it, and as a bare
file with timm's name. `load_classifier` gets the files alone, and both programs
classify the same photo. The table says whether the model was recognized, the
largest difference of the logits, and if there is none the reason.

  python -m tests.zoo                        # all architectures
  python -m tests.zoo 'vit_tiny*' --out /tmp/zoo.jsonl
  python -m tests.zoo --depth 2              # all models at reduced depth
  python -m tests.zoo --names                # names and shapes of tensors only
  python -m tests.zoo --out FILE --page docs/zoo.md   # the page of its rows

It needs the extra `zoo`: timm and torch.
"""

import argparse
import dataclasses
import fnmatch
import json
import pathlib
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from PIL import Image
from safetensors.torch import save_file
import timm
import torch

from tests.zoo.table import MODULES
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.loading import load_classifier
from vit_jax.models.registry import create_model, model_info
from vit_jax.weights import released_shapes

LIMIT = 1e-4  # of a difference of logits
LARGE = 100e6  # parameters; larger models are measured at a depth of 2
PAGE = """# timm's zoo

What `python -m tests.zoo` measured ([how](weights.md#timms-models)): timm saves
each architecture with random weights, vit_jax gets the file alone, and both
classify the same photo. The figures are the largest differences of a logit, for
a hub entry (model.safetensors with timm's config.json) and for a bare file with
timm's name. Models above {large:g} million parameters are shortened: to two
blocks, or to one block in each of four stages of a ResNet or VOLO, "4 x 1". All
others are measured at full size.

{summary}

| architecture | depth | recognized | hub entry | bare file | reason |
| --- | --- | --- | --- | --- | --- |
{lines}
"""


def photo() -> Image.Image:
  """A photo-like image that is the same on every machine."""
  y, x = np.mgrid[:300, :400] / 50
  waves = [np.sin(x * (1 + i) + y * i) + np.cos(y * (2 - i)) for i in range(3)]
  pixels = np.stack(waves, axis=-1) * 60 + 128
  noise = np.random.default_rng(0).normal(0, 8, pixels.shape)
  return Image.fromarray(np.uint8(np.clip(pixels + noise, 0, 255)))


def shorter(model: torch.nn.Module, depth: int) -> dict:
  """timm's arguments for a model of the same kind with fewer blocks."""
  kind = type(model).__name__
  if kind == 'ResNetV2':
    return {'layers': [1] * len(model.stages)}
  if kind == 'VOLO':
    groups = [m for m in model.network if isinstance(m, torch.nn.Sequential)]
    return {'layers': [1] * len(groups)}
  if kind == 'MlpMixer':
    return {'num_blocks': min(depth, len(model.blocks))}
  return {'depth': min(depth, len(model.blocks))}


def build(name: str, depth: int | None) -> tuple[torch.nn.Module, dict, bool]:
  """timm's model with random weights, what shortens it, and if it is large."""
  arguments = {}
  with torch.device('meta'):
    model = timm.create_model(name)
    large = sum(p.numel() for p in model.parameters()) > LARGE
    if depth or large:
      arguments = shorter(model, depth or 2)
      # Not all of timm's functions let an argument be changed.
      original = type(model).__init__
      changed = lambda *args, **kw: original(*args, **{**kw, **arguments})
      with mock.patch.object(type(model), '__init__', changed):
        model = timm.create_model(name)
  # Initial values of timm hide errors: biases are 0, LayerScale is about 0, and
  # norms and batch statistics are 0 and 1.
  model = model.to_empty(device='cpu').eval()
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for path, p in model.named_parameters():
      p.normal_(generator=generator)
      if p.ndim in (2, 4):
        p.mul_(p[0].numel() ** -0.5)
      else:
        p.mul_(0.1)
      if 'gamma' in path:
        p.add_(0.3)
      elif p.ndim == 1 and path.endswith('weight'):
        p.add_(1)
    for path, b in model.named_buffers():
      if path.endswith('running_var'):
        b.uniform_(0.5, 1.5, generator=generator)
      elif b.is_floating_point():
        b.normal_(0, 0.1, generator=generator)
      else:
        b.zero_()
  return model, arguments, large


def expected(model: torch.nn.Module, image: Image.Image) -> np.ndarray:
  """timm's logits."""
  transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(model)
  )
  with torch.no_grad():
    return model(transform(image)[None])[0].numpy()


def measure(name: str, depth: int | None, folder: pathlib.Path) -> dict:
  """The row of one architecture."""
  model, arguments, large = build(name, depth)
  row = {'name': name, 'depth': depth_of(arguments), 'large': large}
  image = photo()
  image.save(folder / 'photo.png')
  logits = expected(model, image)
  row['scale'] = float(np.abs(logits).max())
  entry = folder / 'entry'
  entry.mkdir(exist_ok=True)
  save_file(model.state_dict(), entry / 'model.safetensors')
  config = {
    'architecture': name,
    'num_classes': model.num_classes,
    'pretrained_cfg': dict(model.pretrained_cfg),
    'model_args': arguments,
  }
  del model
  (entry / 'config.json').write_text(json.dumps(config, default=str))
  bare = folder / f'{name}.safetensors'
  bare.hardlink_to(entry / 'model.safetensors')
  first, fields = None, scanned(name)
  try:
    for form, source in (('hub', entry), ('bare', bare)):
      row['form'] = form
      classifier = load_classifier(source, fields=fields)
      if first is None or not same(classifier, first):
        ours, _ = classifier.run([folder / 'photo.png'])
        row[form] = float(np.abs(ours[0] - logits).max())
      else:  # the same program with the same weights
        row[form] = row['hub']
      # A bare file does not say that its model is shorter than its name.
      first, fields = classifier, classifier.fields if arguments else fields
  except ValueError as e:
    row['reason'] = f'{row["form"]}: {str(e).splitlines()[0]}'
  del row['form']
  return row


def depth_of(arguments: dict) -> str | int:
  """What the table says about the depth of a model."""
  if 'layers' in arguments:
    return f'{len(arguments["layers"])} x 1'
  return next(iter(arguments.values()), 'full')


def same(a: Classifier, b: Classifier) -> bool:
  """Whether two classifiers compute the same function."""
  return (
    a.model == b.model
    and a.preprocessing == b.preprocessing
    and jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))
  )


def scanned(name: str) -> dict:
  """The fields that run the blocks as a scan, where the model has one.

  A scan computes the same, and compiles in a fraction of the time.
  """
  try:
    info = model_info(name)
  except ValueError:
    return {}
  fields = {field.name for field in dataclasses.fields(info.module)}
  return (
    {'scan': True}
    if 'scan' in fields and not info.fields.get('block') == 'diff'
    else {}
  )


def check_names(name: str) -> dict:
  """Whether the names and shapes of timm's model are those of ours, by name."""
  row = {'name': name, 'depth': 'names'}
  try:
    info = model_info(name)
  except ValueError as e:
    return {**row, 'reason': str(e).splitlines()[0]}
  arguments = {'depth': 1} if 'depth' in info.fields else {}
  is_vit = timm.models.is_model_in_modules(name, ['vision_transformer'])
  if not is_vit:
    arguments = {}
  with torch.device('meta'):
    model = timm.create_model(name, **arguments)
  theirs = {
    k: tuple(x.shape)
    for k, x in model.state_dict().items()
    if not k.endswith('num_batches_tracked')
  }
  ours = released_shapes(
    create_model(name, model.num_classes, **arguments),
    info.preprocessing.size,
    'timm',
  )
  if theirs == ours:
    return {**row, 'hub': 0.0, 'bare': 0.0}
  wrong = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
  key = wrong[0]
  return {
    **row,
    'reason': f'{len(wrong)} names differ: {key} is {theirs.get(key)} in '
    f'timm, {ours.get(key)} here',
  }


def text(row: dict) -> str:
  """The row as a line of the table."""
  reason = row.get('reason', '')
  figure = lambda form: f'{row[form]:.1e}' if form in row else '-'
  return (
    f'| {row["name"]} | {row["depth"]} | {"no" if reason else "yes"} | '
    f'{figure("hub")} | {figure("bare")} | {reason} |'
  )


def summary(rows: list[dict]) -> str:
  """What the rows show together."""
  worst = lambda row: max(row.get('hub', 9), row.get('bare', 9))
  good = sum(worst(row) <= LIMIT for row in rows)
  known = sum('hub' in row and 'bare' in row for row in rows)
  full = sum(row['depth'] == 'full' and worst(row) <= LIMIT for row in rows)
  return (
    f'{len(rows)} architectures: {known} recognized, {good} within {LIMIT:g} '
    f'({full} of them at full depth), {len(rows) - known} refused by name '
    f'(timm {timm.__version__}, torch {torch.__version__})'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('pattern', nargs='*', default=['*'])
  parser.add_argument('--depth', type=int, help='of all models')
  parser.add_argument(
    '--names',
    action='store_true',
    help='compare names and shapes of tensors only, without weights',
  )
  parser.add_argument(
    '--out',
    help='file of JSON lines to add the rows to; architectures that it has '
    'are not measured again',
  )
  parser.add_argument(
    '--page', help='write the table of the rows of --out as a page, and stop'
  )
  args = parser.parse_args()
  out = pathlib.Path(args.out) if args.out else None
  rows = []
  if out and out.exists():
    rows = [json.loads(line) for line in out.read_text().splitlines()]
  if args.page:
    pathlib.Path(args.page).write_text(page(rows))
    return
  every = [name for m in MODULES for name in timm.list_models(module=m)]
  # In the order of the patterns, so that the cheapest can come first.
  names = [n for p in args.pattern for n in every if fnmatch.fnmatchcase(n, p)]
  print('| architecture | depth | recognized | hub | bare | reason |')
  print('| --- | --- | --- | --- | --- | --- |')
  for name in dict.fromkeys(names):
    if any(row['name'] == name and deep_enough(row, args) for row in rows):
      continue
    start = time.time()
    if args.names:
      row = check_names(name)
    else:
      with tempfile.TemporaryDirectory() as folder:
        row = measure(name, args.depth, pathlib.Path(folder))
    jax.clear_caches()
    row['seconds'] = round(time.time() - start, 1)
    rows.append(row)
    print(text(row), flush=True)
    if out:
      with out.open('a') as file:
        file.write(json.dumps(row) + '\n')
  print(summary(deepest(rows)))


def deep_enough(row: dict, args: argparse.Namespace) -> bool:
  """Whether a row need not be measured again."""
  if args.names or row['depth'] == 'names':
    return args.names and row['depth'] == 'names'
  return row['depth'] == 'full' or bool(args.depth) or row.get('large', False)


def deepest(rows: list[dict]) -> list[dict]:
  """One row for each architecture, at full depth if there is one."""
  best = {}
  for row in rows:
    if best.get(row['name'], {}).get('depth') != 'full':
      best[row['name']] = row
  return [best[name] for name in sorted(best)]


def page(rows: list[dict]) -> str:
  """The page docs/zoo.md."""
  rows = deepest([row for row in rows if row['depth'] != 'names'])
  lines = '\n'.join(map(text, rows))
  return PAGE.format(summary=summary(rows), lines=lines, large=LARGE / 1e6)


if __name__ == '__main__':
  main()
