"""The examples in the help of every command, executed.

A folder has what the examples name: images, runs, files of weights and recipes,
all of them tiny. The names of models in the examples are the real ones; their
files say that the models are smaller.
"""

import importlib
import importlib.util
import io
import pathlib
import shlex
import shutil
import tarfile

import numpy as np
from PIL import Image
import pytest

from vit_jax.cli import parser
from vit_jax.recipe.finetuning import HyperRule
from vit_jax.weights import hub

pytestmark = pytest.mark.slow

CLASSES = ('daisy', 'rose')
TINY = ('width=16', 'depth=2', 'num_heads=2', 'mlp_dim=32')
RECIPE = '''"""A small recipe under the name of a large one."""
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

def get_config(arg=None):
  c = default_config()
  c.run.steps = 4
  c.data.source, c.data.num_classes = 'synthetic', 4
  c.data.num_examples, c.data.image_size, c.data.crop = 4096, 16, 'none'
  c.data.batch_size = 16
  c.model.update(name='vit_ti16', patch_size=8, width=16, depth=1, num_heads=2,
                 mlp_dim=32)
  return c

def sweep(arg=None):
  return {name: {'optim.lr': lr, 'seeds': 1}
          for name, lr in (('small', 1e-3), ('large', 1e-2))}
'''
# What an example needs that a test does not have.
NOT_HERE = {
  'gs://': 'a bucket',
  'tfds:': 'a data set of TensorFlow Datasets',
  'vtab ': 'the data sets of VTAB in TensorFlow Datasets',
  # tests/report/test_scaling.py makes both from measures of an ablation.
  '--metric': 'the measures of an ablation',
}


def photo(seed):
  rng = np.random.default_rng(seed)
  return Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8))


def command(*words):
  assert parser.main([str(x) for x in words]) == 0


def finetune(model, workdir, *more):
  command(
    *('finetune', '--model', model, '--data', 'flowers', '--steps', '2'),
    *('--batch-size', '8', '--image-size', '32', '--workdir', workdir),
    *(x for field in TINY for x in ('--set', field)),
    *more,
  )


def write_tar(path, names):
  with tarfile.open(path, 'w') as tar:
    for i, name in enumerate(names):
      data = io.BytesIO()
      photo(i).save(data, 'JPEG')
      info = tarfile.TarInfo(name)
      info.size = len(data.getvalue())
      tar.addfile(info, io.BytesIO(data.getvalue()))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """The folder in which the examples are executed."""
  root = tmp_path_factory.mktemp('world')
  with pytest.MonkeyPatch.context() as m:
    m.chdir(root)
    for folder in ('flowers', 'more_flowers'):
      for i, name in enumerate(CLASSES):
        pathlib.Path(folder, name).mkdir(parents=True)
        for j in range(12):
          photo(100 * i + j).save(f'{folder}/{name}/{j}.jpg')
    pathlib.Path('photos').mkdir()
    for i in range(3):
      photo(i).save(f'photos/{i}.jpg')
    photo(9).save('photo.jpg')
    finetune('vit_b16', 'runs/vit')
    finetune('cait_xxs24', 'runs/cait')
    for name in ('flowers', 'teacher', 'a', 'b', 'scaling/one'):
      shutil.copytree('runs/vit', f'runs/{name}')
    steps = pathlib.Path('runs/flowers/checkpoints')
    (steps / '2').rename(steps / '500')
    command('convert', 'runs/vit', '-o', 'ViT-B_16.npz')
    finetune('vit_s14_dinov2', 'runs/dino', '--image-size', '28')
    command('convert', 'runs/dino', '-o', 'vit_s14.safetensors')
    shutil.rmtree('runs/dino')
    pathlib.Path('configs').mkdir()
    for name in examples_of_recipes():
      large = 'vit_l16' in name or 'vit_b16' in name  # of aot, for many chips
      batch = 'c.data.batch_size = 128' if large else 'c.data.batch_size = 16'
      pathlib.Path(name).write_text(
        RECIPE.replace('c.data.batch_size = 16', batch)
      )
    names = [f'{i}.JPEG' for i in range(4)]
    write_tar('ILSVRC2012_img_val.tar', names)
    pathlib.Path('val_labels.txt').write_text('0\n1\n1\n0\n')
    write_tar(
      'ILSVRC2012_train.tar', [f'{c}/{i}.JPEG' for c in CLASSES for i in (1, 2)]
    )
  return root


def examples():
  """(command, its example) of all commands."""
  for name in parser.COMMANDS:
    module = importlib.import_module(f'vit_jax.cli.{name.replace("-", "_")}')
    for example in parser.example_commands(module.__doc__):
      yield name, example


def examples_of_recipes():
  return {
    word
    for _, example in examples()
    for word in example.split()
    if word.startswith('configs/')
  }


@pytest.mark.parametrize('name, example', list(examples()))
def test_an_example(name, example, world, monkeypatch, capsys):
  for word, what in NOT_HERE.items():
    if word in example:
      pytest.skip(f'it needs {what}')
  if name == 'aot' and importlib.util.find_spec('libtpu') is None:
    pytest.skip('it needs libtpu')
  if example.endswith(('.onnx', '.onnx --batch-size 1')):
    pytest.importorskip('jax2onnx')
  monkeypatch.chdir(world)
  monkeypatch.setenv('COLUMNS', '80')
  monkeypatch.setattr(
    'vit_jax.recipe.finetuning.hyperrule',
    lambda *_: HyperRule(512, 480, 4, 1, (2,), 0.0),
  )
  code = 0
  if '--watch' in example:  # until it is interrupted
    code = 130

    def interrupt(*_):
      raise KeyboardInterrupt

    monkeypatch.setattr('socketserver.BaseServer.serve_forever', interrupt)
  if name == 'push':
    monkeypatch.setattr(hub, 'upload', lambda *_, **__: 'https://hub/ORG')
  if '--throughput' in example:
    monkeypatch.setattr(
      'vit_jax.analysis.comparison.list_models', lambda pattern: ['deit_ti16']
    )
    monkeypatch.setattr(
      'vit_jax.analysis.comparison.images_per_second', lambda *_: 10.0
    )
  words = shlex.split(example.partition(' >>')[0])
  assert parser.main(words) == code, capsys.readouterr().err
  out, err = capsys.readouterr()
  assert '\x1b' not in out + err and 'Traceback' not in err
  assert '2 of 2 runs' in out or name != 'ablate'
  for flag in ('-o', '--output', '--show-batch'):
    if flag in words:
      assert pathlib.Path(words[words.index(flag) + 1]).exists()
