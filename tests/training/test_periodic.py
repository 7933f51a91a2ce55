"""The objects that log, evaluate, save and profile at some steps."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.parallel.mesh import make_mesh
from vit_jax.training import periodic
from vit_jax.training.goodput import Goodput
from vit_jax.training.progress import Progress
from vit_jax.training.state import TrainState
from vit_jax.training.writers import Writer
from vit_jax.weights.metadata import WeightsMetadata


def state(step=0, *, bad_step=-1, skipped=0, average=None):
  return TrainState(
    step=jnp.int32(step),
    params={'w': jnp.ones(2)},
    batch_stats={},
    opt_state={},
    ema={} if average is None else {'w': jnp.full(2, average)},
    ema_stats={},
    bad_step=jnp.int32(bad_step),
    skipped=jnp.int32(skipped),
  )


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Kept:
  """Remembers the steps that it is told to save."""

  def __init__(self):
    self.steps = []

  def save(self, step, tree, metadata):
    assert int(tree['step']) == step
    assert metadata == WeightsMetadata(model='x')
    self.steps.append(step)

  def wait(self):
    pass


@pytest.fixture
def traces(monkeypatch):
  """Records 'start' and 'stop' of traces instead of tracing, which is slow."""
  calls = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda directory: calls.append('start')
  )
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def run_profile(profile, calls, first, last):
  """The number of finished steps at which tracing starts and stops."""
  moments = {}
  for step in range(first, last):
    for moment, call in (
      (step, lambda: profile.before(step)),
      (step + 1, lambda: profile.after(step + 1, jnp.zeros(()))),
    ):
      before = len(calls)
      call()
      for kind in calls[before:]:
        moments[kind] = moment
  return moments


@pytest.mark.parametrize(
  'first, last, moments',
  [
    (0, 10, {'start': 3, 'stop': 6}),
    (3, 10, {'start': 3, 'stop': 6}),
    (4, 10, {'start': 4, 'stop': 6}),  # resumes inside the window
    (6, 10, {}),  # resumes after the window
    (0, 5, {'start': 3}),  # ends inside the window
  ],
)
def test_profile_steps(traces, first, last, moments):
  profile = periodic.Profile('nowhere', (3, 6))
  assert run_profile(profile, traces, first, last) == moments
  profile.close()
  profile.close()
  assert traces.count('start') == traces.count('stop') == bool(moments)


def test_no_profile_without_steps(traces):
  assert run_profile(periodic.Profile('nowhere'), traces, 0, 9) == {}


def short_run(workdir, steps, **sections):
  config = tiny_config(run=dict(steps=steps, **sections.pop('run', {})))
  for section, values in sections.items():
    config[section].update(values)
  train.train_and_evaluate(config, workdir, jax.devices()[:1])


def test_a_run_goes_on_inside_the_profiled_steps(tmp_path, traces):
  short_run(tmp_path / 'first', 1)
  assert traces == []
  resume = dict(resume=str(tmp_path / 'first'))
  profile = dict(profile_steps=(0, 2))
  short_run(tmp_path / 'second', 3, run=resume, log=profile)
  assert traces == ['start', 'stop']


@pytest.mark.slow
def test_a_trace_is_written(tmp_path):
  short_run(tmp_path, 2, log=dict(profile_steps=(1, 2)))
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def logged(workdir):
  return [
    json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


def make_log(workdir, said, **options):
  progress = Progress(10, 0, 8)
  writer = Writer(workdir, tensorboard=False)
  return periodic.Log(
    writer,
    progress,
    Goodput(),
    said.append,
    **{
      'every_steps': 4,
      'first_step': 0,
      'total_steps': 10,
      'steps_per_epoch': 5,
      **options,
    },
  )


def test_log(tmp_path):
  said = []
  log = make_log(tmp_path, said)
  values = {'loss': jnp.float32(2.5), 'lr': jnp.float32(0.1)}
  for step in range(1, 11):
    log(step, state(step, skipped=step > 8), values)
  lines = logged(tmp_path)
  assert [x['step'] for x in lines] == [1, 4, 8, 10]
  assert [x['epoch'] for x in lines] == [0.2, 0.8, 1.6, 2.0]
  assert ['skipped_steps' in x for x in lines] == [False] * 3 + [True]
  assert all(x['loss'] == 2.5 and x['img_per_sec'] > 0 for x in lines)
  assert [x.split()[1] for x in said] == ['1/10', '4/10', '8/10', '10/10']


def test_log_stops_at_a_loss_that_is_not_finite(tmp_path):
  log = make_log(tmp_path, [])
  log(3, state(3, bad_step=2), {})  # nothing is due, so nothing is read
  with pytest.raises(periodic.NonFinite, match='not finite at step 2'):
    log(4, state(4, bad_step=2), {})
  assert logged(tmp_path) == []


def test_evaluation(tmp_path):
  evaluated, said = [], []

  def evaluator(variables):
    evaluated.append(float(variables['params']['w'][0]))
    values = {'top1': 0.5, 'top5': 1.0, 'loss': 0.25, 'examples': 8}
    return {'test': values}

  evaluate = periodic.Evaluation(
    evaluator,
    Writer(tmp_path, tensorboard=False),
    Goodput(),
    said.append,
    every_steps=3,
    total_steps=7,
    steps_per_epoch=2,
    average=True,
  )
  for step in range(1, 8):
    evaluate(step, state(step, average=0.125))
    assert bool(evaluate.at(step)) == (step in (3, 6, 7))
  assert evaluated == [0.125] * 3
  assert evaluate.at(7)['test']['top1'] == 0.5 and evaluate.at(6) == {}
  lines = logged(tmp_path)
  assert [(x['step'], x['test_top1']) for x in lines] == [
    (3, 0.5),
    (6, 0.5),
    (7, 0.5),
  ]
  assert said[0] == (
    'eval test at step 3: top-1 50.00%  top-5 100.00%  loss 0.2500  '
    '(8 examples)'
  )
  with pytest.raises(periodic.NonFinite):
    evaluate(7, state(7, bad_step=6))


@pytest.mark.parametrize('whole', [True, False])
def test_evaluation_of_split_parameters(tmp_path, whole):
  shards = []

  def evaluator(variables):
    shards.append(variables['params']['w'].addressable_shards[0].data.shape)
    return {}

  evaluate = periodic.Evaluation(
    evaluator,
    Writer(tmp_path, tensorboard=False),
    Goodput(),
    print,
    every_steps=None,
    total_steps=1,
    steps_per_epoch=1,
    whole=whole,
  )
  split = NamedSharding(make_mesh('zero', fsdp=2), PartitionSpec('fsdp'))
  one = state(1)
  evaluate(1, one.replace(params=jax.device_put(one.params, split)))
  assert shards == [(2,) if whole else (1,)]


def saving(kept, clock, **options):
  return periodic.Saving(
    kept,
    WeightsMetadata(model='x'),
    Goodput(),
    **{
      'every_steps': None,
      'every_minutes': None,
      'ask_every_steps': 5,
      'total_steps': 9,
      'clock': clock,
      **options,
    },
  )


def test_saving_by_steps():
  kept = Kept()
  save = saving(kept, Clock(), every_steps=4)
  for step in range(1, 10):
    save(step, state(step), now=step == 7)
  assert kept.steps == [4, 7, 8, 9]


def test_checkpoint_minutes():
  kept, clock = Kept(), Clock()
  save = saving(kept, clock, every_minutes=2.0)
  for step in range(1, 10):
    clock.now += 50
    save(step, state(step), now=step == 4)
  # 150 s after the start; the save at step 4 counts; the last step.
  assert kept.steps == [3, 4, 7, 9]


def test_several_processes_ask_process_0_at_some_steps(monkeypatch):
  """All processes must ask process 0 at the same step."""
  answers = []

  def answer(value):
    answers.append(value)
    return len(answers) == 2

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(periodic, 'broadcast_from_first', answer)
  kept = Kept()
  save = saving(kept, Clock(), every_minutes=2.0, total_steps=100)
  for step in range(1, 20):
    save(step, state(step))
  assert len(answers) == 3 and not any(answers)  # steps 5, 10 and 15
  assert kept.steps == [10]


def test_nothing_is_saved_after_a_loss_that_is_not_finite():
  kept = Kept()
  save = saving(kept, Clock(), every_steps=2)
  with pytest.raises(periodic.NonFinite):
    save(2, state(2, bad_step=1))
  assert not kept.steps


def test_throttle_waits_for_the_step_before_the_last(monkeypatch):
  waited = []
  monkeypatch.setattr(jax, 'block_until_ready', waited.append)
  throttle = periodic.Throttle(limit=2)
  for step in range(5):
    throttle(np.int32(step))
  assert waited == [0, 1, 2]
