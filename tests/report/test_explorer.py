"""The attention maps of the page, in few bytes."""

import base64
import zlib

import numpy as np
import pytest

from vit_jax.analysis.areas import AreaMaps
from vit_jax.analysis.attend import Attention
from vit_jax.analysis.rollout import rollout
from vit_jax.report.explorer import STEPS, explorer


def random_maps(tokens, queries=None, layers=2, heads=3, images=2):
  rng = np.random.default_rng(0)
  shape = (images, heads, queries or tokens, tokens)
  maps = [rng.exponential(size=shape).astype('f4') for _ in range(layers)]
  return [a / a.sum(-1, keepdims=True) for a in maps]


def unpack(result, image):
  """[(maps, queries, keys)] of each layer, as the page reads them."""
  data = zlib.decompress(base64.b64decode(result['images'][image]))
  shapes = [
    (
      x['heads'] + 1,
      len(x['queries']) + x['patches'] * np.prod(result['queryGrid']),
      len(x['keys']) + np.prod(result['keyGrid']),
    )
    for x in result['layers']
  ]
  rows = [maps * queries for maps, queries, _ in shapes]
  tops = np.frombuffer(data, '<f4', sum(rows))
  steps = np.frombuffer(data, np.uint8, offset=4 * sum(rows))
  layers = []
  for (maps, queries, keys), count in zip(shapes, rows):
    share = steps[: count * keys].reshape(maps, queries, keys) / STEPS
    layers.append(share**2 * tops[:count].reshape(maps, queries, 1))
    tops, steps = tops[count:], steps[count * keys :]
  assert not len(tops) and not len(steps)
  return layers


def assert_close(got, expected):
  # Half a step of the square root of the share.
  top = expected.max(-1, keepdims=True)
  error = np.abs(np.sqrt(got / top) - np.sqrt(expected / top))
  assert error.max() < 0.5 / STEPS + 1e-5


@pytest.mark.parametrize('prefix', [1, 2])
def test_maps_and_rollout(prefix):
  maps = random_maps(12 + prefix)
  result = explorer(Attention(maps, (3, 4), prefix))
  layers = unpack(result, image=1)
  for i, (got, expected) in enumerate(zip(layers, maps)):
    assert_close(got[:-1], expected[1])
    assert_close(got[-1], rollout(maps[: i + 1])[1])
  names = ['class token', 'distillation token'][:prefix]
  assert result['layers'][0]['queries'] == names


def test_without_a_class_token_the_mean_is_a_query():
  maps = random_maps(12)
  result = explorer(Attention(maps, (3, 4), 0), pooled='mean')
  assert result['layers'][0]['queries'] == ['mean']
  assert result['layers'][0]['keys'] == []
  got = unpack(result, image=0)[0]
  assert_close(got[:-1, 0], maps[0][0].mean(axis=1))
  assert_close(got[:-1, 1:], maps[0][0])


def test_class_attention():
  """CaiT: patches first, then layers in which only the class token asks."""
  maps, class_maps = random_maps(12), random_maps(13, queries=1)
  result = explorer(Attention(maps, (3, 4), 0, class_maps), pooled='mean')
  first, last = result['layers'][0], result['layers'][-1]
  assert first['patches'] and not last['patches']
  assert last['queries'] == last['keys'] == ['class token']
  layers = unpack(result, image=0)
  assert [x.shape for x in layers] == [(4, 13, 12)] * 2 + [(4, 1, 13)] * 2
  assert_close(layers[-1][:-1], class_maps[-1][0])
  assert layers[-1][-1].sum() == pytest.approx(1, abs=0.05)


def test_a_small_budget_joins_patches():
  maps = random_maps(1 + 6 * 7)
  whole = explorer(Attention(maps, (6, 7), 1))
  size = sum(map(len, whole['images']))
  small = explorer(Attention(maps, (6, 7), 1), budget=size // 6)
  assert whole['sides'] == [1, 1] and small['sides'] == [2, 2]
  assert small['queryGrid'] == small['keyGrid'] == [3, 4]
  assert sum(map(len, small['images'])) <= size // 6
  got = unpack(small, image=0)[0]
  # A joined query has the mean, a joined key the sum.
  rows = maps[0][0][:, 1:, 1:].reshape(3, 6, 7, 6, 7)
  expected = rows[:, 2:4, 2:4, 0:2, 6:].sum((3, 4)).mean((1, 2))
  got = got[:-1, 1 + 1 * 4 + 1, 1 + 0 * 4 + 3]
  np.testing.assert_allclose(got, expected, rtol=0.2)


def test_areas_of_the_mean_of_the_heads():
  """The area that is best on average need not be the best one of a head."""
  maps = random_maps(4, heads=2, images=1)
  heads = [[0.5, 0.4, 0.1, 0.0, 0.0, 0.0], [0.0, 0.4, 0.6, 0.0, 0.0, 0.0]]
  probabilities = np.array(heads)[None, :, None].repeat(4, axis=2)
  items = np.eye(6, 4) > 0
  layer = AreaMaps(None, items, probabilities)
  (areas,) = explorer(Attention(maps, (2, 2), 0), [layer])['areas']
  best = [head[0][0] for head in areas['best'][0]]
  assert best == [0, 2, 1]  # head 1, head 2, their mean
  assert areas['share'][0][2][0][0] == pytest.approx(0.4)
