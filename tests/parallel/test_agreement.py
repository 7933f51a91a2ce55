"""Processes of a job that were started differently are told so and end."""

import pytest

from tests.parallel.test_multihost import Job
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
