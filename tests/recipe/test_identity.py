"""A run that goes on has the classes and the examples that it began with."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.data.helpers import write_images
from tests.helpers import tiny_config
from vit_jax import evaluate, train
from vit_jax.cli import parser
from vit_jax.data.classes import ClassMismatch, match_classes
from vit_jax.data.identity import data_identity, describe_list
from vit_jax.data.sources.opening import open_source
from vit_jax.inference.loading import load_classifier
from vit_jax.parallel import agreement
from vit_jax.recipe.identity import open_data
from vit_jax.recipe.inputs import open_eval_sets
from vit_jax.recipe.keys import ConfigError
from vit_jax.weights import load_pretrained

CLASSES = {'ant': 8, 'bee': 8, 'cat': 8}


def recipe(data, **keys):
  return tiny_config(
    run=dict(steps=2),
    data=dict(
      source='folder', dir=str(data), num_classes=None, crop='resize', **keys
    ),
    log=dict(keep_latest=2),
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(folder, workdir) of a run with three classes."""
  root = tmp_path_factory.mktemp('identity')
  write_images(root / 'data', CLASSES)
  config = recipe(root / 'data')
  config.data.batch_size = 8
  train.train_and_evaluate(config, root / 'run')
  return root / 'data', root / 'run'


@pytest.fixture
def copies(trained, tmp_path):
  """Copies of them, and the recipe of the run."""
  for path in trained:
    shutil.copytree(path, tmp_path / path.name)
  config = recipe(tmp_path / 'data')
  config.data.batch_size = 8
  return tmp_path / 'data', tmp_path / 'run', config


def opened(config, workdir):
  """The data of a run and what is said about it."""
  said = []
  return open_data(config, workdir, said.append), '\n'.join(said)


# --- Lists of classes -------------------------------------------------------


def test_match_classes():
  match = lambda own, reference: match_classes(own, reference, 'DATA', 'MODEL')
  assert match(['a', 'b'], ['a', 'b']).numbers is None
  assert match(['cafe\u0301'], ['caf\u00e9']).message == ''  # NFD and NFC
  assert match(['b', 'a'], ['a', 'b']).numbers == (1, 0)
  some = match(['c', 'a'], ['a', 'b', 'c'])
  assert some.numbers == (2, 0) and '2 of its 3 classes' in some.message
  assert match(['a', 'a'], ['a', 'a']).numbers is None
  many = [f'class {i}' for i in range(1000)]
  for own in (['a', 'x'], ['a', 'b', 'c'], ['a', 'a'], ['x', 'y']):
    with pytest.raises(ClassMismatch):
      match(own, ['a', 'b'])
  with pytest.raises(ClassMismatch) as e:
    match([*many[:500], 'new', *many[501:]], many)
  assert "class 500 is 'new' in DATA, 'class 500' in MODEL" in str(e.value)
  assert 'not in the other: new' in str(e.value) and len(str(e.value)) < 800


def test_identity_shows_the_first_difference(tmp_path):
  root = write_images(tmp_path / 'a', {'x': 30, 'y': 30})
  shutil.copytree(root, tmp_path / 'b')
  read = lambda name: data_identity(
    open_source('folder', split='train', data_dir=str(tmp_path / name))
  )
  assert read('a') == read('b')  # whatever the directory is called
  (tmp_path / 'b' / 'x' / '3.jpg').write_bytes(b'other')
  a, b = read('a'), read('b')
  assert a['examples'] == b['examples'] and a['classes'] == b['classes']
  differing = [x for x, y in zip(a['files'], b['files'], strict=True) if x != y]
  assert len(differing) == 1 and differing[0].startswith('x/3.jpg, ')
  lines = [str(i) for i in range(10_000)]
  assert len(describe_list(lines)) == 64 and describe_list([]) == []
  changed = describe_list([*lines[:7000], 'x', *lines[7001:]])
  assert sum(map(str.__ne__, describe_list(lines), changed)) == 1


def test_processes_name_the_first_class_or_file_that_differs(tmp_path):
  """What `agreement` says of two copies with as many images of as many classes.

  `tests/faults` runs whole processes.
  """
  root = write_images(tmp_path / 'a', {'cat': 3, 'dog': 3})
  facts = lambda path: dict(
    agreement._flatten(
      data_identity(open_source('folder', split='train', data_dir=str(path)))
    )
  )
  first = facts(root)
  for change, says in (
    (
      lambda p: (p / 'dog').rename(p / 'wolf'),
      'classes[1] is wolf, in process',
    ),
    (lambda p: (p / 'dog' / '1.jpg').write_bytes(b'x'), 'dog/1.jpg, 1 bytes'),
    (lambda p: (p / 'dog' / '1.jpg').unlink(), 'files['),
  ):
    shutil.rmtree(tmp_path / 'b', ignore_errors=True)
    shutil.copytree(root, tmp_path / 'b')
    change(tmp_path / 'b')
    assert says in agreement._first_difference(facts(tmp_path / 'b'), first)
  assert not agreement._first_difference(facts(root), first)


# --- Resuming ---------------------------------------------------------------


def test_the_same_data_elsewhere_goes_on(copies):
  data, run, config = copies
  data.rename(data.with_name('moved'))
  config.data.dir = str(data.with_name('moved'))
  result, said = opened(config, run)
  assert result.num_classes == 3 and not said


def test_a_renamed_class_stops_every_way_of_going_on(copies, tmp_path, capsys):
  data, run, config = copies
  (data / 'cat').rename(data / 'wolf')
  message = r"class 2 is 'wolf' in .*, 'cat' in .*run"
  with pytest.raises(ConfigError, match=message):
    train.train_and_evaluate(config, run)  # resume
  config.run.eval_only = True
  with pytest.raises(ConfigError, match=message):
    train.train_and_evaluate(config, run)
  config.run.eval_only = False
  for key in ('resume', 'pretrained'):
    other = recipe(data)
    other.run[key] = str(run)
    with pytest.raises(ConfigError, match=message) as e:
      open_data(other, tmp_path / 'new', print)
    assert 'ant, bee, wolf' in str(e.value) and 'ant, bee, cat' in str(e.value)
  with pytest.raises(ValueError, match='not in the other: wolf'):
    evaluate(run, data)
  code = parser.main(
    [
      *('finetune', '--data', str(data), '--weights', str(run)),
      *('--workdir', str(tmp_path / 'w'), '--batch', '8', '--image-size', '16'),
    ]
  )
  error = capsys.readouterr().err
  assert code == 1 and "--match-classes='new'" in error
  assert 'data.match_classes' not in error


def test_numbers_override_names(copies):
  data, run, config = copies
  (data / 'cat').rename(data / 'wolf')
  config.data.match_classes, config.data.may_change = 'numbers', True
  result, said = opened(config, run)
  assert result.source.class_names == ['ant', 'bee', 'wolf']
  assert 'although the names differ' in said and 'were others' in said
  assert evaluate(run, data, match_classes='numbers')['examples'] == 24


def test_some_of_the_classes_keep_their_numbers(copies):
  data, run, config = copies
  shutil.rmtree(data / 'bee')
  result, said = opened(config, run)
  assert result.num_classes == 3 and '2 of its 3 classes' in said
  for source in (result.source, *result.eval_sets.values()):
    assert source.class_names == ['ant', 'bee', 'cat']
    labels = {source[i]['id'][:3]: source[i]['label'] for i in range(2)}
    assert set(labels.items()) <= {('ant', 0), ('cat', 2)}
  images, labels = open_source(
    'folder', split='train', data_dir=str(data)
  ).arrays()
  assert result.source.arrays()[1].tolist() == [2 * x for x in labels]
  np.testing.assert_array_equal(result.source.arrays()[0], images)


def test_changed_examples_stop_a_run_that_goes_on(copies):
  data, run, config = copies
  (data / 'ant' / '0.jpg').rename(data / 'ant' / 'new.jpg')  # as many as before
  with pytest.raises(ConfigError, match='training examples .* were others'):
    train.train_and_evaluate(config, run)
  config.run.eval_only = True
  assert train.train_and_evaluate(config, run)['results']
  config.run.eval_only, config.data.may_change = False, True
  assert 'goes on with the changed data' in opened(config, run)[1]


# --- Other weights ----------------------------------------------------------


def test_other_classes_get_a_new_head(copies, tmp_path):
  """As many classes as before, and none of them the same."""
  _, run, _ = copies
  data = write_images(tmp_path / 'plants', {'ash': 8, 'fir': 8, 'oak': 8})
  config = recipe(data)
  config.data.batch_size, config.run.steps = 8, 1
  config.run.pretrained = str(run)
  result, said = opened(config, tmp_path / 'new')
  assert result.new_head and 'none of the classes' in said
  model = load_classifier(run).model
  for new_head in (False, True):
    variables, _ = load_pretrained(model, run, 16, new_head=new_head)
    assert np.any(variables['params']['cls'])
    assert np.any(variables['params']['head']['kernel']) != new_head


def test_a_run_that_began_with_a_new_head_goes_on(copies):
  _, run, config = copies
  config.run.pretrained, config.data.match_classes = str(run), 'new'
  result, _ = opened(config, run)
  assert not result.new_head  # the workdir has the head already


def test_eval_sets_follow_the_names_of_the_model(trained, tmp_path):
  data, _ = trained
  config = recipe(data)
  write_images(tmp_path / 'more', {'cat': 2, 'ant': 1})
  config.eval.sets = {'more': {'dir': str(tmp_path / 'more'), 'split': 'train'}}
  config.data.holdout = 0.0
  said = []
  names = sorted(CLASSES)
  source = open_eval_sets(config, 3, names, said.append)['more']
  assert sorted(source[i]['label'] for i in range(3)) == [0, 2, 2]
  assert '2 of its 3 classes' in said[0]
  write_images(tmp_path / 'more', {'dog': 1})  # three classes again
  with pytest.raises(ConfigError, match="(?s)'more': .*not in the other: dog"):
    open_eval_sets(config, 3, names, said.append)


def test_nothing_held_out_evaluates_nothing(trained, tmp_path):
  config = recipe(trained[0], holdout=0.0)
  config.data.batch_size = 8
  result, said = opened(config, tmp_path)
  assert result.eval_sets == {} and len(result.source) == 24
  assert 'nothing is evaluated' in said
  config.data.holdout = 0.1
  assert set(opened(config, tmp_path)[0].eval_sets) == {'test'}


def test_one_class_is_nothing_to_learn(tmp_path):
  """Such as a folder around the folders of classes, which is taken for one."""
  write_images(tmp_path / 'in', {'images/a': 4, 'images/b': 4, 'notes': 0})
  with pytest.raises(ConfigError, match="only the class 'images', so there is"):
    opened(recipe(tmp_path / 'in'), tmp_path / 'run')


# --- Names of the outputs ---------------------------------------------------


def test_names_given_for_the_outputs(trained, caplog):
  _, run = trained
  load = lambda *names: load_classifier(run, classes=names).classes
  assert load('cat', 'ant', 'bee') == ['ant', 'bee', 'cat']  # not relabelled
  assert 'in another order' in caplog.text
  assert load('ant', 'bee', 'dog') == ['ant', 'bee', 'dog']
  assert load('n1', 'n2', 'n3') == ['n1', 'n2', 'n3']
  assert "such as 'ant' by 'n1'" in caplog.text
  with pytest.raises(ClassMismatch, match="'cat' is given for output 0"):
    load('cat', 'bee', 'dog')


def test_the_orientation_is_stored(trained):
  _, run = trained
  preprocessing = load_classifier(run).preprocessing
  assert preprocessing.upright and preprocessing.to_json()['upright']
  earlier = dataclasses.asdict(preprocessing)
  del earlier['upright']  # as version 0.1.0 wrote it
  assert not type(preprocessing).from_json(earlier).upright
