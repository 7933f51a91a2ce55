"""Processes of a job that were started differently are told so and end."""

import json
import socket

import pytest

from tests.data.helpers import write_images
from tests.parallel.test_multihost import Job
from vit_jax.data import records
from vit_jax.data.pack import pack
from vit_jax.parallel import agreement, processes
from vit_jax.parallel.agreement import ProcessesDiffer, require_agreement

FACTS = {
  'recipe': {'optim': {'lr': 0.1}, 'eval': {'sets': {}}},
  'training data': {'classes': ['cat', 'dog']},
  'step': 3,
}


@pytest.mark.slow
def test_processes_with_other_recipes_end_before_the_first_step(tmp_path):
  """All of them name the process and the first difference, within seconds."""
  workdir = tmp_path / 'run'
  own = {1: ['--config.optim.lr=0.5', '--config.data.num_examples=90']}
  job = Job(tmp_path, [workdir] * 2, own_flags=own, devices=1)
  assert job.finish() == [1, 1], job.outputs()
  for i in range(2):
    assert 'recipe.data.num_examples is 90, in process 0 84' in job.output(i)
  assert not (workdir / 'metrics.jsonl').exists()


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['another order', 'an incomplete copy'])
def test_processes_with_other_data_end_before_the_first_step(tmp_path, fault):
  """As many classes, and another class or fewer images in process 1."""
  write_images(tmp_path / '0', {'cat': 12, 'dog': 12})
  if fault == 'another order':
    write_images(tmp_path / '1', {'cat': 12, 'ant': 12})
    says = 'training data.classes[0] is ant, in process 0 cat'
  else:
    write_images(tmp_path / '1', {'cat': 12, 'dog': 11})
    says = 'training data.'
  own = {i: [f'--config.data.dir={tmp_path}/{i}'] for i in range(2)}
  flags = ['--config.data.source=folder', '--config.data.num_examples=None']
  workdir = tmp_path / 'run'
  job = Job(tmp_path, [workdir] * 2, *flags, own_flags=own, devices=1)
  assert job.finish() == [1, 1], job.outputs()
  for i in range(2):
    assert f'process 1 ({socket.gethostname()}): {says}' in job.output(i)
  assert not (workdir / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_processes_with_a_permutation_of_the_classes_end_at_once(tmp_path):
  """The same names, images and counts, but process 1 numbers them backwards."""
  for split in ('train', 'test'):
    write_images(tmp_path / 'images' / split, {'cat': 12, 'dog': 12})
  for i in range(2):
    pack(tmp_path / 'images', tmp_path / str(i))
  for file in (tmp_path / '1').glob('*.packed.json'):
    meta = records.read_metadata(file)
    meta['class_names'].reverse()
    file.write_text(json.dumps(records.seal_metadata(meta)))
  own = {i: [f'--config.data.dir={tmp_path}/{i}'] for i in range(2)}
  flags = ['--config.data.source=packed', '--config.data.num_examples=None']
  workdir = tmp_path / 'run'
  job = Job(tmp_path, [workdir] * 2, *flags, own_flags=own, devices=1)
  assert job.finish() == [1, 1], job.outputs()
  says = 'training data.classes[0] is dog, in process 0 cat'
  for i in range(2):
    assert f'process 1 ({socket.gethostname()}): {says}' in job.output(i)
  assert not (workdir / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  'change, says',
  [
    ({}, ''),
    ({'step': 6}, 'step is 6, in process 0 3'),
    (
      {'training data': {'classes': ['cat', 'cow']}},
      'training data.classes[1] is cow, in process 0 dog',
    ),
    (
      {'training data': {'classes': ['dog', 'cat']}},  # only another order
      'training data.classes[0] is dog, in process 0 cat',
    ),
    (
      {'recipe': {'optim': {'lr': 0.1}, 'eval': {'sets': {'x': 1}}}},
      'recipe.eval.sets is missing, in process 0 {}',
    ),
    ({'code': 'abc'}, 'code is abc, in process 0 missing'),
  ],
)
def test_the_first_difference(monkeypatch, change, says):
  """As process 1 of two sees it; process 0 has FACTS."""
  job = processes._Job(1, ['left', 'right'], watch=None)
  sent = []
  monkeypatch.setattr(agreement, 'current_job', lambda: job)
  monkeypatch.setattr(
    agreement,
    'broadcast_from_first',
    lambda own, timeout: dict(agreement._flatten(FACTS)),
  )
  monkeypatch.setattr(
    agreement, 'gather', lambda own, timeout: sent.append(own) or ['', own]
  )
  if says:
    with pytest.raises(ProcessesDiffer) as error:
      require_agreement({**FACTS, **change}, 'after the restore')
    assert f'after the restore: process 1 (right): {says}. ' in str(error.value)
  else:
    require_agreement(FACTS, 'after the restore')
  assert sent == [says]
