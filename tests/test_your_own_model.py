"""docs/tutorials/your_own_model.md, followed with files of one's own."""

import json
import pathlib
import re
import shutil

from flax import linen as nn
import numpy as np
from PIL import Image
import pytest

from tests.helpers import ROOT, run_python, saved_state
from vit_jax.models import registry

DOCS = pathlib.Path(ROOT, 'docs/tutorials')
PAGE = (DOCS / 'your_own_model.md').read_text()
MAIN = [
  *('-m', 'vit_jax.main', '--config=my_recipe.py:images', '--workdir=run'),
  *('--config.model.module=my_models', '--config.model.width=16'),
  *('--config.run.steps=4', '--config.schedule.warmup_steps=1'),
  *('--config.data.batch_size=4', '--config.data.image_size=16'),
  *('--config.log.checkpoint_steps=2', '--config.log.keep_latest=2'),
]
# Runs commands of vit-jax, one after the other, in one process.
COMMANDS = """
import json, sys
from vit_jax.cli import parser
for command in json.loads(sys.argv[1]):
  code = parser.main(command)
  if code:
    sys.exit(f'{command}: exit code {code}')
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The user's directory: their two files, their images, a finished run."""
  path = tmp_path_factory.mktemp('mine')
  for name in ('my_models.py', 'my_recipe.py'):
    shutil.copy(DOCS / name, path)
  rng = np.random.default_rng(0)
  for split, count in (('train', 4), ('test', 2)):
    for i, name in enumerate(('blue', 'red')):
      (path / 'images' / split / name).mkdir(parents=True)
      for j in range(count):
        image = rng.integers(0, 60, (20, 24, 3), np.uint8)
        image[..., 2 - 2 * i] += 180
        Image.fromarray(image).save(path / 'images' / split / name / f'{j}.png')
  done = run_python(*MAIN, cwd=path)
  assert done.returncode == 0, done.stderr
  return path


def vit_jax(folder, *commands):
  done = run_python('-c', COMMANDS, json.dumps(commands), cwd=folder)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_page_shows_the_files():
  blocks = re.findall(r'(?ms)^```python\n(.*?)^```', PAGE)
  for name in ('my_models.py', 'my_recipe.py'):
    assert (DOCS / name).read_text() in blocks


def test_a_stopped_run_resumes_to_the_same_parameters(folder):
  last = folder / 'run' / 'checkpoints' / '4'
  expected = saved_state(folder / 'run')
  assert expected['params/embedding/kernel'].shape == (4, 4, 3, 16)
  last.rename(folder / 'last')
  done = run_python(*MAIN, cwd=folder)
  assert done.returncode == 0, done.stderr
  assert 'resumed step 2' in done.stdout
  resumed = saved_state(folder / 'run')
  assert resumed.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(resumed[name], x, err_msg=name)


def test_it_predicts_converts_and_exports(folder):
  image = 'images/test/red/0.png'
  predict = lambda weights, name: [
    'predict',
    weights,
    image,
    f'--json={name}.json',
  ]
  out = vit_jax(
    folder,
    predict('run', 'run'),
    ['convert', 'run', 'mine.safetensors'],
    predict('mine.safetensors', 'converted'),
    ['export', 'run', 'mine.stablehlo', '--platforms', 'cpu'],
    ['info', 'conv_mixer_s', '--module', 'my_models'],
    [
      *('finetune', '--model', 'conv_mixer_ti', '--module', 'my_models'),
      *('--data', 'images', '--workdir', 'tuned', '--steps', '1'),
      *('--batch', '4', '--image-size', '16'),
    ],
    predict('tuned', 'tuned'),
    ['info', 'mine.safetensors'],
  )
  assert 'conv_mixer_s (ConvMixer)' in out
  assert 'model: conv_mixer_ti width=16' in out
  # An exported program does not need the module.
  (folder / 'my_models.py').rename(folder / 'elsewhere.txt')
  vit_jax(folder, predict('mine.stablehlo', 'exported'))
  results = [
    json.loads((folder / f'{name}.json').read_text())[0]['predictions']
    for name in ('run', 'converted', 'exported')
  ]
  assert {p['class'] for p in results[0]} == {'blue', 'red'}
  assert results[1] == results[0]
  for a, b in zip(results[0], results[2], strict=True):
    assert a['class'] == b['class']
    assert a['probability'] == pytest.approx(b['probability'], abs=1e-5)


def test_a_missing_module_is_named(folder):
  done = run_python(
    *MAIN[:4], '--config.model.module=my_modles', '--workdir=x', cwd=folder
  )
  assert done.returncode == 1
  assert (
    done.stderr.strip()
    .splitlines()[-1]
    .startswith(
      "error: model.module='my_modles': module 'my_modles' cannot be imported"
    )
  )


def test_a_class_that_is_no_model_says_what_it_lacks():
  """Before anything is trained."""

  class NoClasses(nn.Module):
    def __call__(self, images, *, train):
      return images, {}

  class NoTrain(nn.Module):
    num_classes: int = 10

    def __call__(self, images):
      return images, {}

  class OnlyLogits(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train):
      return nn.Dense(self.num_classes)(images.mean((1, 2)))

  with pytest.raises(ValueError, match='needs a field num_classes'):
    registry.register('no_classes', NoClasses)
  with pytest.raises(ValueError, match='images, \\*, train'):
    registry.register('no_train', NoTrain)
  with pytest.raises(ValueError, match=r'returns \(1, 10\)'):
    registry.check_outputs(OnlyLogits(), (8, 8))
