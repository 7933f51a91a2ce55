"""Measures the cost of a teacher: distilled training steps and a plain one.

  python benchmarks/distillation.py --student deit_ti16 --teacher bit_r50x1 \
      --batch 8 --image 224

It compares three steps: the student alone, the student with a distillation
token and its teacher in the step, and the same with stored logits. For each it
prints the time, and the memory of temporaries and arguments as the compiler
reports them. A step goes from uint8 images to the new state.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs import deit_i1k
from vit_jax.parallel.mesh import make_mesh, put_batch
from vit_jax.recipe.build import build, compile_step
from vit_jax.teachers import live, stored_logits
from vit_jax.teachers.teacher import make_teacher

CLASSES, EXAMPLES = 1000, 10_000


def recipe(args, distilled: bool, weights: str):
  c = deit_i1k.get_config('ti16')
  c.data.batch_size, c.data.image_size = args.batch, args.image
  c.data.normalize = 'imagenet'
  c.model.name = args.student + '_distilled' * distilled
  c.run.epochs, c.run.steps = None, 1000
  c.schedule.name, c.schedule.by_epoch = 'cosine', False
  c.schedule.warmup_epochs = None
  c.optim.ema = 0.0
  c.run.dtype = args.dtype
  if distilled:
    c.loss.distill = 'hard'
    c.loss.teacher, c.loss.teacher_weights = args.teacher, weights
    c.loss.teacher_image_size = args.teacher_image
    if weights != live.RANDOM:
      c.data.mixup = c.data.cutmix = 0.0
  return c


def measure(c, repeats: int):
  """Best seconds of a step, MiB of temporaries, MiB of state and teacher."""
  mesh = make_mesh(c.mesh.preset)
  run = build(c, mesh, num_classes=CLASSES, num_examples=EXAMPLES)
  teacher, extras = None, {}
  if c.loss.distill != 'none':
    teacher, extras['teacher'] = make_teacher(c, mesh, CLASSES)
  rng = np.random.default_rng(0)
  size = c.data.image_size
  batch = put_batch(
    {
      'image': rng.integers(
        0, 256, (c.data.batch_size, size, size, 3), np.uint8
      ),
      'label': rng.integers(0, CLASSES, c.data.batch_size, np.int32),
      'index': rng.integers(0, EXAMPLES, c.data.batch_size, np.int32),
    },
    mesh,
  )
  with jax.set_mesh(mesh):
    step = compile_step(run, teacher=teacher)
    state = run.init()
    compiled = step.lower(state, batch, extras).compile()
    memory = compiled.memory_analysis()
    best = float('inf')
    for _ in range(repeats + 1):
      start = time.perf_counter()
      state, values = compiled(state, batch, extras)
      jax.block_until_ready(values)
      best = min(best, time.perf_counter() - start)
  mib = lambda n: n / 2**20
  return (
    best,
    mib(memory.temp_size_in_bytes),
    mib(memory.argument_size_in_bytes),
  )


def write_logits(folder: str) -> str:
  """Writes logits as `vit-jax teacher-logits` does, and returns `folder`."""
  import json

  np.save(
    f'{folder}/{stored_logits.LOGITS}',
    np.zeros((EXAMPLES, CLASSES), np.float16),
  )
  pathlib.Path(folder, stored_logits.META).write_text(
    json.dumps({'num_classes': CLASSES, 'classes': None})
  )
  return folder


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--student', default='deit_ti16')
  parser.add_argument('--teacher', default='bit_r50x1')
  parser.add_argument('--teacher-image', type=int)
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--image', type=int, default=224)
  parser.add_argument('--dtype', default='auto')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  print(
    f'{jax.devices()[0].device_kind} x {jax.device_count()}, '
    f'{args.student} at {args.image} px, batch {args.batch}, '
    f'teacher {args.teacher}'
  )
  print(
    f'{"step":34s} {"ms":>9s} {"img/s":>7s} {"temp MiB":>9s} '
    f'{"arguments MiB":>14s}'
  )
  with tempfile.TemporaryDirectory() as folder:
    for name, distilled, weights in (
      ('plain', False, ''),
      (f'distilled, {args.teacher}', True, live.RANDOM),
      ('distilled, stored logits', True, write_logits(folder)),
    ):
      seconds, temp, arguments = measure(
        recipe(args, distilled, weights), args.repeats
      )
      print(
        f'{name:34s} {1e3 * seconds:9.1f} {args.batch / seconds:7.1f} '
        f'{temp:9.1f} {arguments:14.1f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
