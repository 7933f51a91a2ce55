"""The sound files that `tests.faults.mutate` damages, and their readers.

A reader returns a text for what it read, by which two readings are compared. It
imports what it needs when it is called, in a process of its own.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import io
import json
import pathlib
import pickle
import tarfile
from typing import Any

import numpy as np
from PIL import Image

SIZE = 24, 20  # width and height of the images
_PIXELS = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
IMAGES = {
  'jpeg': dict(format='JPEG', quality=90),
  'progressive jpeg': dict(format='JPEG', progressive=True, subsampling=2),
  'png': dict(format='PNG'),
  'webp': dict(format='WEBP'),
  'gif': dict(format='GIF'),
  'bmp': dict(format='BMP'),
  'tiff': dict(format='TIFF', compression='tiff_lzw'),
  'ppm': dict(format='PPM'),
  'jpeg2000': dict(format='JPEG2000'),
  'avif': dict(format='AVIF'),
}


@dataclasses.dataclass(frozen=True)
class Reader:
  """What is read, and what counts.

  Attributes:
    name: of the row in the table.
    path: the file or directory that is damaged and read, below the seeds.
    read: reads a path and returns a text for what it read.
    checked: whether the contents have a checksum, so that reading other
      contents is a fault.
    weight: how many of the inputs it gets, against the others.
  """

  name: str
  path: str
  read: Callable[[pathlib.Path], str]
  checked: bool = False
  weight: int = 4


def digest(*values: Any) -> str:
  """A short text that differs if the values differ."""
  state = hashlib.sha256()
  for value in values:
    if isinstance(value, np.ndarray):
      state.update(f'{value.dtype} {value.shape}'.encode())
      value = np.ascontiguousarray(value).tobytes()
    state.update(value if isinstance(value, bytes) else repr(value).encode())
    state.update(b'|')
  return state.hexdigest()[:16]


def _read_image(path: pathlib.Path) -> str:
  from vit_jax.data.decode import decode
  from vit_jax.files import read_regular

  return digest(decode(read_regular(path, 2**30)))


def _read_tar(path: pathlib.Path) -> str:
  from vit_jax.data.listing import list_images

  files = sorted(list_images(path).files, key=lambda file: file.name)
  return digest(*[(file.name, file.read()) for file in files])


def _read_packed(path: pathlib.Path) -> str:
  from vit_jax.data.decode import BadImage
  from vit_jax.data.sources.opening import open_source

  source = open_source('packed', split='train', data_dir=str(path))
  examples = []
  bad = None
  for i in range(len(source)):
    try:
      example = source[i]
      examples.append((example['image'], example['label'], example['id']))
    except BadImage as e:
      bad = e
      examples.append(None)
  if bad is not None:
    _only_lost(examples, path)
    raise bad
  return digest(source.class_names, source.num_classes, *examples)


def _only_lost(examples: list[Any], path: pathlib.Path) -> None:
  """AssertionError if an example that was read is not one of the seeds."""
  sound = json.loads((path.parent / 'examples.json').read_text())
  for example in examples:
    assert example is None or digest(*example) in sound, 'another example'


def _read_weights(path: pathlib.Path) -> str:
  from vit_jax.weights import read

  arrays, metadata, _ = read(path)
  return digest(metadata, *sorted(arrays.items(), key=lambda x: x[0]))


def _read_step(path: pathlib.Path) -> str:
  from vit_jax.weights.steps import load_params

  arrays, metadata = load_params(path)
  return digest(metadata, *sorted(arrays.items()))


def _read_config(path: pathlib.Path) -> str:
  from vit_jax.recipe.stored import check_workdir

  recipe = json.loads((path.parent / 'recipe.json').read_text())
  check_workdir(path.parent, recipe)
  return 'continues'


def _read_metrics(path: pathlib.Path) -> str:
  from vit_jax.training.writers import Writer

  Writer(path.parent, resumed_step=4, tensorboard=False)
  return digest((path.parent / 'metrics.jsonl').read_bytes())


def _read_labels(path: pathlib.Path) -> str:
  from vit_jax.data.labels import read_labels

  return digest(read_labels(path).entries)


def _read_exported(path: pathlib.Path) -> str:
  from vit_jax.inference.export import load_exported

  classifier = load_exported(path / 'model.bin')
  return digest(
    classifier.name,
    classifier.classes,
    classifier.preprocessing,
    classifier.program.mlir_module_serialized,
  )


READERS = (
  *(Reader(kind, f'images/{kind}.img', _read_image) for kind in IMAGES),
  Reader('tar', 'x.tar', _read_tar, weight=8),
  Reader('packed shards', 'packed/out', _read_packed, checked=True, weight=8),
  Reader('.npz', 'weights.npz', _read_weights, checked=True, weight=8),
  Reader('.safetensors', 'weights.safetensors', _read_weights, True, weight=8),
  Reader('.pth, zip', 'zip.pth', _read_weights, checked=True, weight=8),
  Reader('.pth, old', 'legacy.pth', _read_weights, weight=8),
  Reader('.pth, hostile', 'hostile.pth', _read_weights, weight=8),
  Reader('.msgpack', 'x.msgpack', _read_weights, weight=2),
  Reader('step', 'run/checkpoints/4', _read_step, checked=True, weight=4),
  Reader('config.json', 'run/config.json', _read_config, weight=4),
  Reader('metrics.jsonl', 'run/metrics.jsonl', _read_metrics, weight=4),
  Reader('labels .csv', 'labels.csv', _read_labels),
  Reader('labels .json', 'labels.json', _read_labels),
  Reader('exported', 'exported', _read_exported, checked=True, weight=4),
)


def make_seeds(folder: pathlib.Path) -> None:
  """Writes a sound file or directory for each reader."""
  image = Image.fromarray(_PIXELS).resize(SIZE)
  (folder / 'images').mkdir()
  for kind, options in IMAGES.items():
    image.save(folder / 'images' / f'{kind}.img', **options)
  data = io.BytesIO()
  image.save(data, 'PNG')
  with tarfile.open(folder / 'x.tar', 'w') as tar:
    for name in ('a/1.png', 'a/2.png', 'b/1.png', 'b/a long name' * 9 + '.png'):
      info = tarfile.TarInfo(name)
      info.size = len(data.getvalue())
      tar.addfile(info, io.BytesIO(data.getvalue()))
  (folder / 'labels.csv').write_text(
    'file,label\n' + ''.join(f'{i}.jpg,class {i % 3}\n' for i in range(20))
  )
  (folder / 'labels.json').write_text(
    json.dumps({f'{i}.jpg': [i % 3, 3] for i in range(20)})
  )
  (folder / 'x.msgpack').write_bytes(
    b'\x82\xa6params\x81\xa6kernel\xc7\x10\x01' + bytes(16) + b'\xa4step\x04'
  )
  _make_packed(folder / 'packed')
  _make_weights(folder)
  _make_run(folder)


def _make_packed(folder: pathlib.Path) -> None:
  from tests.data.helpers import write_images
  from vit_jax.data import pack
  from vit_jax.data.sources.opening import open_source

  write_images(folder / 'in', {'a': 4, 'b': 4})
  pack.pack(folder / 'in', folder / 'out', shards=2)
  source = open_source('packed', split='train', data_dir=str(folder / 'out'))
  sound = [digest(x['image'], x['label'], x['id']) for x in source]
  (folder / 'examples.json').write_text(json.dumps(sound))


class _Runs:
  """Unpickling an object of this class would run a program."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path('code_was_run'),)


def _make_weights(folder: pathlib.Path) -> None:
  fixtures = pathlib.Path(__file__).parents[1] / 'fixtures' / 'weights'
  for name in ('zip.pth', 'legacy.pth'):
    (folder / name).write_bytes((fixtures / name).read_bytes())
  hostile = pickle.dumps({'model': {'w': _Runs()}}, protocol=2)
  (folder / 'hostile.pth').write_bytes(
    (fixtures / 'legacy.pth').read_bytes()[:300] + hostile
  )


def _make_run(folder: pathlib.Path) -> None:
  """A run of a tiny model, its weights in files, and the exported program."""
  from tests.helpers import tiny_config
  from vit_jax.inference.convert import convert
  from vit_jax.inference.export import export
  from vit_jax.recipe.keys import to_json
  from vit_jax.train import train_and_evaluate

  config = tiny_config(
    run=dict(steps=4), model=dict(depth=1), log=dict(checkpoint_steps=2)
  )
  train_and_evaluate(config, str(folder / 'run'))
  (folder / 'run' / 'recipe.json').write_text(json.dumps(to_json(config)))
  for name in ('weights.npz', 'weights.safetensors'):
    convert(str(folder / 'run'), folder / name)
  export(str(folder / 'run'), folder / 'exported' / 'model.bin')
