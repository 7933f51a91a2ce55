"""The commands of README.md and docs/, and how each is run in small.

The reader of a page has the files that the page speaks of (`prepare`), and
types its commands one after the other. `small` is a command with a small model,
few steps and a directory in place of a bucket. Commands that cannot be run are
in NOT_RUN with the reason; `tests/test_pages.py` runs all others.
"""

from collections.abc import Iterable
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import sys
import tarfile

import numpy as np
from PIL import Image

from tests.helpers import ROOT
from tests.random_variables import random_variables

# docs/commands.md has the examples of the help, which tests/cli runs.
PAGES = (
  'README.md',
  *sorted(
    str(path.relative_to(ROOT))
    for path in pathlib.Path(ROOT, 'docs').rglob('*.md')
    if path.name not in ('commands.md', 'transcripts.md')
  ),
)
MAIN = ['python', '-m', 'vit_jax.main']
ABLATE = ['python', '-m', 'vit_jax.ablate']

# {regular expression at the start of a command: why it is not run}.
NOT_RUN = {
  r'(python3 -m venv|pip install|\.venv/bin/pip install)': (
    'installs packages from a registry; CI runs the two of README.md'
  ),
  r'gcloud ': "needs an account of Google's cloud",
  r'(scp|ssh) ': 'needs a second machine',
  r'STORAGE_EMULATOR_HOST=': 'needs the server that tests/gs starts',
  r'vit-jax push': 'needs the hub; tests/report/test_card.py runs it',
  r'vit-jax figures .*--metric': (
    'needs what an ablation measured; tests/report/test_scaling.py has it'
  ),
  r'vit-jax report .*--watch': (
    'serves until it is stopped; tests/report/test_server.py runs it'
  ),
  r'vit-jax pack .*--runner': (
    'needs Beam and its runners; tests/data/test_pack_beam.py runs the first'
  ),
  r'vit-jax evaluate .*--source tfds:': 'needs a data set prepared by TFDS',
  r'vit-jax fewshot (s14|none)': 'needs a pretrained ViT-S/14 and EuroSAT',
  r'vit-jax vtab': (
    'needs data sets prepared by TFDS; tests/training/test_vtab.py runs it'
  ),
  r'python -m tests\.faults': 'runs an hour; tests/faults runs it for less',
  r'python -m benchmarks\.\w+ .*--device gpu': 'needs a GPU',
  r'python -m benchmarks\.area_attention': 'is for a GPU on that page',
  r'python -m pytest': 'would run the tests within a test',
  **(
    {}
    if importlib.util.find_spec('libtpu')
    else {r'vit-jax aot': 'needs the extra tpu; tests/aot has what does not'}
  ),
}


def blocks(text: str, *languages: str) -> list[str]:
  """The contents of the fenced blocks in one of these languages."""
  fence = re.compile(r'(?m)^ *```(\S*)[^\n]*\n(.*?)^ *```', re.DOTALL)
  return [m[2] for m in fence.finditer(text) if m[1] in languages]


def commands(text: str) -> list[str]:
  """The shell lines, continued ones joined, without prompts and comments."""
  lines = []
  for block in blocks(text, '', 'sh', 'bash', 'shell', 'console'):
    for line in re.sub(r'\s*\\\n\s*', ' ', block).splitlines():
      line = re.sub(r'\s+#\s.*$', '', line.strip().removeprefix('$ '))
      if line and not line.startswith('#'):
        lines.append(line)
  return lines


def commands_of(page: str) -> list[str]:
  return commands(pathlib.Path(ROOT, page).read_text())


def words(line: str) -> list[str]:
  """The words of a command, without NAME=value before it."""
  result = shlex.split(line)
  while result and re.fullmatch(r'[A-Z_]+=.*', result[0]):
    result = result[1:]
  return result


def why_not_run(line: str) -> str:
  """The reason for which a command is not run; '' if it is."""
  return next((why for x, why in NOT_RUN.items() if re.match(x, line)), '')


def recipe_runs(lines: Iterable[str]) -> list[list[str]]:
  """The flags of every run of a recipe, also as a flag of other programs."""
  runs = {
    tuple(w for w in words(line) if w.startswith('--'))
    for line in lines
    if '--config=configs/' in line
  }
  return [list(flags) for flags in sorted(runs)]


def split_flags(flags) -> tuple[str, str, dict[str, str]]:
  """(file, argument, {'optim.lr': '3e-4'}) of --config=FILE:ARG and others."""
  values = dict(f.removeprefix('--').split('=', 1) for f in flags if '=' in f)
  file, _, argument = values.pop('config').partition(':')
  return (
    file,
    argument,
    {
      k.removeprefix('config.'): v
      for k, v in values.items()
      if k.startswith('config.')
    },
  )


def smoke_recipe(file: str, argument: str) -> str:
  """A recipe with the argument that shrinks it."""
  switches = [a for a in argument.split(',') if a and a != 'smoke']
  # Words in capitals stand for values of the reader.
  if any(re.search(r'\b[A-Z]{2,}\b', a) for a in switches):
    switches = []
  return f'{file}:{",".join([*switches, "smoke"])}'


def smoke_keys(keys: dict[str, str]) -> dict[str, str]:
  """The keys of a run that its smoke variant keeps.

  Left out are those of the reader's data, and those of the size of the model
  and of the machine, which the smoke variant sets.
  """
  dropped = (
    *('data.', 'model.', 'mesh.', 'eval.fewshot.'),
    *('run.pretrained', 'run.resume', 'run.epochs', 'loss.teacher'),
  )
  return {k: v for k, v in keys.items() if not k.startswith(dropped)}


# The settings of a recipe of the reader's own, which has no smoke variant.
_OWN = {
  'run.steps': 4,
  'schedule.warmup_steps': 1,
  'data.batch_size': 8,
  'data.image_size': 16,
  'model.width': 16,
  'log.checkpoint_steps': 2,
}
# The small model in place of those of the pages, which has one layer.
_SMALL = {
  'vit_b16': 'vit_mu16',
  'vit_s14_dinov2': 'vit_mu16',
  's14.safetensors': 'ViT-B_16.npz',
  '--layer=-4:-1': '--layer=-1:-1',
}
_FINETUNE = {'--steps': 2, '--batch-size': 8, '--image-size': 32}


def _small_training(argv: list[str]) -> list[str]:
  """`vit-jax train` of the smoke variant, from any spelling of a run."""
  program = argv[:3]
  command = 'ablate' if program == ABLATE or 'ablate' in argv[:2] else 'train'
  rest = argv[3:] if program in (MAIN, ABLATE) else argv[2:]
  recipe, workdir, keys, others = '', '', {}, []
  while rest:
    word = rest.pop(0)
    name, equals, value = word.partition('=')
    if name in ('--config', '--workdir', '--seeds', '--jobs', '--variants'):
      value = value if equals else rest.pop(0)
      if name == '--config':
        recipe = value
      elif name == '--workdir':
        workdir = value
      elif name == '--variants':
        others += [name, value.split(',')[0]]
    elif equals and not recipe.startswith(word):
      keys[name.removeprefix('--config.')] = value
    elif not word.startswith('-'):
      recipe = word
  file, _, argument = recipe.partition(':')
  if file.startswith('configs/'):
    recipe, keys = smoke_recipe(file, argument), smoke_keys(keys)
  else:
    recipe = recipe.replace(':DIR', ':flowers')
    keys = {**keys, **_OWN}
  if command == 'ablate':
    if '--variants' not in others:
      from vit_jax.ablation.plan import variants

      others += ['--variants', next(iter(variants(recipe)))]
    others += ['--seeds', '1']
  # The tests of vit_jax/training/writers.py write events.
  keys.setdefault('log.tensorboard', 'False')
  settings = [f'{key}={value}' for key, value in keys.items()]
  return ['vit-jax', command, recipe, *settings, *others, '--workdir', workdir]


def small(line: str) -> str:
  """The command that is run in place of a command of a page."""
  if line.startswith('export '):
    return line
  argv = words(line)
  if argv[0].startswith('launch/'):
    # They print the commands of gcloud, kubectl or ssh, which
    # tests/test_launch.py runs against programs of these names.
    given = line[: line.index('launch/')].replace('DRY_RUN=1 ', '')
    return f'DRY_RUN=1 {given}{shlex.join(argv)}'
  argv = [re.sub(r'gs://(BUCKET|bucket)\b', 'bucket', word) for word in argv]
  if argv[0] == 'python' and argv[1].endswith('.py'):
    # As on a machine that has nothing of this project.
    code = (
      "import runpy, sys; sys.modules['vit_jax'] = sys.modules['flax'] = None; "
      f'sys.argv = {argv[1:]!r}; runpy.run_path({argv[1]!r})'
    )
    return shlex.join([sys.executable, '-c', code])
  if argv[0] != 'vit-jax' and argv[:3] not in (MAIN, ABLATE):
    return line
  if argv[:2] == ['vit-jax', 'train'] and '--dry-run' in argv:
    file, _, argument = argv[2].partition(':')
    return shlex.join([*argv[:2], smoke_recipe(file, argument), *argv[3:]])
  if argv[:3] in (MAIN, ABLATE) or argv[:2] in (
    ['vit-jax', 'train'],
    ['vit-jax', 'ablate'],
  ):
    return shlex.join(_small_training(argv))
  for long, short in _SMALL.items():
    argv = [
      x if x.startswith('configs/') else x.replace(long, short) for x in argv
    ]
  if argv[:2] == ['vit-jax', 'finetune']:
    for name in ('--epochs', *_FINETUNE):
      if name in argv:
        del argv[argv.index(name) : argv.index(name) + 2]
    argv += [str(x) for option in _FINETUNE.items() for x in option]
  elif argv[1] in ('attention', 'evaluate') and argv[2].endswith('.npz'):
    if '--image-size' in argv:
      del argv[argv.index('--image-size') : argv.index('--image-size') + 2]
    argv += ['--image-size', '64']
  elif argv[:2] == ['vit-jax', 'aot']:
    file, _, argument = argv[2].partition(':')
    argv[2] = smoke_recipe(file, argument)
    # Enough images for a batch on the devices of every slice of the pages.
    argv.insert(3, 'data.num_examples=4096')
    argv += ['--effort=fast', '--batch-size=1024']
  elif argv[:2] == ['vit-jax', 'models'] and '--throughput' in argv:
    argv.remove('--throughput')
  # Several processes share a job; one alone does not wait for the others.
  argv = [re.sub('--num-processes=.*', '--num-processes=1', x) for x in argv]
  argv = [re.sub('--process-id=.*', '--process-id=0', x) for x in argv]
  return ' '.join(w if '*' in w else shlex.quote(w) for w in argv)


# The reader's files ---------------------------------------------------------


def _photo(rng, color: int) -> Image.Image:
  pixels = rng.integers(0, 60, (40, 50, 3), np.uint8)
  pixels[..., color] += 180
  return Image.fromarray(pixels)


def _tar(path: pathlib.Path, folder: pathlib.Path, mode: str = 'w') -> None:
  with tarfile.open(path, mode) as tar:
    for file in sorted(folder.rglob('*')):
      tar.add(file, file.relative_to(folder), recursive=False)


def prepare(directory: pathlib.Path) -> None:
  """Makes the files of the reader: weights, photos, labels, a finished run."""
  import vit_jax
  from vit_jax.cli import parser

  model = vit_jax.create_model('vit_mu16')
  image = np.zeros((1, 224, 224, 3), np.float32)
  weights = directory / 'ViT-B_16.npz'
  vit_jax.save_weights(random_variables(model, image), model, weights)
  names = [f'name {i}' for i in range(1000)]
  (directory / 'names.txt').write_text('\n'.join(names))
  rng = np.random.default_rng(0)
  _photo(rng, 0).save(directory / 'photo.jpg')
  for split, count in (('train', 8), ('test', 4)):
    for color, name in enumerate(('rose', 'tulip')):
      folder = directory / 'flowers' / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        _photo(rng, color).save(folder / f'{i}.jpg')
  shutil.copytree(directory / 'flowers/train', directory / 'photos')
  _imagenet(directory, rng)
  _packing(directory)
  run = directory / 'runs/a'
  argv = f'vit-jax finetune --model vit_b16 --data {directory}/flowers '
  words = shlex.split(small(f'{argv} --workdir {run} --weights {weights}'))
  assert parser.main([*words[1:], '--quiet']) == 0
  for name in ('b', 'cifar10', 'scaling/a', 'scaling/b'):
    shutil.copytree(run, directory / 'runs' / name)
  shutil.copytree(run, directory / 'bucket/b16')


def _imagenet(directory: pathlib.Path, rng) -> None:
  """Validation images in every form in which they are distributed."""
  flat = directory / 'imagenet/flat'
  flat.mkdir(parents=True)
  numbers = [0, 1, 1, 7, 500, 500, 998, 998]
  for i, number in enumerate(numbers, start=1):
    name = f'ILSVRC2012_val_{i:08}.JPEG'
    folder = directory / 'imagenetv2-matched-frequency-format-val' / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    for target in (flat, folder):
      _photo(rng, number % 3).save(target / name)
  lines = ''.join(f'{number}\n' for number in numbers)
  (directory / 'val_labels.txt').write_text(lines)
  real = [[number] for number in numbers[1:]]
  (directory / 'real.json').write_text(json.dumps([[], *real]))
  for i in range(1000):  # folders called n00000000, ..., as synsets are
    folder = directory / 'imagenet/val' / f'n{i:08}'
    folder.mkdir(parents=True)
    Image.new('RGB', (16, 16), (i % 256, i // 4, 0)).save(folder / '0.JPEG')
  _tar(directory / 'ILSVRC2012_img_val.tar', flat)
  _tar(directory / 'imagenet_val.tar.gz', directory / 'imagenet/val', 'w:gz')


def _packing(directory: pathlib.Path) -> None:
  """Tars of classes, and a folder of images with a file of labels."""
  (directory / 'imagenet21k').mkdir()
  for name in ('rose', 'tulip'):
    _tar(directory / f'imagenet21k/{name}.tar', directory / 'photos' / name)
  _tar(directory / 'ILSVRC2012_img_train.tar', directory / 'imagenet21k')
  (directory / 'images').mkdir()
  rows = []
  for name in ('rose', 'tulip'):
    for file in sorted((directory / 'photos' / name).iterdir()):
      shutil.copy(file, directory / 'images' / f'{name}_{file.name}')
      rows.append(f'{name}_{file.name},{name}\n')
  (directory / 'labels.csv').write_text(''.join(rows))
