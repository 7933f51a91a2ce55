"""Reads batches with a worker process, and is killed by test_loader.py.

python tests/data/worker_parent.py FOLDER
"""

import multiprocessing
import sys
import time

from absl import flags

from tests.data.helpers import recipe
from vit_jax.data.sources.opening import open_source
from vit_jax.recipe import data

if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  source = open_source('folder', split='train', data_dir=sys.argv[1])
  batches = data.train_batches(recipe(workers=1), source)
  next(batches)
  for process in multiprocessing.active_children():
    print(process.pid, flush=True)
  print('ready', flush=True)
  time.sleep(120)
