"""Small recipes and runs for several test modules."""

import os
import subprocess
import sys

import numpy as np

from tests.compiler import FAST_COMPILE
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def tiny_config(**sections):
  """A recipe that trains 8 steps of a two-block ViT on synthetic images.

  `sections` override: tiny_config(optim=dict(lr=0.1)).
  """
  c = default_config()
  c.run.steps = 8
  c.data.source = 'synthetic'
  c.data.num_classes, c.data.num_examples = 5, 64
  c.data.batch_size = 16
  c.data.image_size = 16
  c.data.crop = 'none'
  c.data.threads = 1
  c.model.update(
    name='vit_ti16',
    **{**shared.small_fields('vit'), 'width': 16, 'mlp_dim': 32},
  )
  c.optim.lr = 1e-2
  c.log.every_steps = 1
  c.log.tensorboard = False
  for section, values in sections.items():
    c[section].update(values)
  return c


def run_python(
  *args, devices: int = 1, env=None, timeout=300, cwd=ROOT, **kwargs
):
  """Runs a Python command in a fresh CPU process of `devices` devices."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': ROOT,
    'XLA_FLAGS': (
      f'--xla_force_host_platform_device_count={devices} {FAST_COMPILE}'
    ),
    **(env or {}),
  }
  return subprocess.run(
    [sys.executable, *args],
    env=environment,
    cwd=cwd,
    timeout=timeout,
    capture_output=True,
    text=True,
    **kwargs,
  )


def saved_state(workdir) -> dict[str, np.ndarray]:
  """Every array of a workdir's newest step, by path."""
  import jax

  from vit_jax.weights.steps import load_tree

  tree, _, _ = load_tree(workdir)
  return {
    jax.tree_util.keystr(p, simple=True, separator='/'): np.asarray(x)
    for p, x in jax.tree_util.tree_leaves_with_path(tree)
  }
