"""Files of features equal what the model gives for each image."""

import pathlib

import numpy as np
import pytest

from vit_jax.cli.parser import main
from vit_jax.inference.loading import load_classifier


@pytest.mark.parametrize('suffix', ['npz', 'parquet'])
def test_files_have_the_features_of_every_image(
  weights, folder, tmp_path, suffix
):
  path = tmp_path / f'x.{suffix}'
  words = ['features', weights, folder, '-o', str(path), '--batch-size', '5']
  assert main([*words, '--tokens']) == 0
  if suffix == 'npz':
    table = dict(np.load(path))
  else:
    parquet = pytest.importorskip('pyarrow.parquet')
    columns = parquet.read_table(path).to_pydict()
    table = {name: np.array(values) for name, values in columns.items()}
  images = sorted(map(str, pathlib.Path(folder).rglob('*.jpg')))
  assert sorted(table['image'].tolist()) == images
  _, out = load_classifier(weights).run(table['image'].tolist())
  np.testing.assert_allclose(table['features'], out['pre_logits'], atol=1e-5)
  np.testing.assert_allclose(table['tokens'], out['encoded'], atol=1e-5)


def test_unreadable_images_are_named_and_left_out(
  weights, folder, tmp_path, capsys
):
  (tmp_path / 'bad.jpg').write_bytes(b'no image')
  first = next(pathlib.Path(folder).rglob('*.jpg'))
  words = [str(tmp_path / 'bad.jpg'), str(first), '-o', f'{tmp_path}/x.npz']
  assert main(['features', weights, *words]) == 1
  assert 'bad.jpg: ' in capsys.readouterr().err
  assert np.load(tmp_path / 'x.npz')['image'].tolist() == [str(first)]


def test_wrong_suffix_is_refused_before_the_work(weights, folder, capsys):
  assert main(['features', weights, folder, '-o', 'x.csv']) == 1
  assert 'must end with .npz or .parquet' in capsys.readouterr().err
