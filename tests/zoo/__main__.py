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

It needs the extra `zoo`: timm and torch.
"""

import argparse
import fnmatch
import json
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image
from safetensors.torch import save_file
import timm
import torch

from tests.zoo.table import MODULES
from vit_jax.inference.loading import load_classifier
from vit_jax.models.registry import create_model, model_info
from vit_jax.weights import released_shapes

LIMIT = 1e-4  # of a difference of logits
LARGE = 100e6  # parameters; larger models are measured at a depth of 2


def photo() -> Image.Image:
  """A photo-like image that is the same on every machine."""
  y, x = np.mgrid[:300, :400] / 50
  waves = [np.sin(x * (1 + i) + y * i) + np.cos(y * (2 - i)) for i in range(3)]
  pixels = np.stack(waves, axis=-1) * 60 + 128
  noise = np.random.default_rng(0).normal(0, 8, pixels.shape)
  return Image.fromarray(np.uint8(np.clip(pixels + noise, 0, 255)))


def build(name: str, depth: int | None) -> tuple[torch.nn.Module, dict]:
  """timm's model with random weights, and the arguments that shorten it."""
  torch.manual_seed(0)
  arguments = {}
  with torch.device('meta'):
    full = timm.create_model(name)
  large = sum(p.numel() for p in full.parameters()) > LARGE
  is_vit = isinstance(full, timm.models.vision_transformer.VisionTransformer)
  if is_vit and (large or depth):
    arguments['depth'] = min(depth or 2, len(full.blocks))
  model = timm.create_model(name, **arguments).eval()
  # Initial values hide errors: biases are 0, and LayerScale is about 0.
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for path, p in model.named_parameters():
      noise = torch.empty_like(p).normal_(generator=generator)
      if path.endswith('gamma') or 'gamma_' in path:
        p.fill_(0.3)
      p.add_(noise * (0.1 if p.ndim < 2 else 0.02))
    for path, b in model.named_buffers():
      if path.endswith('running_var'):
        b.uniform_(0.5, 1.5, generator=generator)
  return model, arguments


def expected(model: torch.nn.Module, image: Image.Image) -> np.ndarray:
  """timm's logits."""
  transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(model)
  )
  with torch.no_grad():
    return model(transform(image)[None])[0].numpy()


def measure(name: str, depth: int | None, folder: pathlib.Path) -> dict:
  """The row of one architecture."""
  model, arguments = build(name, depth)
  row = {'name': name, 'depth': arguments.get('depth', 'full')}
  image = photo()
  image.save(folder / 'photo.png')
  logits = expected(model, image)
  row['scale'] = float(np.abs(logits).max())
  state = {k: x.contiguous() for k, x in model.state_dict().items()}
  entry = folder / 'entry'
  entry.mkdir(exist_ok=True)
  save_file(state, entry / 'model.safetensors')
  cfg = dict(model.pretrained_cfg)
  config = {
    'architecture': name,
    'num_classes': model.num_classes,
    'pretrained_cfg': cfg,
    'model_args': arguments,
  }
  (entry / 'config.json').write_text(json.dumps(config, default=str))
  bare = folder / f'{name}.safetensors'
  bare.hardlink_to(entry / 'model.safetensors')
  for form, source, fields in (
    ('hub', entry / 'model.safetensors', {}),
    ('bare', bare, arguments),
  ):
    try:
      classifier = load_classifier(source, fields=fields)
      ours, _ = classifier.run([folder / 'photo.png'])
      row[form] = float(np.abs(ours[0] - logits).max())
    except ValueError as e:
      row[f'{form}_error'] = str(e).splitlines()[0]
      if form == 'hub':
        row['bare_error'] = row['hub_error']
        break
  bare.unlink()
  return row


def check_names(name: str) -> dict:
  """Whether the names and shapes of timm's model are those of ours, by name."""
  row = {'name': name, 'depth': 'names'}
  try:
    info = model_info(name)
  except ValueError as e:
    return {**row, 'hub_error': str(e).splitlines()[0]}
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
    'hub_error': f'{len(wrong)} names differ: {key} is {theirs.get(key)} in '
    f'timm, {ours.get(key)} here',
  }


def text(row: dict) -> str:
  """The row as a line of the table."""
  reason = row.get('hub_error') or row.get('bare_error') or ''
  known = 'no' if reason else 'yes'
  figure = lambda form: f'{row[form]:.1e}' if form in row else '-'
  return (
    f'| {row["name"]} | {row["depth"]} | {known} | {figure("hub")} | '
    f'{figure("bare")} | {reason} |'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('pattern', nargs='*', default=['*'])
  parser.add_argument('--depth', type=int, help='of all transformers')
  parser.add_argument(
    '--names',
    action='store_true',
    help='compare names and shapes of tensors only, without weights',
  )
  parser.add_argument('--out', help='file of JSON lines to add the rows to')
  args = parser.parse_args()
  names = [
    name
    for module in MODULES
    for name in timm.list_models(module=module)
    if any(fnmatch.fnmatchcase(name, p) for p in args.pattern)
  ]
  rows = []
  print('| architecture | depth | recognized | hub | bare | reason |')
  print('| --- | --- | --- | --- | --- | --- |')
  for name in names:
    start = time.time()
    if args.names:
      row = check_names(name)
    else:
      with tempfile.TemporaryDirectory() as folder:
        row = measure(name, args.depth, pathlib.Path(folder))
    row['seconds'] = round(time.time() - start, 1)
    rows.append(row)
    print(text(row), flush=True)
    if args.out:
      with open(args.out, 'a') as file:
        file.write(json.dumps(row) + '\n')
  worst = lambda row: max(row.get('hub', 9), row.get('bare', 9))
  good = sum(worst(row) <= LIMIT for row in rows)
  known = sum('hub' in row and 'bare' in row for row in rows)
  print(
    f'{len(rows)} architectures: {known} recognized, {good} within {LIMIT:g}, '
    f'{len(rows) - known} refused by name (timm {timm.__version__}, torch '
    f'{torch.__version__})'
  )


if __name__ == '__main__':
  main()
