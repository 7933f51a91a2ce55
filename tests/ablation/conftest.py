"""A recipe with three variants, and a substitute for the training loop."""

import json

import pytest

from vit_jax.recipe.keys import to_json

RECIPE = """
from tests.helpers import tiny_config

def get_config(arg=None):
  return tiny_config(run=dict(steps=2, name=arg or ''))

def sweep(arg=None):
  return {
      'base': {'seeds': 1},
      'large lr': {'optim.lr': 0.5, 'arg': 'large'},
      'read': {'run.eval_only': True,
               'run.pretrained': '{workdir}/base/seed0', 'seeds': 1},
  }
"""


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE)
  return str(path)


class Trainer:
  """A substitute for the training loop, which writes a summary or fails."""

  def __init__(self, fail_at=None, error=KeyboardInterrupt):
    self.runs, self.fail_at, self.error = [], fail_at, error

  def __call__(self, config, workdir):
    self.runs.append((workdir.parent.name, config))
    if len(self.runs) == self.fail_at:
      raise self.error('stopped')
    top1 = 0.5 + 0.1 * config.run.seed + 0.2 * (config.optim.lr > 0.1)
    summary = {'results': {'test': {'top1': top1}}, 'seconds': 1.0}
    workdir.mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(to_json(config)))
    (workdir / 'summary.json').write_text(json.dumps(summary))
    return summary
