"""Measures training images per second and per CPU second, beside two peers.

  python -m benchmarks.input_pipeline --quick
  python -m benchmarks.input_pipeline

It writes JPEGs of about 110 KB at 401x468, the average of ImageNet, from
the two photos that scikit-learn has. Every candidate reads, decodes, takes a
random crop of 8 to 100 % at 224x224, flips and makes uint8 batches, as one of
two definitions has it:

  google   decoding by the fast cosine transform (TensorFlow's default), the
           crops of TensorFlow, bilinear without antialias. tf.data has one
           operation for decoding and cropping, which big_vision uses. It does
           not decode what is below the crop, and neither does vit_jax in a
           packed data set
  timm     exact decoding, torchvision's crops, Pillow's bicubic; a DataLoader
           of PyTorch with the transforms of torchvision, as timm uses it

Rows with "exact DCT" decode by the exact transform instead, on both sides.
"restart markers" are those of `jpegtran -restart 1`: the same pixels, of which
vit_jax then decodes the rows of the crop alone. "packed at 320" has images
whose shorter side was made 320 pixels by `vit-jax pack`, so there is less to
decode than for the peers.

CPU seconds are those of the process and its workers, which a busy machine
changes little. Each run is measured while the pipeline is in full flow: its
first batches, which were prepared while others had their turn, do not count.
Peers that are not installed (tensorflow; torch and torchvision) are left out
with a line that says so.

The last table says how many cores feed a host's accelerators, from the CPU
seconds of an image on this machine (`hosts`).
"""

import argparse
from collections.abc import Iterator
import importlib.util
import io
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine, turns
from vit_jax import allocation

# Batches that are dropped before a run: more than worker processes keep ready.
_DROPPED = 16
_AREA = (0.08, 1.0)
_QUALITY = (94, 97)  # with which both photos have the size of ImageNet's
_GOOGLE = {
  'rounding': 'truncate',
  'jpeg_dct': 'fast',
  'crop_sampling': 'height',
}
_TIMM = {'interpolation': 'bicubic'}
_RANDAUGMENT = {
  'google(2,10)': {**_GOOGLE, 'randaugment': 'google(2,10)'},
  'rand-m9': {**_TIMM, 'randaugment': 'rand-m9-mstd0.5-inc1'},
}

# Hosts of Google's cloud: accelerators, their bfloat16 TFLOP/s and the vCPUs
# beside them (cloud.google.com/tpu/docs: v3-8, v4-8, ct5lp-hightpu-8t,
# ct5p-hightpu-4t, ct6e-standard-8t), and a host with eight H100.
_HOSTS = {
  'TPU v3-8': (8, 61.6, 96),
  'TPU v4-8': (4, 275.0, 240),
  'TPU v5e-8': (8, 197.0, 224),
  'TPU v5p-8': (4, 459.0, 208),
  'TPU v6e-8': (8, 918.0, 180),
  '8 x H100': (8, 989.0, 208),
}
# Multiply-accumulates of a forward pass at 224 px, in 1e9 (docs/models.md).
_MODELS = {'S/16': 4.6, 'B/16': 17.6, 'L/16': 61.6, 'H/14': 167.3}
_DIFFERENT = 1024  # JPEGs that are encoded; further ones repeat their bytes
_MFU = 0.6  # what a fast step reaches; a slower one needs fewer images


def write_jpegs(root: pathlib.Path, count: int, **options: Any) -> float:
  """Writes parts of two photos, in two classes; returns their mean size in KB.

  Noise would not do: its blocks have few zeros, so that it decodes slowly. From
  the 1,025th on, they have the bytes of earlier ones, which saves time.

  Args:
    root: folder of the images.
    count: number of images.
    **options: of Pillow's `save`.
  """
  from sklearn.datasets import load_sample_images

  rng = np.random.default_rng(0)
  photos = [Image.fromarray(x) for x in load_sample_images().images]
  files: list[bytes] = []
  total = 0
  for i in range(count):
    path = root / 'train' / f'class{i % 2}' / f'{i:05d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    if i >= _DIFFERENT:
      total += path.write_bytes(files[i % _DIFFERENT])
      continue
    photo = photos[i % 2]
    height = int(rng.integers(380, photo.height))
    width = height * 468 // 401
    left = int(rng.integers(0, photo.width - width))
    top = int(rng.integers(0, photo.height - height))
    buffer = io.BytesIO()
    photo.resize(
      (468, 401),
      Image.Resampling.BICUBIC,
      box=(left, top, left + width, top + height),
    ).save(buffer, 'JPEG', quality=_QUALITY[i % 2], subsampling=0, **options)
    files.append(buffer.getvalue())
    total += path.write_bytes(files[-1])
  return total / count / 1024


class _Batches:
  """A run takes `steps` batches of an endless iterator."""

  def __init__(self, batches: Iterator[Any], steps: int):
    self._batches, self._steps = batches, steps

  def begin(self) -> None:
    """Drops the batches that were ready before the run."""
    for _ in range(_DROPPED):
      next(self._batches)

  def __call__(self) -> None:
    for _ in range(self._steps):
      next(self._batches)


def ours(settings: dict[str, Any]) -> _Batches:
  """The input of `vit-jax train`.

  Args:
    settings: 'source' ('packed' or 'folder'), 'data_dir', 'size', 'batch',
      'steps', and 'keys' of a recipe's section `data`.
  """
  from vit_jax.data.sources.opening import open_source
  from vit_jax.recipe import data as recipe_data
  from vit_jax.recipe.keys import default_config

  options = {'holdout': 0.0} if settings['source'] == 'folder' else {}
  source = open_source(
    settings['source'], split='train', data_dir=settings['data_dir'], **options
  )
  config = default_config()
  config.data.update(
    area=_AREA,
    image_size=settings['size'],
    batch_size=settings['batch'],
    threads=2,
    max_bad_fraction=0.0,
  )
  config.data.update(settings['keys'])
  batches = iter(recipe_data.train_batches(config, source))
  return _Batches(batches, settings['steps'])


def tf_data(settings: dict[str, Any]) -> _Batches:
  """tf.data over TFRecords, which it writes first.

  Args:
    settings: as of `ours`, with 'dct' for another transform than the default.
  """
  import tensorflow as tf

  root, size = pathlib.Path(settings['data_dir']), settings['size']
  records = str(root.parent / f'images{settings.get("dct", "")}.tfrecord')
  with tf.io.TFRecordWriter(records) as writer:
    for path in sorted(root.glob('train/*/*.jpg')):
      writer.write(path.read_bytes())

  def example(data):
    begin, shape, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data),
      tf.zeros([0, 0, 4]),
      area_range=_AREA,
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    box = tf.concat([begin[:2], shape[:2]], 0)
    image = tf.io.decode_and_crop_jpeg(
      data, box, channels=3, dct_method=settings.get('dct', '')
    )
    image = tf.cast(tf.image.resize(image, [size, size]), tf.uint8)
    return tf.image.random_flip_left_right(image)

  data = tf.data.TFRecordDataset(records).cache().shuffle(512).repeat()
  data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  data = data.batch(settings['batch'], drop_remainder=True).prefetch(2)
  return _Batches(data.as_numpy_iterator(), settings['steps'])


def torch_loader(settings: dict[str, Any]) -> _Batches:
  """torch's DataLoader with torchvision's transforms, which use Pillow."""
  from torch.utils.data import DataLoader
  from torchvision import datasets, transforms

  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(
        settings['size'],
        scale=_AREA,
        interpolation=transforms.InterpolationMode.BICUBIC,
      ),
      transforms.RandomHorizontalFlip(),
      transforms.PILToTensor(),
    ]
  )
  loader = DataLoader(
    datasets.ImageFolder(f'{settings["data_dir"]}/train', transform),
    settings['batch'],
    shuffle=True,
    num_workers=2,
    drop_last=True,
    persistent_workers=True,
  )

  def endless():
    while True:
      yield from loader

  return _Batches(endless(), settings['steps'])


def candidates(
  root: pathlib.Path, size: int, batch: int, steps: int, quick: bool
) -> list[turns.Candidate]:
  """This package's pipelines, and the installed peers.

  Args:
    root: folder of the JPEGs, beside which their packed forms are.
    size: height and width of the result, in pixels.
    batch: number of images in a batch.
    steps: number of batches in a run.
    quick: leave out RandAugment, exact decoding and some workers.
  """
  shared = {'size': size, 'batch': batch, 'steps': steps}

  def one(name: str, function: str, data: str, **more) -> turns.Candidate:
    settings = {**shared, 'data_dir': str(root.parent / data), **more}
    prepare = f'benchmarks.input_pipeline:{function}'
    env = turns.on_device('cpu')
    if function == 'ours':  # as the commands of vit-jax start themselves
      env.update(allocation.settings())
    return turns.Candidate(name, prepare, settings, batch * steps, env)

  def mine(name, keys, source='packed', data='packed', **more):
    keys = {**keys, **more}
    return one(f'vit_jax, {name}', 'ours', data, source=source, keys=keys)

  google = dict(_GOOGLE)
  exact = {**_GOOGLE, 'jpeg_dct': 'accurate'}
  if importlib.util.find_spec('simplejpeg') is None:
    google = exact
    print(
      'simplejpeg is not installed: OpenCV decodes, by the exact transform',
      file=sys.stderr,
    )
  rows = [
    mine('google', google),
    mine('google, folder', google, 'folder', root.name),
    mine('google, 1 worker', google, threads=1, workers=1),
    mine('google, 2 workers', google, threads=1, workers=2),
    mine('google, restart markers', google, data='restarts'),
    mine('google, packed at 320', google, data='small'),
    mine('timm', _TIMM),
  ]
  if not quick:
    rows += [
      mine('google, exact DCT', exact),
      mine('timm, 2 workers', _TIMM, threads=1, workers=2),
      *(mine(name, keys) for name, keys in _RANDAUGMENT.items()),
    ]
  peers = (
    ('tf.data', 'tf_data', ('tensorflow',)),
    ('torch DataLoader', 'torch_loader', ('torch', 'torchvision')),
  )
  for name, function, packages in peers:
    if all(importlib.util.find_spec(p) for p in packages):
      rows.append(one(name, function, root.name))
    else:
      print(f'{" or ".join(packages)} is not installed: no {name}')
  if not quick and importlib.util.find_spec('tensorflow'):
    exact_peer = {'dct': 'INTEGER_ACCURATE'}
    rows.append(one('tf.data, exact DCT', 'tf_data', root.name, **exact_peer))
  return rows


def per_cpu_second(measured: turns.Measured) -> float:
  """Images per CPU second."""
  return measured.candidate.amount / statistics.median(measured.cpu)


def hosts(rates: dict[str, float]) -> str:
  """A Markdown table: the cores that feed a host's accelerators.

  The images per second are those of a training step at 60 % of the peak, whose
  work is six operations for each multiply-accumulate of the forward pass. They
  are divided by the images per CPU second of this machine, whose cores may be
  faster or slower than a vCPU of the host. Bold: more than the host has.

  Args:
    rates: images per CPU second, by the name of a pipeline.
  """
  rows = [
    '| | vCPUs | model | img/s | ' + ' | '.join(rates) + ' |',
    '|---' * (4 + len(rates)) + '|',
  ]
  for host, (count, tflops, cores) in _HOSTS.items():
    for model, gmacs in _MODELS.items():
      images = _MFU * count * tflops * 1e12 / (6e9 * gmacs)
      needed = (images / rate for rate in rates.values())
      cells = (f'**{n:.0f}**' if n > cores else f'{n:.1f}' for n in needed)
      rows.append(
        f'| {host} | {cores} | {model} | {images:,.0f} | '
        + ' | '.join(cells)
        + ' |'
      )
  return '\n'.join(rows)


def prepare_data(root: pathlib.Path, images: int) -> float:
  """Writes the JPEGs and packs them; returns their mean size in KB."""
  from vit_jax.data.pack import pack

  size = write_jpegs(root, images)
  pack(root, root.parent / 'packed')
  pack(root, root.parent / 'small', short_side=320)
  restarts = root.parent / 'jpeg with restart markers'
  write_jpegs(restarts, images, restart_marker_rows=1)
  pack(restarts, root.parent / 'restarts')
  return size


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  # Grain takes long for each image that it shuffles if there are few of them:
  # 19 us of 1,024, 6 us of 4,096, and 3 us of a million (on an AMD EPYC).
  parser.add_argument('--images', type=int, default=4096)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--steps', type=int, default=32, help='batches of a run')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument(
    '--quick', action='store_true', help='fewer rows, under 5 minutes'
  )
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  rounds = min(args.rounds, 4) if args.quick else args.rounds
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory) / 'jpeg'
    size = prepare_data(root, args.images)
    rows = candidates(root, args.size, args.batch, args.steps, args.quick)
    print(machine.describe())
    print(f'{args.images} JPEGs of {size:.0f} KB, batches of {args.batch}')
    measured = turns.measure(rows, rounds)
  for peer in ('tf.data', 'torch DataLoader'):
    if any(m.wall and m.candidate.name == peer for m in measured):
      print(f'\n{turns.table(measured, peer, "img")}\n\nspeed 1 is {peer}')
  rates = {
    m.candidate.name.removeprefix('vit_jax, '): per_cpu_second(m)
    for m in measured
    if m.wall and m.candidate.name in _FEEDING
  }
  print(f'\ncores that feed a host at {_MFU:.0%} MFU\n\n{hosts(rates)}')
  if args.json:
    turns.write_json(args.json, {'input pipeline': measured})


# The pipelines of the table `hosts`.
_FEEDING = ('vit_jax, google', 'vit_jax, timm', 'vit_jax, rand-m9')


if __name__ == '__main__':
  main()
