"""Mistakes at the command line: each is told in one line, with its fix.

The line names the value, and what is allowed or what to do. There is no
traceback, and the exit code is 1.
"""

import pathlib
import shlex

import jax
import numpy as np
from PIL import Image
import pytest

from tests.helpers import ROOT
from vit_jax import create_model, save_weights
from vit_jax.cli import parser


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A directory with two classes of images, a file of weights and bad files."""
  root = tmp_path_factory.mktemp('mistakes')
  for split in ('train', 'test'):
    for name in ('red', 'blue'):
      path = root / 'flowers' / split / name
      path.mkdir(parents=True)
      for i in range(4):
        Image.new('RGB', (20, 20), (i, 0, 0)).save(path / f'{i}.png')
  (root / 'empty').mkdir()
  (root / 'text.jpg').write_text('no image')
  (root / 'configs').symlink_to(pathlib.Path(ROOT, 'configs'))
  model = create_model('vit_mu16', 2)
  image = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  for name in ('w.safetensors', 'w.npz'):
    save_weights(zeros, model, root / name)
  (root / 'binary.txt').write_bytes(b'red\0blue')
  return root


TRAIN = 'train configs/digits.py --workdir run'
TUNE = 'finetune --model vit_mu16 --data flowers --workdir run --steps 1'
MISTAKES = [
  # section, key and value of a recipe
  (f'{TRAIN} optm.lr=1', 'optm.lr=1', 'the nearest is optim.lr'),
  (f'{TRAIN} optim.lrr=1', 'optim.lrr=1', 'the nearest is optim.lr'),
  (f'{TRAIN} optim.lr=fast', 'optim.lr=fast', 'must be a number'),
  (f'{TRAIN} optim.name=adm', "optim.name='adm'", "allowed: 'adamw'"),
  (f'{TRAIN} data.batch_size=0', 'data.batch_size=0', 'at least 1'),
  (f'{TRAIN} lr', 'lr', 'KEY=VALUE, such as optim.lr=3e-4'),
  (f'{TRAIN} model.name=vit_b17', "'vit_b17'", 'vit_b16'),
  (f'{TRAIN} optim=adam', 'optim=adam', 'optim.KEY=VALUE'),
  # the file of a recipe and its switches
  ('train configs/digit.py --workdir run', 'digit.py', 'digits.py'),
  ('train configs/digits.py:smok --workdir run', "'smok'", 'smoke'),
  ('train digits --workdir run', 'digits:', 'configs/digits.py'),
  ('train configs --workdir run', 'configs is a directory', 'X.py'),
  ('train --workdir run', 'CONFIG[:ARG] (see', '--help'),
  # commands and options
  ('predct w.safetensors text.jpg', "'predct'", 'predict'),
  ('train configs/digits.py --workdri run', '--workdri', '--workdir'),
  ('predict w.safetensors flowers --topk 3', '--topk', '--top-k'),
  (f'{TUNE} --optim.lr=3', '--optim.lr', 'set by --lr'),
  (f'{TUNE} -lr 3', '-lr', 'did you mean --lr?'),
  (f'{TUNE} --weight-decay 1', '--weight-decay', '--config.optim.weight_decay'),
  (f'{TRAIN} --batch-size 8', '--batch-size', 'data.batch_size=VALUE'),
  (f'{TRAIN} -lr 3', '-lr', 'optim.lr=VALUE'),
  (f'{TRAIN} --num-processes 2', '--num-processes=2', '--coordinator=...'),
  ('-v', '-v', '--version'),
  (f'{TUNE} --epochs 1', '--epochs', '--steps'),
  (f'{TUNE} --lr fast', "--lr: 'fast'", 'a number above 0'),
  (f'{TUNE} --match-classes name', "'name'", "'names', 'numbers', 'new'"),
  ('predict w.safetensors flowers --config.optim.lr=1', 'optim.lr', 'no keys'),
  # models, classes, paths
  (f'{TUNE} --model vit_b17', "'vit_b17'", 'vit_b16'),
  (f'{TUNE} --set dept=3', "'dept'", 'depth'),
  (f'{TUNE} --data flower', 'flower', 'Give a folder'),
  (f'{TUNE} --data empty', 'empty', 'CLASS/*'),
  (f'{TUNE} --weights gone.npz', 'gone.npz', 'no such file'),
  (f'{TUNE} --batch-size 96', '--batch-size=96', 'at most 8'),
  ('models resnext', "'resnext'", 'without a pattern lists all'),
  ('info vit_b17', "'vit_b17'", 'vit_b16'),
  ('predict w.safetensors flowers -o x.txt', 'x.txt', '.csv or a .json'),
  (
    'predict w.safetensors flowers --classes gone.txt',
    'gone.txt',
    'no such file',
  ),
  ('predict flowers flowers', 'flowers', 'checkpoints/STEP'),
  ('predict text.jpg w.safetensors', 'text.jpg is an image', 'WEIGHTS IMAGE'),
  ('attention text.jpg flowers -o x.png', 'text.jpg', 'WEIGHTS IMAGE'),
  ('predict w.npz flowers --prefix x', "--prefix='x'", '.safetensors'),
  ('train configs/digits.py --workdir text.jpg', 'text.jpg', 'a directory'),
  (
    'evaluate w.safetensors --data flowers --labels binary.txt',
    'binary.txt',
    'it is no text',
  ),
  ('predict w.safetensors text.jpg', 'images could not be read', '1 of 1'),
  ('evaluate w.safetensors', 'give the images', '--data PATH'),
  ('attention w.safetensors flowers -o x.gif', 'x.gif', '.png'),
  ('attention w.safetensors -o x.png', '--rollout', 'after the weights'),
  ('convert w.safetensors -o w.h5', 'w.h5', '.npz or .safetensors'),
  ('export w.safetensors', 'what to write', '--output PATH'),
  ('pack flowers', 'directory to write', '--output DIR'),
  ('pack flowers -o flowers/', 'flowers', 'another directory'),
  ('report flowers -o x.pdf', '--output x.pdf', '.html'),
  ('models --table x.docx', '--table x.docx', '.md'),
  ('fewshot w.safetensors --data gone', 'gone', 'Give a folder'),
  ('teacher-logits w.safetensors --source foldr -o l', "'foldr'", "'folder'"),
]


@pytest.mark.parametrize('line, value, fix', MISTAKES, ids=lambda x: x[:40])
def test_a_mistake_is_told_in_a_line(
  line, value, fix, folder, monkeypatch, capsys
):
  monkeypatch.chdir(folder)
  try:
    code = parser.main(shlex.split(line))
  except SystemExit as e:  # argparse
    code = e.code
  _, err = capsys.readouterr()
  assert code == 1 and 'Traceback' not in err
  last = err.strip().splitlines()[-1]
  assert last.startswith('error: ') and value in last and fix in last, err
