"""The training loop end to end, on a recipe that takes seconds."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import saved_state, tiny_config
from vit_jax import train
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build
from vit_jax.recipe.keys import ConfigError
from vit_jax.training import augment
from vit_jax.weights.steps import find_step


def metrics(workdir, key='loss'):
  lines = [
    json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  return {x['step']: x[key] for x in lines if key in x}


def run(config, workdir, devices=1):
  """Trains on some of the eight virtual devices."""
  return train.train_and_evaluate(config, workdir, jax.devices()[:devices])


def test_loss_falls_and_everything_is_written(tmp_path, capsys):
  config = tiny_config(
    run=dict(steps=24), log=dict(tensorboard=True, overview=True)
  )
  config.eval.fewshot.shots = (1,)
  summary = run(config, tmp_path)
  out = capsys.readouterr().out
  assert re.search(r'\| head/kernel +\| \(16, 5\) +\| float32 \| 80 ', out)
  assert 'Total: 7,749' in out
  assert re.search(r'step 24/24  epoch 6.00  loss .*  lr .*  \d+ img/s', out)
  assert 'compiling the training step ...\ncompiled in ' in out
  assert re.search(r'step 1/24  epoch 0.25  loss \S+  top-1 \S+  lr \S+\n', out)
  accuracy = summary['results']['test']['top1']
  assert f'accuracy: {accuracy:.2%} of ' in out
  assert f'checkpoint: {tmp_path}/checkpoints/24: the last and the best' in out
  assert f'vit-jax predict {tmp_path} IMAGE' in out
  assert f'vit-jax evaluate {tmp_path} --source synthetic\n' in out
  (probed,) = metrics(tmp_path, 'fewshot_1_shot').items()
  assert probed[0] == 24 and probed[1] > 0.5
  assert f'few-shot at step 24: 1_shot {probed[1]:.2%}' in out
  losses = metrics(tmp_path)
  assert losses[24] < 0.5 * losses[1]
  assert summary['results']['test']['top1'] > 0.9
  on_disk = json.loads((tmp_path / 'summary.json').read_text())
  assert on_disk['results'] == summary['results']
  assert on_disk['step'] == 24
  assert on_disk['versions']['jax'] == jax.__version__
  recipe = json.loads((tmp_path / 'config.json').read_text())
  assert recipe['run']['steps'] == 24
  assert list((tmp_path / 'tensorboard').glob('events*'))
  assert set(metrics(tmp_path, 'lr')) == set(range(1, 25))
  assert metrics(tmp_path, 'test_top1') == {
    24: summary['results']['test']['top1']
  }


@pytest.mark.parametrize(
  'sections',
  [
    dict(
      optim=dict(
        name='adam',
        state_dtype='bfloat16',
        decay_style='schedule',
        weight_decay=1e-3,
      )
    ),
    dict(optim=dict(name='sgd', state_dtype='bfloat16', clip=1.0)),
    dict(optim=dict(name='adafactor')),
    dict(loss=dict(name='sigmoid'), model=dict(head_bias=-6.9)),
    dict(
      data=dict(mixup=0.8, cutmix=1.0, erasing=0.25),
      loss=dict(label_smoothing=0.1),
    ),
    dict(
      data=dict(
        mixup=0.2,
        mix_style='google',
        randaugment='google(2,10)',
        device_cache='off',
      ),
      optim=dict(ema=0.9),
      eval=dict(ema=True),
    ),
    dict(model=dict(scan=True, remat='full', drop_path=0.1, dropout=0.1)),
  ],
  ids=['adam', 'sgd', 'adafactor', 'sigmoid', 'mix', 'randaugment', 'scan'],
)
def test_variants_train(tmp_path, sections):
  run(tiny_config(**{'run': dict(steps=3), **sections}), tmp_path)
  values = list(metrics(tmp_path).values())
  assert len(values) == 3 and np.all(np.isfinite(values))


def test_accumulation_equals_the_large_batch(tmp_path):
  """Same gradients, so the same parameters up to rounding."""
  whole, sliced = tmp_path / 'whole', tmp_path / 'sliced'
  # With SGD, because Adam would amplify the rounding of gradients that are
  # zero.
  config = dict(data=dict(batch_size=32), run=dict(steps=3))
  sgd = dict(name='sgd', clip=1.0)
  run(tiny_config(**config, optim=sgd), whole, 4)
  run(tiny_config(**config, optim=dict(sgd, accumulate=2)), sliced, 4)
  a, b = saved_state(whole), saved_state(sliced)
  for key in a:
    if key.startswith('params/'):
      np.testing.assert_allclose(a[key], b[key], atol=2e-5, err_msg=key)
  for step, loss in metrics(whole).items():
    assert abs(metrics(sliced)[step] - loss) < 1e-5


def test_freezing_and_groups(tmp_path):
  config = tiny_config(run=dict(steps=2))
  config.optim.groups = ((r'(?!head/).*', {'lr': 0.0}),)
  mesh = make_mesh('data')
  built = build(config, mesh, num_classes=5, num_examples=64)
  before = jax.device_get(built.init().params)
  run(config, tmp_path)
  after = saved_state(tmp_path)
  for path, value in jax.tree_util.tree_leaves_with_path(before):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    same = np.array_equal(value, after[f'params/{name}'])
    assert same != name.startswith('head/'), name


def test_nan_stops_with_the_step_named_and_saves_nothing(tmp_path):
  config = tiny_config(
    optim=dict(lr=1e18), run=dict(steps=8), log=dict(checkpoint_steps=1)
  )
  with pytest.raises(train.NonFinite, match=r'at step \d') as error:
    run(config, tmp_path)
  bad = int(str(error.value).split('at step ')[1].split('.')[0])
  state = saved_state(tmp_path) if find_step(tmp_path) else {}
  for key, value in state.items():
    assert np.all(np.isfinite(value.astype(np.float64))), key
  assert not state or int(state['step']) <= bad


def test_nan_can_be_skipped(tmp_path, monkeypatch, caplog):
  """Steps with a NaN loss are left out, counted, said, and later forgiven."""
  real = augment.prepare_train

  def poisoned(images, targets, key, *args, **kwargs):
    images, targets = real(images, targets, key, *args, **kwargs)
    odd = jax.random.bits(key) % 2 == 0
    return jax.numpy.where(odd, np.nan, images), targets

  monkeypatch.setattr(augment, 'prepare_train', poisoned)
  config = tiny_config(
    run=dict(steps=8, nan='skip'), log=dict(checkpoint_steps=4)
  )
  summary = run(config, tmp_path)
  state = saved_state(tmp_path)
  assert 0 < int(state['skipped']) < 8 and int(state['step']) == 8
  assert summary['skipped_steps'] == int(state['skipped'])
  assert "run.nan='skip': 1 steps up to step" in caplog.text
  monkeypatch.setattr(augment, 'prepare_train', real)
  shutil.rmtree(tmp_path / 'checkpoints' / '8')
  config.run.nan = 'stop'
  run(config, tmp_path)
  for key, value in state.items():
    assert np.all(np.isfinite(value.astype(np.float64))), key
  assert int(saved_state(tmp_path)['bad_step']) == -1


def test_resume_order(tmp_path):
  """The workdir comes first, then run.resume, then run.pretrained."""
  first, second, third = (tmp_path / x for x in 'abc')
  run(tiny_config(run=dict(steps=2)), first)
  config = tiny_config(run=dict(steps=4, resume=str(first)))
  run(config, second)
  assert metrics(second).keys() == {3, 4}
  run(config, second)  # finished: only evaluated again
  assert metrics(second).keys() == {3, 4}
  run(tiny_config(run=dict(steps=1, pretrained=str(first))), third)
  assert metrics(third).keys() == {1}
  assert metrics(third)[1] < 0.9 * metrics(first)[1]


def test_eval_only(tmp_path):
  trained = run(tiny_config(), tmp_path / 'a')
  config = tiny_config(
    run=dict(eval_only=True, steps=None, pretrained=str(tmp_path / 'a')),
    eval=dict(batch_size=24),
  )
  config.eval.sets = {'one': {'split': 'test'}, 'two': {'split': 'test[:50%]'}}
  summary = run(config, tmp_path / 'b')
  got = summary['results']
  assert got['one']['top1'] == trained['results']['test']['top1']
  assert got['two']['examples'] * 2 == got['one']['examples']


def test_keep_best_and_latest(tmp_path):
  config = tiny_config(
    run=dict(steps=6),
    eval=dict(every_steps=1),
    log=dict(checkpoint_steps=1, keep_latest=1, keep_best=1),
  )
  run(config, tmp_path)
  scores = metrics(tmp_path, 'test_top1')
  kept = {
    int(p.name)
    for p in (tmp_path / 'checkpoints').iterdir()
    if p.name.isdigit()
  }
  assert 6 in kept and len(kept) <= 2
  assert max(scores[s] for s in kept) == max(scores.values())


@pytest.mark.parametrize(
  'sections,message',
  [
    (dict(data=dict(batch_size=12)), 'not divisible by 8'),
    (dict(data=dict(batch_size=128)), 'larger than the training split'),
    (dict(model=dict(patch_size=32)), 'larger than the image'),
    (dict(model=dict(name='vit_b_16')), 'Did you mean'),
    (dict(run=dict(epochs=1.0)), 'keep one of them'),
    (dict(loss=dict(name='hinge')), "allowed: 'softmax'"),
    (dict(loss=dict(distill='hard')), 'needs loss.teacher'),
    (dict(data=dict(source='tfds:cifar100', dir='/nowhere')), 'nowhere'),
    (dict(data=dict(source='cifar')), 'cifar'),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_bad_recipes_say_what_is_wrong(tmp_path, sections, message):
  with pytest.raises(ValueError, match=message):
    run(tiny_config(**sections), tmp_path / 'w', 8)
  assert not (tmp_path / 'w').exists()


def test_a_workdir_of_another_recipe_is_left_alone(tmp_path):
  run(tiny_config(run=dict(steps=2)), tmp_path)
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  with pytest.raises(ConfigError, match='belongs to another recipe.*width'):
    run(tiny_config(run=dict(steps=2), model=dict(width=32)), tmp_path)
  assert before == {
    p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()
  }
  # Keys that do not change what is learned may change.
  run(tiny_config(run=dict(steps=2), log=dict(every_steps=2)), tmp_path)


def test_torn_newest_step_falls_back(tmp_path, caplog):
  config = tiny_config(
    run=dict(steps=4), log=dict(checkpoint_steps=2, keep_latest=2)
  )
  run(config, tmp_path)
  good = saved_state(tmp_path)
  for path in (tmp_path / 'checkpoints' / '4').rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.write_bytes(path.read_bytes()[:50])
  run(config, tmp_path)
  assert 'falling back to the step before' in caplog.text
  assert (tmp_path / 'checkpoints' / '4.unreadable').exists()
  again = saved_state(tmp_path)
  for key in good:
    np.testing.assert_array_equal(good[key], again[key], err_msg=key)


def test_training_in_evaluation_mode_keeps_batch_statistics(tmp_path):
  """The parameters move; mean and variance stay as they were initialized."""
  config = tiny_config(
    run=dict(steps=1, train_mode=False),
    model=dict(name='ceit_t', stem_width=8),
  )
  train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
  stats = {
    path: value
    for path, value in saved_state(tmp_path).items()
    if 'batch_stats' in path
  }
  assert stats
  for path, value in stats.items():
    assert (value == (1.0 if path.endswith('var') else 0.0)).all(), path
