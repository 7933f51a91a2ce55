"""A recipe that cannot work is refused before data or a model is made."""

import pytest

from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.recipe import limits, opening
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import ConfigError, default_config, get
from vit_jax.recipe.overrides import override


def test_the_defaults_and_a_small_recipe_are_valid():
  config = default_config()
  config.run.steps = 1
  check(config)
  check(tiny_config())


WRONG = [
  ('data.randaugment', 'google(2;10)', "cannot read 'google(2;10)'"),
  ('data.randaugment', 'rand-x9', "cannot read 'x9'"),
  ('data.area', (0.5, 0.1), 'data.area=(0.5, 0.1)'),
  ('data.aspect', (0.0, 1.0), 'data.aspect=(0.0, 1.0)'),
  ('data.threads', 0, 'data.threads=0; must be at least 1'),
  ('data.workers', -1, 'data.workers=-1; must be finite and not negative'),
  ('data.prefetch', 0, 'data.prefetch=0; must be at least 1'),
  ('data.jpeg_min_side', 8, 'data.jpeg_min_side=8 must be 0, or at least the'),
  ('data.crop', 'center', "data.crop='center'; allowed: 'inception'"),
  ('data.crop', 'resize_crop', "data.crop='resize_crop' needs data.resize"),
  ('data.interpolation', 'nearest', "data.interpolation='nearest'; allowed"),
  ('data.normalize', 'zscore', "data.normalize='zscore'; allowed: half"),
  ('data.normalize', 'range(1,1)', "data.normalize='range(1,1)'; allowed"),
  ('loss.teacher_normalize', 'mean', "teacher_normalize='mean'; allowed: half"),
  ('data.flip', 1.5, 'data.flip=1.5; must be in [0, 1]'),
  (
    'data.num_classes',
    10**12,
    'data.num_classes=1000000000000; must be at most 10,000,000',
  ),
  ('data.repeats', 0, 'data.repeats=0; must be at least 1'),
  ('data.repeats', 17, 'data.repeats=17 must not be more than data.batch_size'),
  ('data.mix_groups', 5, 'data.mix_groups=5 must divide data.batch_size=16'),
  ('data.repeat_groups', 3, 'data.repeat_groups=3 must divide'),
  ('data.mixup', float('nan'), 'data.mixup=nan; must be finite'),
  ('data.device_cache', 'always', "data.device_cache='always'; allowed"),
  ('run.seed', -1, 'run.seed=-1; must be in [0, 2^32)'),
  ('run.steps', 0, 'run.steps=0; must be at least 1'),
  ('run.nan', 'ignore', "run.nan='ignore'; allowed: 'stop', 'skip'"),
  ('loss.name', 'hinge', "loss.name='hinge'; allowed: 'softmax'"),
  ('loss.label_range', (1.0, 0.0), 'loss.label_range=(1.0, 0.0); must be'),
  ('loss.distill', 'soft', "loss.distill='soft' needs loss.teacher_weights"),
  ('loss.distill_tau', 0.0, 'loss.distill_tau=0.0; must be finite and more'),
  ('optim.name', 'lion', "optim.name='lion'; allowed: 'adamw'"),
  ('optim.lr', -1.0, 'optim.lr=-1.0; must be finite and not negative'),
  ('optim.lr', None, 'optim.lr=None; must be a number (float)'),
  ('optim.b1', 1.0, 'optim.b1=1.0; must be in [0, 1)'),
  ('optim.layer_decay', 0.0, 'optim.layer_decay=0.0; must be in (0, 1]'),
  ('optim.decay_mask', '(', "optim.decay_mask: '(' is not a regular"),
  ('optim.groups', (('a',),), 'must be (regex,'),
  ('optim.accumulate', 3, 'optim.accumulate=3 must divide data.batch_size=16'),
  ('schedule.name', 'sawtooth', "schedule.name='sawtooth'; allowed"),
  ('schedule.boundaries', (2, 3), 'schedule.boundaries'),
  ('mesh.preset', 'tpu', "mesh.preset='tpu'; allowed: 'data'"),
  ('mesh.fsdp', 0, 'mesh.fsdp=0; must be -1'),
  ('mesh.rules', (('a', 'rows'),), "names axis 'rows'"),
  ('eval.crop', -0.5, 'eval.crop=-0.5; must be finite'),
  ('eval.ema', True, 'eval.ema=True needs averaged parameters'),
  ('eval.sets', {'a': {'spilt': 'x'}}, "eval.sets.a: there is no key 'spilt'"),
  ('log.every_steps', 0, 'log.every_steps=0; must be at least 1'),
  ('log.profile_steps', (5, 2), 'log.profile_steps=(5, 2); must be'),
  ('model.name', 'vit_s17', "model 'vit_s17'"),
  ('model.dropout', 'much', "model.dropout='much'; must be float"),
  ('model.depth', 2.5, 'model.depth=2.5; must be int'),
  ('model.pool', 3, 'model.pool=3; must be str'),
  ('model.patch_size', 17, 'model.patch_size=17 is larger than the image'),
]


@pytest.mark.parametrize('key, value, words', WRONG)
def test_wrong_values_are_named(key, value, words):
  config = tiny_config()
  section, _, name = key.partition('.')
  with config.ignore_type():
    config[section][name] = value
  with pytest.raises(ConfigError) as e:
    check(config)
  assert words in str(e.value)


def test_the_loop_refuses_before_it_compiles(tmp_path, monkeypatch):
  config = tiny_config(data=dict(randaugment='google(2;10)'))
  monkeypatch.setattr(
    opening, 'build', lambda *_, **__: pytest.fail('a model was built')
  )
  with pytest.raises(ConfigError, match='data.randaugment takes'):
    train.train_and_evaluate(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_unknown_keys_and_sections():
  config = tiny_config()
  config.unlock()
  config.optim.learning_rate = 1.0
  with pytest.raises(ConfigError, match='optim.learning_rate; the nearest is '):
    check(config)
  config = tiny_config()
  config.unlock()
  config.optimizer = {}
  with pytest.raises(ConfigError, match="no section 'optimizer'"):
    check(config)


def test_lengths():
  config = tiny_config(run=dict(steps=None))
  with pytest.raises(ConfigError, match='the length of the run is missing'):
    check(config)
  config.run.eval_only = True
  check(config)
  config = tiny_config(run=dict(epochs=2.0))
  with pytest.raises(ConfigError, match='run.steps=8 and run.epochs=2.0 both'):
    check(config)
  override(config, {'run.epochs': '2'})
  check(config)


def test_every_key_with_a_number_or_a_choice_has_a_limit():
  """A new key of these types must be added to the checks."""
  config = default_config()
  limited = {key for _, _, keys in limits.LIMITS for key in keys}
  numbers = {
    f'{section}.{key}'
    for section in config
    if section != 'model'
    for key in config[section]
    if config[section].get_type(key) in (int, float)
  }
  assert numbers <= limited
  assert all(
    get(config, key) in allowed or get(config, key) == ''
    for key, allowed in limits.CHOICES.items()
  )
