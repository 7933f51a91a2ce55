"""VTAB-1k: all 19 tasks by the trainer, on data sets that TFDS wrote."""

import json

import pytest

from tests.data.vtab_sets import write_all
from vit_jax import train
from vit_jax.cli.parser import main
from vit_jax.data.sources.vtab import TASKS
from vit_jax.training.preemption import StopSignal


@pytest.mark.slow
def test_all_tasks_are_trained_and_a_stopped_one_goes_on(
  tmp_path, monkeypatch, capsys
):
  write_all(tmp_path / 'tfds')
  small = {'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_dim': 16}
  output = tmp_path / 'out'
  command = [
    *('vtab', 'none', '--model', 'vit_ti16', '--light', '--image-size', '16'),
    *(word for k, v in small.items() for word in ('--set', f'{k}={v}')),
    *('--steps', '4', '--batch-size', '8', '--data', str(tmp_path / 'tfds')),
    *('--config.data.split=train8val1', '--config.log.checkpoint_steps=2'),
    *('-o', str(output)),
  ]
  # A signal that arrives after two steps of the third task.
  monkeypatch.setattr(
    StopSignal,
    'reached',
    lambda self, step: step == 2 and (output / 'dtd').exists(),
  )
  assert main(command) == 3
  assert 'start the same command again' in capsys.readouterr().err
  assert [*json.loads((output / 'vtab.json').read_text())] == [
    'caltech101',
    'cifar100',
  ]
  monkeypatch.undo()
  calls = []
  run = train.train_and_evaluate
  monkeypatch.setattr(
    train,
    'train_and_evaluate',
    lambda config, workdir: calls.append(workdir.name) or run(config, workdir),
  )
  assert main(command) == 0
  assert calls == [*TASKS][2:]  # the others are finished
  lines = (output / 'dtd' / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(x)['step'] for x in lines if 'loss' in x]
  assert steps == sorted(steps) and steps[-1] == 4
  out = capsys.readouterr().out
  assert '| **all tasks**' in out and 'diverged' not in out
  results = json.loads((output / 'vtab.json').read_text())
  assert [*results] == [*TASKS]
  assert results['dsprites_location']['images'] == 2  # a tenth of 20
  table = (output / 'vtab.md').read_text()
  assert all(f'| {task} ' in table for task in TASKS)
