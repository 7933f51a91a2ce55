"""Checkpoints: kept steps, damaged files, and a full disk."""

import contextlib
import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import saved_state, tiny_config
from vit_jax import train
from vit_jax.parallel import rules
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.keys import ConfigError
from vit_jax.training import checkpoint
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.steps import (
  CheckpointError,
  find_step,
  load_params,
  load_tree,
)

# Orbax closes its event loop while the failed read of a damaged step is still
# in it, and Python reports that when the loop is collected.
pytestmark = pytest.mark.filterwarnings(
  'ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'
)

METADATA = WeightsMetadata(model='x', classes=('cat', 'dog'))


def state(step, width=64):
  """A state of noise, which cannot be compressed, like that of training."""
  rng = np.random.default_rng(step)
  kernel = rng.normal(size=(width, 128)).astype(np.float32)
  return {
    'step': jnp.int32(step),
    'batch_stats': {},
    'params': {'head': {'kernel': jnp.asarray(kernel), 'bias': jnp.ones(5)}},
    'ema': {'head': {'kernel': jnp.asarray(kernel) / 2, 'bias': jnp.ones(5)}},
    'opt_state': {'0': {'mu': jnp.ones((width, 128), jnp.bfloat16)}},
  }


def abstract(width=64):
  """Shapes on one device; Orbax warns about shapes without a sharding."""
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
    jax.eval_shape(lambda: state(0, width)),
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
  ):
    assert x.dtype == y.dtype, path
    np.testing.assert_array_equal(x, y, err_msg=str(path))


@contextlib.contextmanager
def opened(workdir, **kwargs):
  checkpoints = checkpoint.Checkpoints(workdir, **kwargs)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def save(workdir, *steps, **kwargs):
  with opened(workdir, **{'keep_latest': len(steps), **kwargs}) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(step), METADATA)


def test_save_and_restore(tmp_path):
  with opened(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract()) is None
    checkpoints.save(3, state(3), METADATA)
  with opened(tmp_path) as checkpoints:
    tree, metadata, step = checkpoints.restore(abstract())
  assert step == 3 and metadata == METADATA
  assert_same(tree, state(3))
  # Nothing whose damage would make sound arrays unreadable.
  names = {p.name for p in (tmp_path / 'checkpoints' / '3' / 'state').iterdir()}
  assert not names & {'_sharding', 'array_metadatas'}


def test_restores_onto_another_mesh(tmp_path):
  def placed(preset):
    mesh = make_mesh(preset)
    specs = rules.param_specs(abstract(), mesh, preset)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.NamedSharding(mesh, s)
      ),
      abstract(),
      specs,
    )

  fsdp = jax.tree.map(
    lambda x, s: jax.device_put(x, s.sharding), state(1), placed('fsdp')
  )
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, fsdp, METADATA)
  for preset in ('fsdp_tensor', 'data'):
    wanted = placed(preset)
    with opened(tmp_path) as checkpoints:
      tree, _, _ = checkpoints.restore(wanted)
    assert_same(tree, state(1))
    for x, w in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted)):
      assert x.sharding.is_equivalent_to(w.sharding, x.ndim)


def test_saving_does_not_wait_and_copies_first(tmp_path):
  """Donating the state right after `save` is safe."""
  overwrite = jax.jit(
    lambda t: jax.tree.map(jnp.zeros_like, t), donate_argnums=0
  )
  with opened(tmp_path) as checkpoints:
    tree = state(1)
    checkpoints.save(1, tree, METADATA)
    overwrite(tree)
  assert_same(load_tree(tmp_path)[0], jax.device_get(state(1)))


def test_the_same_step_is_saved_once(tmp_path):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(2, state(2), METADATA)
    checkpoints.save(2, state(7), METADATA)
    assert checkpoints.steps() == [2]
  assert_same(load_tree(tmp_path)[0], jax.device_get(state(2)))


@pytest.mark.parametrize(
  'policy, kept',
  [
    (dict(), {5, 6}),
    (dict(keep_latest=3), {4, 5, 6}),
    (dict(keep_best=2, metric='top1'), {2, 3, 5, 6}),
    (dict(keep_every=2), {2, 4, 5, 6}),
    (
      dict(keep_latest=2, keep_best=1, metric='top1', keep_every=4),
      {2, 4, 5, 6},
    ),
  ],
  ids=str,
)
def test_what_is_kept(tmp_path, policy, kept):
  scores = {1: 0.1, 2: 0.9, 3: 0.8, 4: 0.2, 5: 0.7, 6: 0.3}
  with opened(tmp_path, **policy) as checkpoints:
    for step, score in scores.items():
      checkpoints.save(step, {'step': jnp.int32(step)}, METADATA)
      checkpoints.score(step, {'top1': score})
    checkpoints.wait()
    assert set(checkpoints.steps()) == kept
  with opened(tmp_path, **policy) as checkpoints:  # as in a later process
    assert set(checkpoints.steps()) == kept
    checkpoints.save(7, {'step': jnp.int32(7)}, METADATA)
    checkpoints.wait()
    checkpoints.score(7, {'top1': 0.95})
    assert 7 in checkpoints.steps()


def damage(step, how):
  """Makes a step unreadable, as a faulty disk or a killed process does."""
  if how.startswith('/'):
    (step / how[1:]).write_bytes(b'\xff{"torn')
  if how == 'truncated':
    for path in step.rglob('d/*'):
      path.write_bytes(path.read_bytes()[:50])
  elif how == 'emptied':
    for path in step.rglob('*'):
      if path.is_file():
        path.write_bytes(b'')
  elif how == 'no data':
    for folder in [p for p in step.rglob('d') if p.is_dir()]:
      shutil.rmtree(folder)
  elif how == 'no tree':
    (step / 'state' / '_METADATA').unlink()
  elif how == 'nothing':
    shutil.rmtree(step)
    step.mkdir()
  elif how == 'a type':
    file = step / 'state' / '_METADATA'
    file.write_text(file.read_text().replace('jax.Array', 'jAx.Array', 1))
  elif how == 'a pipe':
    (file := step / 'state' / 'manifest.ocdbt').unlink()
    os.mkfifo(file)
  elif how == 'a device':
    (file := next(p for p in step.rglob('d/*') if p.is_file())).unlink()
    file.symlink_to('/dev/zero')


@pytest.mark.parametrize(
  'how',
  [
    'truncated',
    'emptied',
    'no data',
    'no tree',
    'nothing',
    'a type',
    'a pipe',
    'a device',
    '/_CHECKPOINT_METADATA',
    '/state/_METADATA',
    '/state/manifest.ocdbt',
  ],
)
def test_a_torn_step_falls_back_and_is_not_deleted(tmp_path, caplog, how):
  save(tmp_path, 1, 2, 3)
  folder = tmp_path / 'checkpoints'
  damage(folder / '3', how)
  with opened(tmp_path, keep_latest=3) as checkpoints:
    tree, metadata, step = checkpoints.restore(abstract())
    assert step == 2 and metadata == METADATA
    assert_same(tree, state(2))
    assert '3 is unreadable' in caplog.text
    assert (folder / '3.unreadable').is_dir()
    checkpoints.save(3, state(3), METADATA)  # the resumed run makes it again
  assert_same(load_tree(tmp_path)[0], jax.device_get(state(3)))
  assert (folder / '3.unreadable').is_dir()
  damage(folder / '3', how)  # damages the new step 3 too
  with opened(tmp_path, keep_latest=3) as checkpoints:
    assert checkpoints.restore(abstract())[2] == 2
  assert {p.name for p in folder.iterdir()} == {
    *('1', '2', '3.unreadable', '3.unreadable.2')
  }


def flip(step, rng):
  """Flips a bit in the array data of a step."""
  data = sorted(p for p in step.rglob('d/*') if p.is_file())
  path = data[rng.integers(len(data))]
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def test_a_flipped_bit_is_never_loaded(tmp_path):
  save(tmp_path / 'sound', 1)
  want, noticed = jax.device_get(state(1)), 0
  for seed in range(12):
    copy = tmp_path / str(seed)
    shutil.copytree(tmp_path / 'sound', copy)
    flip(copy / 'checkpoints' / '1', np.random.default_rng(seed))
    try:
      assert_same(load_tree(copy)[0], want)  # a byte that nothing reads
    except CheckpointError:
      noticed += 1
  assert noticed >= 6
  with opened(copy) as checkpoints:
    with pytest.raises(CheckpointError, match='none can be read'):
      checkpoints.restore(abstract())


def test_what_changed_is_named(tmp_path):
  """Steps that can be read, but whose arrays or metadata differ."""
  save(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  record = (folder / '1' / '_CHECKPOINT_METADATA').read_bytes()
  (folder / '2' / '_CHECKPOINT_METADATA').write_bytes(record)
  says = r'params/head/kernel \(1 of 1 shards\)'
  with pytest.raises(CheckpointError, match=says):
    load_tree(tmp_path)
  text = record.decode().replace('dog', 'dot')
  (folder / '2' / '_CHECKPOINT_METADATA').write_text(text)
  with pytest.raises(CheckpointError, match='_CHECKPOINT_METADATA is damaged'):
    load_tree(tmp_path)


@pytest.mark.parametrize('name', ['lr]0.1', '{a,b}', '100% #1 é', "o'x $~"])
def test_any_name_of_a_workdir(tmp_path, name):
  save(tmp_path / name, 1)
  with opened(tmp_path / name) as checkpoints:
    assert checkpoints.restore(abstract())[2] == 1
  assert_same(load_tree(tmp_path / name)[0], jax.device_get(state(1)))


@pytest.mark.parametrize('name', ['lr[0.1]', 'a*', 'b?/run'])
def test_names_that_are_patterns_are_refused_at_the_start(tmp_path, name):
  with pytest.raises(CheckpointError, match='cannot be saved: take another'):
    train.train_and_evaluate(tiny_config(), tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_no_name_is_refused():
  for name in ('', ' '):
    with pytest.raises(ConfigError, match='name a directory'):
      train.train_and_evaluate(tiny_config(), name)


def test_strays_are_no_steps(tmp_path):
  save(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  (folder / '99').write_text('')
  (folder / '98').symlink_to('nowhere')
  for name in ('²', '007', '-3', '3.tmp'):
    (folder / name).mkdir()
  assert find_step(tmp_path).name == '2'
  with opened(tmp_path, keep_latest=4) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(abstract())[2] == 2
    for step in (98, 99):  # the run makes these steps
      checkpoints.save(step, state(step), METADATA)
  with opened(tmp_path, keep_latest=4) as checkpoints:
    assert checkpoints.steps() == [1, 2, 98, 99]
    assert_same(checkpoints.restore(abstract())[0], state(99))
  assert (folder / '²').is_dir()
  assert (folder / '99.unreadable').is_file()


def test_a_file_instead_of_the_folder_of_steps(tmp_path):
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(CheckpointError, match='checkpoints is no directory'):
    checkpoint.Checkpoints(tmp_path)


def test_a_best_step_is_a_step_to_fall_back_to(tmp_path):
  scores = {1: 0.9, 2: 0.1, 3: 0.2}
  policy = dict(keep_latest=1, keep_best=1, metric='top1')
  with opened(tmp_path, **policy) as checkpoints:
    for step, score in scores.items():
      checkpoints.save(step, state(step), METADATA)
      checkpoints.score(step, {'top1': score})
  damage(tmp_path / 'checkpoints' / '3', 'truncated')
  (tmp_path / 'checkpoints' / '1' / 'scores.json').write_text('{"to')
  with opened(tmp_path, **policy) as checkpoints:
    assert checkpoints.restore(abstract())[2] == 1


def test_all_torn_is_an_error_and_changes_nothing(tmp_path, caplog):
  """A fresh start would discard the run, and the fault may be temporary."""
  save(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  for step in '12':
    damage(folder / step, 'truncated')
  for _ in range(2):
    with opened(tmp_path) as checkpoints:
      with pytest.raises(
        CheckpointError,
        match=r'none can be read: 2, 1 \((.|\n)*another workdir',
      ):
        checkpoints.restore(abstract())
  assert caplog.text.count('is unreadable') == 4
  assert {p.name for p in folder.iterdir()} == {'1', '2'}
  for step in '12':  # as an earlier version did
    (folder / step).rename(folder / f'{step}.unreadable')
  with opened(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match='none can be read: 1.unreadable'):
      checkpoints.restore(abstract())


def test_half_a_save_is_removed_and_not_taken(tmp_path):
  """A killed save leaves a folder whose name is not a number."""
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '1', folder / '2.orbax-checkpoint-tmp')
  assert find_step(tmp_path).name == '1'
  with opened(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract())[2] == 1
  assert [p.name for p in folder.iterdir()] == ['1']


def test_another_shape_says_what_differs(tmp_path):
  save(tmp_path, 1)
  wanted = abstract(width=32)
  wanted['params']['extra'] = jax.ShapeDtypeStruct((3,), np.float32)
  del wanted['params']['head']['bias']
  says = (
    r'checkpoints/1 does not fit this recipe: missing params/extra '
    r'\(3,\); left over params/head/bias \(5,\); .*params/head/kernel is '
    r'\(64, 128\), expected \(32, 128\)(.|\n)*Use another workdir'
  )
  with opened(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match=says):
      checkpoints.restore(wanted)
  with pytest.raises(CheckpointError, match='missing params/extra'):
    load_tree(tmp_path, wanted)
  assert (tmp_path / 'checkpoints' / '1').is_dir()  # step 1 is not renamed


def test_find_step(tmp_path):
  save(tmp_path, 9, 10)
  newest = tmp_path / 'checkpoints' / '10'
  assert find_step(tmp_path) == newest
  assert find_step(tmp_path / 'checkpoints') == newest
  assert find_step(newest.parent / '9') == newest.parent / '9'
  assert find_step(tmp_path / 'nowhere') is None
  (tmp_path / '123').mkdir()
  assert find_step(tmp_path / '123') is None
  with pytest.raises(CheckpointError, match='has no checkpoint'):
    load_tree(tmp_path / '123')


def test_load_params(tmp_path):
  save(tmp_path, 4)
  flat, metadata = load_params(tmp_path)
  assert metadata.classes == ('cat', 'dog')
  assert flat.keys() == {'params/head/kernel', 'params/head/bias'}
  kernel = np.asarray(state(4)['params']['head']['kernel'])
  np.testing.assert_array_equal(flat['params/head/kernel'], kernel)
  average, _ = load_params(tmp_path / 'checkpoints' / '4', average=True)
  np.testing.assert_array_equal(average['params/head/kernel'], kernel / 2)


def test_load_params_without_an_average_takes_the_parameters(tmp_path):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, {**state(1), 'ema': {}}, METADATA)
  flat, _ = load_params(tmp_path, average=True)
  np.testing.assert_array_equal(
    flat['params/head/kernel'], state(1)['params']['head']['kernel']
  )


@contextlib.contextmanager
def full_disk(room: int):
  """Files cannot grow beyond `room` bytes, as if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('room', [10_000, 1])
def test_a_full_disk_leaves_the_step_before_intact(tmp_path, room):
  """The disk is full from the start, or when the arrays are written."""
  save(tmp_path, 1)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep_latest=2)
  with full_disk(room):
    with pytest.raises(
      CheckpointError,
      match=r'saving step 2 to .*checkpoints failed: (.|\n)*'
      'steps saved before it are intact. Free space',
    ):
      checkpoints.save(2, state(2), METADATA)
      checkpoints.wait()
  checkpoints.close()
  assert find_step(tmp_path).name == '1'
  assert_same(load_tree(tmp_path)[0], jax.device_get(state(1)))
  with opened(tmp_path, keep_latest=2) as again:  # there is space again
    assert again.restore(abstract())[2] == 1
    again.save(2, state(2), METADATA)
  assert_same(load_tree(tmp_path)[0], jax.device_get(state(2)))
  names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'1', '2'}


def test_a_run_on_a_full_disk_stops_and_goes_on(tmp_path):
  """A run on a full disk fails; started again with space, it ends the same."""

  def run():
    return train.train_and_evaluate(
      tiny_config(
        run=dict(steps=6), log=dict(checkpoint_steps=2, keep_latest=3)
      ),
      tmp_path,
      jax.devices()[:1],
    )

  run()
  want = saved_state(tmp_path)
  for step in '46':
    shutil.rmtree(tmp_path / 'checkpoints' / step)
  with full_disk(20_000):
    with pytest.raises(CheckpointError, match='saving step 4'):
      run()
  assert find_step(tmp_path).name == '2'
  run()
  got = saved_state(tmp_path)
  for key in want:
    np.testing.assert_array_equal(want[key], got[key], err_msg=key)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  steps = [x['step'] for x in map(json.loads, lines) if 'loss' in x]
  assert steps == [1, 2, 3, 4, 5, 6]
