"""vit-jax end to end on a tiny folder of images, and on bad input."""

import csv
import itertools
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from tests.helpers import ROOT
from vit_jax import create_model
from vit_jax.cli import options, parser
from vit_jax.inference.loading import load_classifier
from vit_jax.weights import read, save_weights
from vit_jax.weights.steps import load_params

CLASSES = ('blue', 'green', 'red')
TINY = dict(patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32)
SET = [x for k, v in TINY.items() for x in ('--set', f'{k}={v}')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three classes of small JPEGs that differ in color."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', 8), ('test', 3)):
    for i, name in enumerate(CLASSES):
      (root / split / name).mkdir(parents=True)
      for j in range(count):
        image = rng.integers(0, 60, (24 + j, 30, 3), np.uint8)
        image[..., 2 - i] += 180
        Image.fromarray(image).save(root / split / name / f'{j}.jpg')
  return root


@pytest.fixture(scope='module')
def workdir(folder, tmp_path_factory):
  """The workdir of `vit-jax finetune` after two steps on the folder."""
  path = tmp_path_factory.mktemp('runs') / 'colors'
  code = parser.main(
    [
      'finetune',
      '--model',
      'vit_ti16',
      '--data',
      str(folder),
      '--workdir',
      str(path),
      '--steps',
      '2',
      '--batch-size',
      '8',
      '--image-size',
      '16',
      *SET,
    ]
  )
  assert code == 0
  return str(path)


def run(capsys, *argv):
  """(exit code, output, last line of the errors)."""
  capsys.readouterr()
  try:
    code = parser.main([str(x) for x in argv])
  except SystemExit as e:  # argparse
    code = e.code
  out, err = capsys.readouterr()
  return code, out, err.strip().split('error: ')[-1]


def test_help_is_light():
  """No JAX is imported to print help, of the program or of a command."""
  for argv in (['--help'], ['finetune', '--help']):
    done = subprocess.run(
      [
        sys.executable,
        '-c',
        'import sys; from vit_jax.cli import parser\n'
        f'try: parser.main({argv})\nexcept SystemExit: pass\n'
        'assert "jax" not in sys.modules and "numpy" not in sys.modules',
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'usage: vit-jax' in done.stdout


def test_usage_errors_are_one_line(capsys):
  code, out, error = run(capsys, 'predict')
  assert code == 1 and not out and 'weights' in error and '\n' not in error
  code, _, error = run(capsys, 'fly')
  assert code == 1 and "'fly'" in error and 'finetune' in error


def test_models(capsys):
  code, out, _ = run(capsys, 'models', 'vit_ti*', '--json')
  rows = {row['name']: row for row in json.loads(out)}
  assert code == 0 and set(rows) == {
    'vit_ti8',
    'vit_ti14',
    'vit_ti16',
    'vit_ti32',
  }
  assert rows['vit_ti16']['parameters'] == 5_717_416
  assert rows['vit_ti16']['gmacs'] == pytest.approx(1.254, abs=1e-3)
  code, out, _ = run(capsys, 'models', 'vit_ti16')
  assert '5,717,416' in out and '1.25' in out and 'augreg/Ti_16' in out
  code, _, error = run(capsys, 'models', 'resnext')
  assert code == 1 and "'resnext'" in error


def test_info_of_a_model(capsys):
  code, out, _ = run(
    capsys,
    'info',
    'aa_vit_ti16',
    '--json',
    '--num-classes',
    '10',
    '--set',
    'area_sizes=((1, 2), (2, 2))',
  )
  result = json.loads(out)
  assert code == 0 and result['areas'] == [393, 1 + 14 * 14 + 2 * 14 * 13 + 169]
  layers = {x['name']: x['shape'] for x in result['layers']}
  assert layers['head/kernel'] == [192, 10]
  assert result['parameters'] == sum(x['size'] for x in result['layers'])
  code, out, _ = run(capsys, 'info', 'vit_ti16', '--image-size', '32x48')
  assert code == 0 and '1x7x192' in out and '32x48' in out


@pytest.mark.parametrize(
  'argv, words',
  [
    (['info', 'vit_b17'], ['vit_b17', 'vit_b16']),
    (['info', 'vit_b16', '--set', 'dephth=3'], ['dephth', 'depth']),
    (['info', 'vit_b16', '--set', 'depth'], ['FIELD=VALUE']),
    (['info', 'nothing.npz'], ['nothing.npz', 'no such file']),
    (['finetune', '--model', 'vit_ti16', '--data', 'nowhere'], ['nowhere']),
    (['predict', 'nowhere', 'x.jpg'], ['nowhere']),
    (['attention', 'x', '-o', 'x.gif'], ['.png']),
  ],
)
def test_wrong_arguments(capsys, argv, words):
  code, _, error = run(capsys, *argv)
  assert code == 1 and all(w in error for w in words), error


@pytest.mark.parametrize(
  'words, says',
  [
    (['--batch-size', '4'], '--batch-size: 8 there, 4 now'),
    (['--layer-decay', '0'], '--layer-decay=0.0; must be in (0, 1]'),
    (
      ['--set', 'patch_size=64'],
      '--set patch_size=64 is larger than the image',
    ),
    (['--steps', '3'], 'by --more-epochs=N'),
    (['--seed', '3'], 'give it as --weights='),
  ],
)
def test_finetune_names_its_own_options(capsys, folder, workdir, words, says):
  """Errors of the recipe are told in the words of the command."""
  code, _, error = run(
    capsys,
    *['finetune', '--model', 'vit_ti16', '--data', folder],
    *['--workdir', workdir, '--steps', '2', '--batch-size', '8'],
    *['--image-size', '16', *SET, *words],
  )
  assert code == 1 and says in error, error
  assert not re.search(r'\b(data|run|optim|model)\.\w', error), error


def test_messages_in_the_words_of_a_command():
  words = {'model.': '--set ', 'model.name': '--model', 'shards=': '--shards='}
  for message, says in (
    ('model.name is wrong', '--model is wrong'),
    ('set --config.model.depth=3.', 'set --set depth=3.'),
    ('this is no model. Give one', 'this is no model. Give one'),
    ('shards=0 of 4 shards', '--shards=0 of 4 shards'),
    ('my_model.name, submodel.name', 'my_model.name, submodel.name'),
  ):
    assert options.in_options(message, words) == says
  assert options.in_options('data.dir', {}) == 'data.dir'


def test_finetune_says_what_to_do_next(capsys, folder, workdir):
  """A finished run is only evaluated again, and says the same."""
  code, out, _ = run(
    capsys,
    'finetune',
    '--model',
    'vit_ti16',
    '--data',
    folder,
    '--workdir',
    workdir,
    '--steps',
    '2',
    '--batch-size',
    '8',
    '--image-size',
    '16',
    *SET,
  )
  assert code == 0 and f'vit-jax predict {workdir} IMAGE' in out
  assert 'checkpoints/2: the last' in out and 'which predict takes' in out
  accuracy = json.loads((pathlib.Path(workdir) / 'summary.json').read_text())[
    'results'
  ]['test']['top1']
  assert f'accuracy: {accuracy:.2%} of 9 test images' in out
  _, metadata = load_params(workdir)
  assert metadata.classes == tuple(CLASSES)


def test_predict(capsys, folder, workdir, tmp_path):
  """Probabilities are those of the model on the image; all formats agree."""
  image = folder / 'test' / 'red' / '0.jpg'
  code, out, _ = run(
    capsys,
    'predict',
    workdir,
    folder / 'test',
    '-k',
    '3',
    '--batch-size',
    '4',
    '--json',
  )
  results = {r['image']: r['predictions'] for r in json.loads(out)}
  assert code == 0 and len(results) == 9
  one = {p['class']: p['probability'] for p in results[str(image)]}
  assert set(one) == set(CLASSES)

  model = create_model('vit_ti16', 3, **TINY)
  arrays = read(workdir).arrays
  classifier = load_classifier(workdir)
  np.testing.assert_array_equal(
    classifier.variables['params']['cls'], arrays['params/cls']
  )
  pixels = np.asarray(Image.open(image)).astype(np.float32)
  resized = jax.image.resize(pixels, (16, 16, 3), 'linear', antialias=False)
  logits, _ = model.apply(
    classifier.variables, (np.rint(resized)[None] - 127.5) / 127.5, train=False
  )
  expected = jax.nn.softmax(logits[0])
  for i, name in enumerate(CLASSES):
    assert one[name] == pytest.approx(float(expected[i]), abs=2e-3)

  path = tmp_path / 'out.csv'
  code, out, _ = run(capsys, 'predict', workdir, image, f'--csv={path}')
  with open(path) as file:
    rows = list(csv.DictReader(file))
  assert code == 0 and not out and [r['rank'] for r in rows] == ['1', '2', '3']
  assert {
    r['class']: pytest.approx(float(r['probability']), abs=1e-5) for r in rows
  } == one
  code, out, _ = run(capsys, 'predict', workdir, image, '-k', '1')
  assert out.split('\n')[0] == str(image)
  assert out.split()[-1] == results[str(image)][0]['class']


def test_an_image_that_is_none_is_named_and_the_rest_done(
  capsys, folder, workdir, tmp_path
):
  bad = tmp_path / 'bad.jpg'
  bad.write_bytes(b'not an image')
  good = folder / 'test' / 'red' / '1.jpg'
  capsys.readouterr()
  code = parser.main(
    [
      'predict',
      workdir,
      str(bad),
      str(good),
      'gone.jpg',
      '--json',
      '--batch-size',
      '1',
    ]
  )
  out, err = capsys.readouterr()
  assert code == 1 and [r['image'] for r in json.loads(out)] == [str(good)]
  assert f'{bad}: ' in err and 'gone.jpg: no such file' in err
  assert err.strip().endswith('error: 2 of 3 images could not be read')
  code, _, error = run(capsys, 'predict', workdir, tmp_path / 'empty.d', bad)
  (tmp_path / 'empty').mkdir()
  code, _, error = run(capsys, 'predict', workdir, tmp_path / 'empty')
  assert code == 1 and 'has no images' in error


def test_conversions_are_exact(capsys, workdir, folder, tmp_path):
  """workdir -> safetensors -> npz -> workdir: same bits, names, predictions."""
  chain = [
    workdir,
    tmp_path / 'x.safetensors',
    tmp_path / 'x.npz',
    tmp_path / 'again',
  ]
  for source, target in itertools.pairwise(chain):
    code, out, error = run(capsys, 'convert', source, target)
    assert code == 0 and 'vit_ti16' in out, error
  first, last = (load_classifier(str(x)) for x in (chain[0], chain[-1]))
  jax.tree.map(np.testing.assert_array_equal, first.variables, last.variables)
  assert last.metadata() == first.metadata()
  assert last.classes == list(CLASSES) and last.preprocessing.size == (16, 16)
  code, out, _ = run(capsys, 'info', chain[1])
  assert 'model: vit_ti16 ' in out and 'blocks.1.attn.qkv.weight' in out
  assert '3 classes: blue, green, red' in out and 'image size: 16x16' in out
  code, _, error = run(capsys, 'convert', workdir, chain[-1])
  assert code == 1 and 'not empty' in error
  code, _, error = run(capsys, 'convert', workdir, tmp_path / 'x.h5')
  assert code == 1 and '.safetensors' in error
  # A converted workdir can be trained on.
  code, out, _ = run(
    capsys,
    'finetune',
    '--weights',
    chain[-1],
    '--data',
    folder,
    '--workdir',
    tmp_path / 'more',
    '--steps',
    '1',
    '--batch-size',
    '8',
    '--image-size',
    '16',
    '--head-only',
  )
  assert code == 0 and 'accuracy' in out
  frozen = read(tmp_path / 'more')[0]
  for name, x in read(workdir)[0].items():
    if name.startswith('params/Transformer'):
      np.testing.assert_array_equal(x, frozen[name], err_msg=name)


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """A file that does not say its model: vit_mu16, 7 classes, 32 px."""
  model = create_model('vit_mu16', 7)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
    )
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32), shapes
  )
  path = tmp_path_factory.mktemp('released') / 'mu16.safetensors'
  save_weights(variables, model, path)
  return path


def test_weights_of_another_model_are_told_in_a_line(capsys, folder, workdir):
  image = folder / 'test' / 'red' / '0.jpg'
  for name in ('mixer_s16', 'vit_s8', 'vit_b17'):
    code, _, error = run(capsys, 'predict', workdir, image, '--model', name)
    assert code == 1 and '\n' not in error, error
    assert name == 'vit_b17' or 'vit_ti16' in error, error


def test_pixels_that_are_cut_off_are_told(capsys, folder, workdir):
  image = folder / 'test' / 'red' / '0.jpg'
  assert (
    parser.main(['predict', workdir, str(image), '--image-size', '18x23']) == 0
  )
  error = capsys.readouterr().err
  assert '18x23 px are no multiple of the patch of 8x8' in error
  assert 'the last 2 rows and the last 7 columns of pixels' in error
  assert '16x16 and 24x24' in error


def test_the_only_model_that_fits_a_file_needs_no_name(
  capsys, released, folder
):
  image = folder / 'test' / 'red' / '0.jpg'
  code, without_name, _ = run(capsys, 'predict', released, image, '-k', '1')
  assert code == 0
  code, out, _ = run(capsys, 'info', released, '--json')
  assert json.loads(out)['fits'] == ['vit_mu16']
  # Image size and number of classes are those of the tensors.
  result = load_classifier(str(released), model='vit_mu16')
  assert result.preprocessing.size == (32, 32) and result.num_classes == 7
  code, out, _ = run(
    capsys, 'predict', released, image, '--model', 'vit_mu16', '-k', '1'
  )
  assert code == 0 and 'class ' in out and out == without_name


def test_class_names_of_a_file(capsys, released, folder, tmp_path):
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(f'kind {i}' for i in range(7)))
  argv = [
    'predict',
    released,
    folder / 'test' / 'red' / '0.jpg',
    '--model',
    'vit_mu16',
    '-k',
    '7',
    '--classes',
    names,
  ]
  code, out, _ = run(capsys, *argv)
  assert code == 0 and all(f'kind {i}' in out for i in range(7))
  names.write_text('["a", "b"]')
  code, _, error = run(capsys, *argv)
  assert code == 1 and '2 class names' in error and '7 classes' in error


class _Evil:
  """Unpickling it would make a directory."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    import os

    return os.mkdir, (self.path,)


def _bad_file(kind, released, tmp_path):
  """(file, words that the message must have)."""
  arrays = read(released).arrays
  path = tmp_path / 'bad.npz'
  if kind == 'truncated':
    path = tmp_path / 'bad.safetensors'
    path.write_bytes(released.read_bytes()[:-100])
    return path, ['truncated']
  if kind == 'truncated npz':
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-100])
    return path, ['truncated']
  if kind == 'text':
    path.write_text('hello')
    return path, ['text']
  if kind == 'pickle':
    path = tmp_path / 'bad.pth'
    path.write_bytes(pickle.dumps({'x': _Evil(str(tmp_path / 'evil'))}, 2))
    return path, ['mkdir']
  if kind == 'other architecture':
    other = create_model(
      'mixer_s32', 3, width=16, depth=1, tokens_mlp_dim=8, mlp_dim=8
    )
    shapes = jax.eval_shape(
      lambda: other.init(
        jax.random.key(0), np.zeros((1, 64, 64, 3)), train=False
      )
    )
    save_weights(
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), other, path
    )
    return path, ['MixerBlock_0', 'ViT']
  name = 'blocks.0.norm1.weight'
  if kind == 'missing':
    del arrays[name]
    words = ['missing', name, '(32,)']
  elif kind == 'extra':
    arrays['blocks.0.extra'] = np.zeros((2, 3), np.float32)
    words = ['left over', 'blocks.0.extra', '(2, 3)']
  else:
    arrays[name] = np.zeros((31,), np.float32)
    words = [name, '(31,)', '(32,)']
  np.savez(path, **arrays)
  return path, words


@pytest.mark.parametrize(
  'kind',
  [
    'truncated',
    'truncated npz',
    'text',
    'pickle',
    'other architecture',
    'missing',
    'extra',
    'shape',
  ],
)
def test_bad_weights(capsys, released, tmp_path, kind):
  path, words = _bad_file(kind, released, tmp_path)
  before = set(tmp_path.iterdir())
  for argv in (
    ['convert', path, tmp_path / 'out.npz', '--model', 'vit_mu16'],
    ['export', path, tmp_path / 'out.stablehlo', '--model', 'vit_mu16'],
    ['info', path, '--model', 'vit_mu16'],
  ):
    code, out, error = run(capsys, *argv)
    assert code == 1 and not out
    assert path.name in error and all(w in error for w in words), error
  assert set(tmp_path.iterdir()) == before  # no incomplete output, no code run


def test_attention(capsys, folder, workdir, tmp_path):
  images = folder / 'test' / 'red'
  code, out, error = run(
    capsys, 'attention', workdir, images, '-o', tmp_path / 'r.png', '--json'
  )
  assert code == 0, error
  maps = np.asarray(json.loads(out)['rollout'])
  assert maps.shape == (3, 2, 2)
  np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
  with Image.open(tmp_path / 'r.png') as picture:
    assert picture.size[1] > 300
  code, out, _ = run(
    capsys,
    'attention',
    workdir,
    images,
    '-o',
    tmp_path / 'd.png',
    '--distance',
    '--json',
  )
  distance = json.loads(out)
  assert np.shape(distance['distance']) == (2, 2)
  assert 0 < np.max(distance['distance']) < 8 * 2**0.5
  code, out, _ = run(
    capsys,
    'attention',
    workdir,
    images,
    '-o',
    tmp_path / 's.png',
    '--similarity',
    '--json',
  )
  similarity = np.asarray(json.loads(out)['similarity'])
  np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
  code, out, error = run(
    capsys,
    'attention',
    workdir,
    images,
    '-o',
    tmp_path / 'c.png',
    '--similarity',
    '--compare',
    workdir,
    '--json',
  )
  curves = json.loads(out)['similarity']
  assert len(curves) == 2
  for curve in curves.values():
    np.testing.assert_allclose(curve, [similarity[0, 1]], rtol=1e-5)
  code, _, error = run(
    capsys,
    'attention',
    workdir,
    images,
    '-o',
    tmp_path / 'x.png',
    '--compare',
    workdir,
  )
  assert code == 1 and '--compare goes with --similarity' in error
  for kind in ('--posemb', '--filters'):
    code, out, error = run(
      capsys, 'attention', workdir, '-o', tmp_path / f'{kind}.png', kind
    )
    assert code == 0 and (tmp_path / f'{kind}.png').exists(), error
  code, _, error = run(capsys, 'attention', workdir, '-o', tmp_path / 'x.png')
  assert code == 1 and 'needs images' in error
  one = [workdir, images / '0.jpg', '-o', tmp_path / 'last.jpg']
  code, out, error = run(
    capsys,
    *['attention', *one, '--layer', '-1', '--head', '2', '--json'],
    *['--discard', '0.5', '--fill-outliers', '--overlays', tmp_path / 'shaded'],
  )
  assert code == 0, error
  assert np.shape(json.loads(out)['rollout']) == (1, 2, 2)
  assert (tmp_path / 'last.jpg').read_bytes().startswith(b'\xff\xd8')
  (shaded,) = (tmp_path / 'shaded').iterdir()
  with Image.open(shaded) as a, Image.open(images / '0.jpg') as b:
    assert shaded.name == '0-rollout.png' and a.size == b.size
  for wrong, words in (
    (['--layer', '3'], '--layer 3:3: the model has the layers 1 to 2'),
    (['--head', '9'], '--head 9: the layers have the heads 1 to 2'),
    (['--discard', '1'], '--discard 1.0: must be'),
    (['--distance', '--head', '1'], 'go with a rollout and not with'),
  ):
    code, _, error = run(capsys, 'attention', *one, *wrong)
    assert code == 1 and words in error


def test_fewshot(capsys, folder, workdir):
  """Even random features separate the colors."""
  code, out, error = run(
    capsys,
    'fewshot',
    workdir,
    '--data',
    folder,
    '--shots',
    '1',
    '5',
    '25',
    '--json',
  )
  result = json.loads(out)
  assert code == 0 and set(result) == {'1', '5'}, error
  assert result['5']['mean'] > 0.8 and len(result['5']['seeds']) == 3
  code, _, error = run(
    capsys, 'fewshot', workdir, '--data', folder, '--shots', '9'
  )
  assert code == 1 and '8 training images' in error


def test_fewshot_of_random_parameters(capsys):
  """The word none, data of a source, and two weights of the penalty."""
  small = {'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_dim': 16}
  command = [
    *('fewshot', 'none', '--source', 'digits', '--image-size', '16'),
    *('--train-split', 'train[:100]', '--test-split', 'test[:40]'),
    *('--shots', '1', '--l2', '1', '1024'),
    *(word for k, v in small.items() for word in ('--set', f'{k}={v}')),
  ]
  code, out, error = run(capsys, *command, '--model', 'vit_ti16')
  assert code == 0, error
  header, *rows = out.splitlines()
  assert header.split() == ['shots', 'l2', 'accuracy', 'of', 'each', 'choice']
  assert [row.split()[:2] for row in rows] == [['1', '1'], ['1', '1024']]
  code, _, error = run(capsys, *command)
  assert code == 1 and 'need a model: --model NAME' in error


def test_pack_and_finetune_on_it(capsys, folder, tmp_path):
  code, out, error = run(capsys, 'pack', folder, tmp_path / 'packed')
  assert code == 0 and 'train, 24 images of 3 classes in 1 file\n' in out, error
  from vit_jax.recipe.finetuning import folder_config

  config = folder_config('vit_ti16', '', str(tmp_path / 'packed'))
  assert config.data.source == 'packed'
  assert config.data.batch_size == 16  # for 24 images and 8 devices


# --- Images of every kind ---------------------------------------------------


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  """A folder with 34 images, two broken ones, and what is not to be read."""
  root = tmp_path_factory.mktemp('mixed')
  for i in range(34):
    Image.new('RGB', (20, 20), (7 * i, 90, 90)).save(root / f'{i:02}.bmp')
  (root / 'broken.jpg').write_bytes(b'\xff\xd8\xff not an image')
  Image.new('RGB', (8, 8)).save(root / 'page.eps')
  (root / 'page.eps').rename(root / 'page.jpg')
  (root / '.hidden').mkdir()
  Image.new('RGB', (20, 20)).save(root / '.hidden' / 'x.jpg')
  (root / 'folder.jpg').mkdir()
  (root / 'notes.txt').write_text('text')
  name = os.path.join(os.fsencode(root), b'caf\xe9.png')
  Image.new('RGB', (20, 20)).save(root / '00.png')
  os.rename(os.fsencode(root / '00.png'), name)
  return root


def test_predict_reads_any_folder(capsys, workdir, mixed, tmp_path, caplog):
  out = tmp_path / 'result.csv'
  code, _, error = run(capsys, 'predict', workdir, mixed, f'--csv={out}')
  assert code == 1 and error == '2 of 37 images could not be read'
  with open(out, newline='', encoding='utf-8') as file:
    rows = {row['image'] for row in csv.DictReader(file)}
  assert len(rows) == 35 and f'{mixed}/caf\\xe9.png' in rows
  assert '37 images; skipped: 1 .txt, 1 hidden' in caplog.text
  code, text, _ = run(capsys, 'predict', workdir, mixed, '--json')
  assert len(json.loads(text)) == 35


def test_predict_names_what_it_does_not_read(capsys, workdir, tmp_path):
  os.mkfifo(tmp_path / 'pipe.jpg')
  image = tmp_path / 'image.png'
  Image.new('RGB', (30, 20)).save(image)
  capsys.readouterr()
  argv = ['predict', workdir, str(tmp_path / 'pipe.jpg'), str(image)]
  assert parser.main([*argv, '--max-pixels', '599']) == 1
  error = capsys.readouterr().err
  assert 'pipe.jpg: a named pipe, not a regular file' in error
  assert 'image.png: 30 x 20 pixels are more than the limit of 599' in error


@pytest.mark.slow
def test_attention_skips_images_and_draws_pages(
  capsys, workdir, mixed, tmp_path
):
  code, text, error = run(
    capsys, 'attention', workdir, mixed, '-o', tmp_path / 'r.png', '--json'
  )
  assert code == 1 and error == '2 of 37 images could not be read'
  numbers = json.loads(text)
  assert len(numbers['images']) == len(numbers['rollout']) == 35
  pages = [str(tmp_path / 'r.png'), str(tmp_path / 'r-2.png')]
  assert numbers['files'] == pages and all(map(os.path.exists, pages))
  code, _, error = run(
    capsys, 'attention', workdir, mixed / 'page.jpg', '-o', tmp_path / 'x.png'
  )
  assert code == 1 and error == 'none of the 1 images can be read'


@pytest.mark.parametrize(
  'argv,words',
  [
    (
      'finetune --data x --batch-size 0',
      "--batch-size: '0' must be a whole number",
    ),
    ('finetune --data x --steps 0', "--steps: '0' must be"),
    ('finetune --data x --steps -3', "--steps: '-3' must be"),
    ('finetune --data x --image-size 0', "'0' is no image size"),
    ('finetune --data x --epochs 0', "--epochs: '0' must be a number above 0"),
    ('finetune --data x --lr nan', "--lr: 'nan' must be"),
    ('finetune --data x --holdout 1', "--holdout: '1' must be a fraction"),
    ('predict x y --batch-size 0', "--batch-size: '0' must be"),
    ('predict x y -k 0', "'0' must be"),
    ('pack x y --shards 0', "--shards: '0' must be"),
    ('fewshot x --data y --shots 0', "--shots: '0' must be"),
  ],
)
def test_numbers_that_cannot_be_are_refused(capsys, argv, words):
  code, _, error = run(capsys, *argv.split())
  assert code == 1 and words in error


def test_hints_name_options_of_the_command(capsys, folder, tmp_path):
  """No message of finetune names a key that is no option of it."""
  only_train = tmp_path / 'data'
  shutil.copytree(folder / 'train', only_train / 'train')
  base = ['finetune', '--model', 'vit_ti16', *SET, '--image-size', '16']
  base += ['--batch-size', '8', '--steps', '1', '--workdir', tmp_path / 'w']
  code, _, error = run(capsys, *base, '--data', only_train)
  assert code == 1 and '--holdout=0' in error and '--config.eval.sets' in error
  code, _, error = run(
    capsys, *base, '--data', folder, '--config.data.threads=0'
  )
  assert code == 1 and '--config.data.threads=0' in error
  code, _, error = run(capsys, *base, '--data', folder, '--config.data.x=0')
  assert code == 1 and 'data.x' in error


@pytest.mark.slow
def test_finetune_without_held_out_images(folder, tmp_path, capsys):
  """With --json, only the summary is on the standard output."""
  words = ['finetune', '--model', 'vit_ti16', *SET, '--image-size', '16']
  words += ['--data', folder / 'train', '--holdout', '0', '--steps', '1']
  words += ['--batch-size', '8', '--workdir', tmp_path / 'w', '--json']
  code = parser.main([str(word) for word in words])
  out, lines = capsys.readouterr()
  assert code == 0 and '24 training examples of 3 classes' in lines
  assert 'nothing is evaluated' in lines and 'accuracy: not known' in lines
  summary = json.loads(out)
  assert summary == json.loads((tmp_path / 'w' / 'summary.json').read_text())
  assert summary['results'] == {} and summary['step'] == 1


def test_pack_prints_what_it_understood(capsys, folder, tmp_path, caplog):
  labels = tmp_path / 'labels.csv'
  labels.write_text(
    'file;kind\n' + ''.join(f'train/blue/{i}.jpg;0{i % 2}\n' for i in range(8))
  )
  code, out, _ = run(
    capsys,
    *('pack', folder / 'train' / 'blue', tmp_path / 'out'),
    *('--labels', labels, '--label-column', 'kind', '--json'),
  )
  packed = json.loads(out)
  assert code == 0 and packed['output'] == str(tmp_path / 'out')
  assert packed['splits']['train'] == {
    'images': 8,
    'classes': 2,
    'files': ['train-00000-of-00001.array_record'],
    'left_out': 0,
    'reasons': {},
  }
  assert 'separated by semicolons, with a title line' in caplog.text
  assert "column 2: 2 class names, not numbers because of '00'" in caplog.text


def test_no_argument_prints_the_help_and_version_the_versions(capsys):
  code, out, _ = run(capsys)
  assert code == 0 and 'COMMAND' in out and 'evaluate' in out
  code, out, _ = run(capsys, '--version')
  assert code == 0
  assert re.match(r'vit_jax \d+\.\d+\.\d+ \(jax \d+\.\d+', out)


def test_options_stand_before_and_after_the_words(capsys):
  build = parser.build_parser()
  words = ['W', '--model', 'm', 'photos/', '-o', 'x.png']
  orders = (words, [*words[1:3], 'W', *words[4:], 'photos/'])
  first, last = (parser._parse(build, ['attention', *x]) for x in orders)
  assert vars(first) == vars(last) and first.command == 'attention'
  assert parser._parse(build, ['models']).pattern == '*'


def test_train_and_ablate_get_the_keys_of_both_spellings(monkeypatch, capsys):
  """They run the programs `vit_jax.main` and `vit_jax.ablate`."""
  seen = []
  for program in ('main', 'ablate'):
    monkeypatch.setattr(
      f'vit_jax.{program}.run',
      lambda args, keys: seen.append((args.config, args.workdir, keys)),
    )
  words = ['configs/x.py:b16', 'optim.lr=3e-4', '--workdir', 'runs/x']
  words += ['--config.data.dir=a b']
  for command in ('train', 'ablate'):
    assert run(capsys, command, *words)[0] == 0
    code, _, error = run(
      capsys, command, 'configs/x.py', 'lr', '--workdir', 'x'
    )
    assert code == 1 and 'lr: must have the form KEY=VALUE' in error
  keys = {'optim.lr': '3e-4', 'data.dir': 'a b'}
  assert seen == 2 * [('configs/x.py:b16', 'runs/x', keys)]


def test_more_epochs_is_a_key_of_the_recipe(monkeypatch, capsys):
  seen = []

  def check(config):
    seen.append(config.run.extend)
    raise ValueError('enough')

  monkeypatch.setattr('vit_jax.recipe.checks.check', check)
  words = ['train', f'{ROOT}/configs/digits.py', '--workdir', 'w']
  for more in ([], ['--more-epochs', '2.5']):
    assert run(capsys, *words, *more)[::2] == (1, 'enough')
  assert seen == [None, 2.5]
