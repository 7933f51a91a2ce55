"""Measures training images per CPU-second, beside Pillow and torch.

    python -m benchmarks.input_pipeline [--images=512] [--size=224]

It writes JPEGs (about 110 KB at 401x468, the average of ImageNet), and gives
each candidate the same work: read, decode, random crop of 8-100 % to 224x224,
flip, batch as uint8. CPU time is that of the process and its workers, read from
/proc (Linux), which a busy machine changes little. Each run is measured after
its first batches, the candidates take turns, and the median is printed.
"""

import argparse
import concurrent.futures
import io
import itertools
import multiprocessing
import os
import pathlib
import random
import resource
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from vit_jax.data import crops, pack
from vit_jax.data.sources.opening import open_source
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.keys import default_config


def write_jpegs(root: pathlib.Path, count: int) -> float:
  """Writes images of noise in two classes; returns their mean size in KB."""
  rng = np.random.default_rng(0)
  total = 0
  for i in range(count):
    image = np.zeros((401, 468, 3))
    for cells, strength in ((4, 90), (16, 40), (64, 20), (200, 18)):
      noise = rng.normal(0, strength, (cells, cells, 3))
      for c in range(3):
        layer = Image.fromarray(noise[..., c].astype(np.float32))
        image[..., c] += np.asarray(
          layer.resize((468, 401), Image.Resampling.BICUBIC)
        )
    buffer = io.BytesIO()
    Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(
      buffer, 'JPEG', quality=92, subsampling=0
    )
    path = root / f'class{i % 2}' / f'{i:05d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    total += buffer.tell()
  return total / count / 1024


def cpu_seconds() -> float:
  """CPU time of this process and of its living worker processes."""
  own = resource.getrusage(resource.RUSAGE_SELF)
  ticks = 0
  for child in multiprocessing.active_children():
    stat = pathlib.Path(f'/proc/{child.pid}/stat').read_text()
    ticks += sum(map(int, stat.rpartition(')')[2].split()[11:13]))
  return own.ru_utime + own.ru_stime + ticks / os.sysconf('SC_CLK_TCK')


def pillow_example(path: str, size: int):
  """One example as a plain PyTorch data set makes it, with Pillow, bicubic."""
  with Image.open(path) as picture:
    picture = picture.convert('RGB')
  width, height = picture.size
  rng = np.random.default_rng(random.getrandbits(32))
  top, left, h, w = crops.area_uniform_box(
    rng, height, width, (0.08, 1.0), (3 / 4, 4 / 3)
  )
  picture = picture.crop((left, top, left + w, top + h)).resize(
    (size, size), Image.Resampling.BICUBIC
  )
  if rng.random() < 0.5:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.array(picture), int('class1' in path)


class PillowDataset:
  """A data set for torch's DataLoader, which pickles it for its workers."""

  def __init__(self, paths, size):
    self.paths, self.size = paths, size

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, i):
    return pillow_example(self.paths[i], self.size)


def candidates(root, packed, size, batch):
  """{name: function that yields batches without end}."""
  folder = open_source('folder', split='train', data_dir=str(root), holdout=0.0)
  records = open_source('packed', split='train', data_dir=str(packed))
  paths = [folder.describe(i) for i in range(len(folder))]

  def ours(source, **keys):
    config = default_config()
    config.data.update(
      dict(
        area=(0.08, 1.0),
        image_size=size,
        batch_size=batch,
        threads=2,
        max_bad_fraction=0.0,
      )
      | keys
    )

    def read():
      with recipe_data.train_batches(config, source) as batches:
        yield from batches

    return read

  def pillow_threads():
    endless = itertools.cycle(paths)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      while True:
        chosen = list(itertools.islice(endless, batch))
        images, labels = zip(
          *pool.map(lambda p: pillow_example(p, size), chosen)
        )
        yield np.stack(images), np.array(labels)

  try:
    import simplejpeg  # noqa: F401
  except ImportError:
    print('simplejpeg is not installed: the fast cosine transform is left out')
    fast = {}
  else:
    name = 'ours, packed, bilinear, truncated, fast cosine transform'
    fast = {name: ours(records, rounding='truncate', jpeg_dct='fast')}

  timm = 'rand-m9-mstd0.5-inc1'
  out = {
    'ours, packed, bilinear': ours(records),
    'ours, folder, bilinear': ours(folder),
    'ours, packed, bilinear, truncated': ours(records, rounding='truncate'),
    'ours, packed, bilinear, 2 workers': ours(records, threads=1, workers=2),
    'ours, packed, bicubic (Pillow)': ours(records, interpolation='bicubic'),
    'ours, packed, bilinear, google(2,10)': ours(
      records, randaugment='google(2,10)'
    ),
    f'ours, packed, bicubic, {timm}': ours(
      records, interpolation='bicubic', randaugment=timm
    ),
    **fast,
    'Pillow, bicubic, 2 threads': pillow_threads,
  }
  try:
    from torch.utils import data
  except ImportError:
    print('torch is not installed: left out')
  else:

    def torch_loader():
      loader = data.DataLoader(
        PillowDataset(paths, size),
        batch,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
      )
      while True:
        yield from loader

    out['torch DataLoader, Pillow, bicubic, 2 workers'] = torch_loader
  return out


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  steps = -(-args.images // args.batch)
  with tempfile.TemporaryDirectory() as directory:
    root, packed = (pathlib.Path(directory) / n for n in ('jpeg', 'packed'))
    size = write_jpegs(root, args.images)
    pack.pack(root, packed)
    print(
      f'{args.images} JPEGs of {size:.0f} KB, batches of {args.batch}, '
      f'{os.cpu_count()} cores'
    )
    runs = candidates(root, packed, args.size, args.batch)
    cpu, wall = ({name: [] for name in runs} for _ in range(2))
    for _ in range(args.rounds):
      for name, read in runs.items():
        batches = read()
        for _ in range(
          4
        ):  # until threads and processes run and buffers are full
          next(batches)
        start, used = time.perf_counter(), cpu_seconds()
        for _ in range(steps):
          next(batches)
        cpu[name].append(steps * args.batch / (cpu_seconds() - used))
        wall[name].append(steps * args.batch / (time.perf_counter() - start))
        batches.close()
  base = statistics.median(cpu['Pillow, bicubic, 2 threads'])
  print(f'{"":46s} img/CPU-s  (min-max)   x Pillow   img/s')
  for name in runs:
    middle = statistics.median(cpu[name])
    print(
      f'{name:46s} {middle:9.0f}  ({min(cpu[name]):.0f}-'
      f'{max(cpu[name]):.0f})  {middle / base:9.2f} '
      f'{statistics.median(wall[name]):8.0f}'
    )


if __name__ == '__main__':
  main()
