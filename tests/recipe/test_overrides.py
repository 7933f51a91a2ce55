"""All programs load recipes and set their keys in the same way."""

import pytest

from tests.helpers import ROOT, run_python
from vit_jax.cli import parser
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import (
  ConfigError,
  default_config,
  get,
  preprocessing,
)
from vit_jax.recipe.overrides import load_config, override, split_flags

DIGITS = f'{ROOT}/configs/digits.py'


@pytest.mark.parametrize(
  'key, text, value',
  [
    ('optim.lr', '3e-4', 3e-4),
    ('optim.lr', '1', 1.0),
    ('data.batch_size', '1_024', 1024),
    ('data.batch_size', '1e3', 1000),
    ('run.eval_only', 'True', True),
    ('run.eval_only', 'no', False),
    ('run.name', '12', '12'),
    ('loss.distill', 'none', 'none'),
    ('data.area', '(0.1, 1.0)', (0.1, 1.0)),
    ('data.area', '0.1, 1.0', (0.1, 1.0)),
    (
      'optim.groups',
      "(('head/.*', {'lr': 0.0}),)",
      (('head/.*', {'lr': 0.0}),),
    ),
    ('run.epochs', 'None', None),
    ('run.epochs', 'none', None),
    ('run.epochs', 'NULL', None),
    ('run.epochs', '', None),
    ('run.steps', '7', 7),
    ('eval.fewshot.dir', 'data', 'data'),
  ],
)
def test_texts_are_read_as_the_type_of_the_key(key, text, value):
  config = default_config()
  override(config, {key: text})
  assert get(config, key) == value
  assert type(get(config, key)) is type(value)


def test_values_of_a_sweep_need_no_text():
  config = default_config()
  override(config, {'optim.lr': 0.5, 'data.area': [0.2, 1], 'run.steps': 3})
  assert config.optim.lr == 0.5 and config.data.area == (0.2, 1)


def test_model_fields_are_literals_or_words():
  config = default_config()
  override(
    config,
    {
      'model.pool': 'map',
      'model.depth': '3',
      'model.area_sizes': '((1, 2), (1, 2))',
      'model.representation_size': 'None',
      'model.scan': 'true',
      'model.posemb': 'none',
    },
  )
  assert config.model.to_dict() == {
    'name': 'vit_s16',
    'module': '',
    'pool': 'map',
    'depth': 3,
    'area_sizes': ((1, 2), (1, 2)),
    'representation_size': None,
    'scan': True,
    'posemb': 'none',
  }


def test_the_model_and_its_fields_in_any_order():
  config = default_config()
  override(config, {'model.cls_depth': '1', 'model.name': 'cait_xxs24'})
  assert config.model.cls_depth == 1


@pytest.mark.parametrize(
  'given, key, others',
  [
    ('run.steps', 10, ('run.epochs', 'run.examples')),
    ('run.examples', 10, ('run.epochs', 'run.steps')),
    ('schedule.warmup_epochs', 1.5, ('schedule.warmup_steps',)),
    ('schedule.cooldown_epochs', 2.0, ()),
    ('eval.every_steps', 10, ('eval.every_epochs',)),
    ('log.checkpoint_steps', 10, ('log.checkpoint_minutes',)),
  ],
)
def test_one_unit_of_a_length_unsets_the_others(given, key, others):
  config = load_config(DIGITS, {'log.checkpoint_minutes': 5.0})
  override(config, {given: str(key)})
  assert get(config, given) == key
  assert all(get(config, other) is None for other in others)
  check(config)


def test_cooldown_steps_are_unset_to_zero():
  config = default_config()
  override(config, {'schedule.cooldown_steps': 5})
  override(config, {'schedule.cooldown_epochs': 1})
  assert config.schedule.cooldown_steps == 0
  override(config, {'schedule.cooldown_epochs': None})
  assert config.schedule.cooldown_epochs is None


def test_two_units_of_one_length_are_a_mistake():
  with pytest.raises(ConfigError, match='run.steps=3 and run.epochs=2 both'):
    override(default_config(), {'run.steps': '3', 'run.epochs': '2'})
  config = default_config()
  override(config, {'run.steps': '3', 'run.epochs': 'None'})
  assert (config.run.steps, config.run.epochs) == (3, None)


def test_image_sizes():
  config = default_config()
  override(config, {'data.image_size': '(256, 384)'})
  assert preprocessing(config).size == (256, 384)
  override(config, {'data.image_size': '96'})
  assert preprocessing(config).size == (96, 96)
  for text in ('big', '(1, 2, 3)', '0', 'None'):
    with pytest.raises(ConfigError, match=r'two as \(height, width\)'):
      override(config, {'data.image_size': text})


def test_eval_sets():
  config = default_config()
  override(config, {'eval.sets.val.split': 'validation'})
  assert config.eval.sets.val.split == 'validation'
  override(config, {'eval.sets': "{'a': {'split': 'test'}}"})
  assert config.eval.sets.to_dict() == {'a': {'split': 'test'}}
  with pytest.raises(ConfigError, match='FIELD one of source, dir, split'):
    override(config, {'eval.sets.a.spilt': 'x'})


# Overrides, and the words that the error message must have.
MISTAKES = [
  (
    'optim.learning_rate=1',
    'optim.learning_rate=1: there is no such key; the nearest is optim.lr, a '
    'number (float); the default is 0.001',
  ),
  (
    'modell.foo=1',
    'modell.foo=1: there is no such key; the nearest section is model, with '
    'the name of the model (model.name, a text',
  ),
  (
    'optim.lr=abc',
    'optim.lr=abc: must be a number (float); the default is 0.001',
  ),
  (
    'optim.lr=None',
    'optim.lr=None: must be a number (float); the default is 0.001',
  ),
  (
    'data.batch_size=1.5',
    'data.batch_size=1.5: must be a whole number (int); the default is 128',
  ),
  (
    'run.steps=many',
    'run.steps=many: must be a whole number or None (int); the default is None',
  ),
  (
    'run.eval_only=maybe',
    'run.eval_only=maybe: must be true or false (bool); the default is False',
  ),
  (
    'data.area=big',
    'data.area=big: must be a tuple such as (1, 2); the default is (0.05, 1.0)',
  ),
  (
    'model.dropuot=0.1',
    'model.dropuot=0.1: vit_ti16 has no such field; the nearest is '
    'model.dropout, float; the default is 0.0',
  ),
  ('model.name=vit_s17', "model 'vit_s17'"),
]


@pytest.mark.parametrize('given, words', MISTAKES)
def test_mistakes_name_the_nearest_key(given, words):
  key, _, text = given.partition('=')
  with pytest.raises(ValueError) as e:
    check(load_config(DIGITS, {key: text}))
  assert words in str(e.value) and '\n' not in str(e.value)


def test_flags_are_taken_out_of_a_command_line():
  rest, overrides = split_flags(
    [
      'main.py',
      '--config=configs/digits.py',
      '--config.optim.lr=1e-3',
      '-config.run.name=a=b',
      '--config.mesh.fsdp',
      '-1',
      '--config.run.eval_only',
      '--config.log.overview',
      'false',
      '--config.run.epochs=',
      '--workdir=w',
      '--config.optim.lr',
      '2e-3',
    ]
  )
  assert rest == ['main.py', '--config=configs/digits.py', '--workdir=w']
  assert overrides == {
    'optim.lr': '2e-3',
    'run.name': 'a=b',
    'mesh.fsdp': '-1',
    'run.eval_only': 'true',
    'log.overview': 'false',
    'run.epochs': '',
  }
  for words in (['--config.optim.lr'], ['--config.optim.lr', '--workdir=w']):
    with pytest.raises(ConfigError, match=r'write --config.optim.lr=VALUE'):
      split_flags(words)


@pytest.mark.parametrize(
  'text, words',
  [
    ('c.optim.learning_rate = 1', 'recipe.py, line 4: .*learning_rate'),
    ("raise ValueError('unknown argument')", '^unknown argument$'),
    ('c.optim.lr = {}', 'recipe.py, line 4'),
    ('return 3', 'must return a ConfigDict'),
    ('c.optim.lr = = 1', 'recipe.py'),
  ],
)
def test_a_mistake_in_a_recipe_names_its_line(tmp_path, text, words):
  path = tmp_path / 'recipe.py'
  path.write_text(
    'from vit_jax.recipe.keys import default_config\n'
    f'def get_config(arg=None):\n  c = default_config()\n  {text}\n  return c\n'
  )
  with pytest.raises(ConfigError, match=words):
    load_config(str(path))


def test_no_recipe(tmp_path):
  with pytest.raises(ConfigError, match='there is no such recipe'):
    load_config(str(tmp_path / 'no.py'))
  (tmp_path / 'x.py').write_text('')
  with pytest.raises(ConfigError, match='no function get_config'):
    load_config(str(tmp_path / 'x.py'))


PROGRAMS = ('main', 'ablate')


@pytest.mark.parametrize('program', PROGRAMS)
def test_programs_report_one_line(program, tmp_path):
  """The last line says what is wrong, and nothing is written."""
  config = DIGITS if program == 'main' else f'{ROOT}/configs/finetune.py'

  def fails(*args):
    result = run_python(
      '-m',
      f'vit_jax.{program}',
      f'--config={config}',
      f'--workdir={tmp_path / "w"}',
      *args,
    )
    assert result.returncode == 1
    assert not (tmp_path / 'w').exists()
    assert 'Traceback' not in result.stderr
    return result.stderr.strip().splitlines()[-1]

  assert fails('--config.modell.foo=1').startswith('error: modell.foo=1: ')
  # A space may replace the equals sign.
  assert fails('--config.optim.learning_rate', '1') == (
    'error: optim.learning_rate=1: there is no such key; the nearest is '
    'optim.lr, a number (float); the default is 0.001'
  )


def test_fields_of_the_model_reach_every_program(tmp_path):
  """ablate takes a field of the model that the recipe does not set."""
  from vit_jax.ablation.plan import make_plan

  _, overrides = split_flags(['--config.model.dropout', '0.1'])
  plan = make_plan(
    f'{ROOT}/configs/finetune.py:b16,cifar10', tmp_path, 1, overrides
  )
  assert all(run.config.model.dropout == 0.1 for run in plan)


def test_aot_reports_one_line(capsys):
  code = parser.main(
    ['aot', f'--config={DIGITS}', '--topology=v3-8', '--config.optim.lr=abc']
  )
  assert code == 1
  assert capsys.readouterr().err.strip().splitlines()[-1] == (
    'error: optim.lr=abc: must be a number (float); the default is 0.001'
  )
