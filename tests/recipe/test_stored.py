"""Recipes that workdirs store: of this version and of earlier ones."""

import json

import pytest

from tests.helpers import tiny_config
from vit_jax.recipe import stored
from vit_jax.recipe.keys import ConfigError, to_json
from vit_jax.recipe.stored import adopt_earlier, check_workdir, upgrade


def workdir_of(path, recipe):
  """A directory that looks like that of a run with a saved step."""
  (path / 'checkpoints' / '5').mkdir(parents=True, exist_ok=True)
  (path / 'config.json').write_text(json.dumps(recipe))
  return path


def without(recipe, *keys):
  """A recipe as a version without these keys stored it."""
  recipe = json.loads(json.dumps(recipe))
  for key in keys:
    section, name = key.split('.')
    del recipe[section][name]
  return recipe


def test_a_directory_without_a_run(tmp_path):
  check_workdir(tmp_path, to_json(tiny_config()))
  assert adopt_earlier(tiny_config(), tmp_path) == []


def test_the_same_recipe_and_keys_that_may_change(tmp_path):
  workdir = workdir_of(tmp_path, to_json(tiny_config()))
  check_workdir(workdir, to_json(tiny_config()))
  check_workdir(
    workdir,
    to_json(
      tiny_config(
        run=dict(name='other'), data=dict(threads=3), mesh=dict(preset='fsdp')
      )
    ),
  )


@pytest.mark.parametrize('text', ['[' * 100_000, '{"run": 3, "model": []}'])
def test_a_damaged_recipe_is_taken_from_a_step(tmp_path, text, caplog):
  workdir = workdir_of(tmp_path, to_json(tiny_config()))
  (workdir / 'config.json').write_text(text)
  check_workdir(workdir, to_json(tiny_config()))
  assert f'{workdir / "config.json"} cannot be read' in caplog.text


def test_long_texts_of_another_recipe_are_cut(tmp_path):
  recipe = to_json(tiny_config())
  recipe['data']['x' * 100_000] = recipe['data']['dir'] = 'y' * 100_000
  workdir = workdir_of(tmp_path, recipe)
  with pytest.raises(ConfigError, match='another recipe') as e:
    check_workdir(workdir, to_json(tiny_config()))
  assert len(str(e.value)) < 2000


def test_another_recipe_is_named(tmp_path):
  workdir = workdir_of(tmp_path, to_json(tiny_config()))
  with pytest.raises(
    ConfigError,
    match=r'another recipe \(optim.clip: 0.0 there, 1.0 now; run.steps: 8 '
    r'there, 9 now\)',
  ):
    check_workdir(
      workdir, to_json(tiny_config(run=dict(steps=9), optim=dict(clip=1.0)))
    )


def test_keys_that_are_newer_than_the_run_have_their_default(tmp_path):
  recipe = to_json(tiny_config())
  old = without(recipe, 'optim.nesterov', 'data.mix_groups', 'log.overview')
  workdir = workdir_of(tmp_path, old)
  check_workdir(workdir, recipe)
  with pytest.raises(ConfigError, match='data.mix_groups: 1 there, 2 now'):
    check_workdir(workdir, to_json(tiny_config(data=dict(mix_groups=2))))


def test_renamed_and_removed_keys(tmp_path, monkeypatch):
  """A renamed or removed key needs one line in `stored`."""
  monkeypatch.setattr(stored, 'RENAMED', {'optim.max_norm': 'optim.clip'})
  monkeypatch.setattr(stored, 'REMOVED', ('optim.skip_nonfinite',))
  recipe = to_json(tiny_config())
  old = without(recipe, 'optim.clip')
  old['optim'].update(max_norm=1.0, skip_nonfinite=False)
  assert upgrade(old)['optim.clip'] == 1.0
  workdir = workdir_of(tmp_path, old)
  check_workdir(workdir, to_json(tiny_config(optim=dict(clip=1.0))))
  with pytest.raises(ConfigError, match='optim.clip: 1.0 there, 0.0 now'):
    check_workdir(workdir, recipe)


def test_rules_are_about_keys_of_this_version():
  keys = upgrade({})
  assert set(stored.EARLIER) <= set(keys)
  assert set(stored.RENAMED.values()) <= set(keys)
  assert not {*stored.RENAMED, *stored.REMOVED} & set(keys)


def test_a_run_of_an_earlier_version_keeps_what_it_did(tmp_path):
  """A resumed run of 0.1.0 keeps its settings, now and at later restarts."""
  old = without(to_json(tiny_config()), *stored.EARLIER)
  workdir = workdir_of(tmp_path, old)
  for _ in range(2):
    config = tiny_config()
    changed = adopt_earlier(config, workdir)
    assert changed == [f'{k}={v}' for k, v in stored.EARLIER.items()]
    check_workdir(workdir, to_json(config))
    workdir_of(tmp_path, to_json(config))  # as the loop writes it


def test_a_run_of_this_version_is_left_as_it_is(tmp_path):
  workdir = workdir_of(tmp_path, to_json(tiny_config()))
  config = tiny_config()
  assert adopt_earlier(config, workdir) == []
  assert to_json(config) == to_json(tiny_config())


def test_models_of_an_earlier_version_keep_their_batch_norm(tmp_path):
  """Version 0.1.0 recorded the variances of batches; PyTorch n / (n - 1)."""
  config = tiny_config(optim=dict(ema=0.9))
  config.model.name = 'ceit_t'
  earlier = without(to_json(config), *stored.EARLIER)
  workdir = workdir_of(tmp_path, earlier)
  changed = adopt_earlier(config, workdir)
  assert 'model.bn_unbiased=False' in changed
  assert config.model.bn_unbiased is False and config.optim.ema_ramp
  check_workdir(workdir, to_json(config))
  # A ViT has no such field, and a run of this version keeps the default.
  assert 'model.bn_unbiased' not in upgrade({'model': {'name': 'vit_s16'}})
  assert 'model.bn_unbiased' not in upgrade(
    {'model': {'name': 'ceit_t'}, 'optim': {'ema_ramp': False}}
  )
