"""Analyses: known results for uniform and identity attention, and plots."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from vit_jax.analysis import (
  attend,
  distance,
  filters,
  overlay,
  posemb,
  rollout,
  similarity,
  views,
)
from vit_jax.models.cait import CaiT
from vit_jax.models.deepvit import DeepViT

RNG = np.random.default_rng(0)


def random_maps(layers=3, heads=2, tokens=7, batch=2):
  logits = RNG.standard_normal((layers, batch, heads, tokens, tokens))
  maps = np.exp(2 * logits)
  return list(maps / maps.sum(-1, keepdims=True))


def uniform(layers=3, tokens=7):
  return [np.full((1, 2, tokens, tokens), 1 / tokens)] * layers


def identity(layers=3, tokens=7):
  return [np.broadcast_to(np.eye(tokens), (1, 2, tokens, tokens))] * layers


# ------------------------------------------------------------------- rollout


def test_rollout_closed_forms():
  np.testing.assert_allclose(rollout.rollout(identity())[0], np.eye(7))
  # With the projection U on the mean, ((I + U) / 2)^L is 2^-L I + (1 - 2^-L) U.
  for layers in (1, 2, 5):
    want = 0.5**layers * np.eye(7) + (1 - 0.5**layers) / 7
    np.testing.assert_allclose(rollout.rollout(uniform(layers))[0], want)
  maps = random_maps()
  for residual in (0.0, 0.3, 1.0):
    shares = rollout.rollout(maps, residual=residual)
    np.testing.assert_allclose(shares.sum(-1), 1)
  np.testing.assert_allclose(shares, np.eye(7)[None].repeat(2, 0), atol=1e-12)
  a, b = (m.mean(1) for m in maps[:2])
  np.testing.assert_allclose(
    rollout.rollout(maps[:2], residual=0.0), b @ a
  )  # the last layer is the left factor
  with pytest.raises(ValueError, match='at least one layer'):
    rollout.rollout([])


def test_rollout_maps():
  maps = random_maps()
  shares = rollout.rollout(maps)
  got = rollout.rollout_maps(maps, (2, 3), 1)
  assert got.shape == (2, 2, 3)
  np.testing.assert_allclose(got.sum((1, 2)), 1)
  np.testing.assert_allclose(
    got.reshape(2, 6), shares[:, 0, 1:] / shares[:, 0, 1:].sum(1)[:, None]
  )
  without = rollout.rollout_maps(uniform(tokens=6), (2, 3), 0)
  np.testing.assert_allclose(without, 1 / 6)
  # All layers attend only to patch 4, so the class token consists of it.
  one = np.zeros((1, 1, 7, 7))
  one[..., 4] = 1
  got = rollout.rollout_maps([one] * 3, (2, 3), 1)
  assert got[0, 1, 0] == 1.0


def test_class_layers():
  patches = [
    m[..., 1:, 1:] / m[..., 1:, 1:].sum(-1, keepdims=True)
    for m in random_maps()
  ]
  cls = [m[:, :, :1] for m in random_maps(2)]
  layers = rollout.join_class_layers(patches, cls)
  assert [x.shape for x in layers] == [(2, 1, 7, 7)] * 5
  shares = rollout.rollout(layers)
  np.testing.assert_allclose(shares.sum(-1), 1)
  np.testing.assert_allclose(shares[:, 1:, 1:], rollout.rollout(patches))
  first, second = (0.5 * (c.mean(1)[:, 0] + np.eye(7)[0]) for c in cls)
  row = second + second[:, :1] * (first - np.eye(7)[0])
  np.testing.assert_allclose(shares[:, 0, 0], row[:, 0])
  np.testing.assert_allclose(
    shares[:, 0, 1:],
    np.einsum('bn,bnm->bm', row[:, 1:], rollout.rollout(patches)),
  )


# ------------------------------------------------------------------ distance


def test_patch_distances():
  pixels = distance.patch_distances((2, 3), (4, 3))
  assert pixels.shape == (6, 6)
  assert pixels[0, 1] == 3 and pixels[0, 3] == 4 and pixels[0, 4] == 5
  np.testing.assert_array_equal(pixels, pixels.T)


def test_attention_distance_closed_forms():
  grid, patch = (2, 3), 16
  got = distance.mean_attention_distance(identity(), grid, patch, 1)
  np.testing.assert_array_equal(got, np.zeros((3, 2)))
  got = distance.mean_attention_distance(uniform(), grid, patch, 1)
  np.testing.assert_allclose(got, distance.uniform_distance(grid, patch))
  shift = np.roll(np.eye(4), 1, axis=1)[
    None, None
  ]  # each of 4 patches in a row attends to the next
  got = distance.mean_attention_distance([shift], (1, 4), 10, 0)
  np.testing.assert_allclose(got, (10 + 10 + 10 + 30) / 4)


def test_attention_distance_leaves_prefix_out():
  maps = random_maps(tokens=8)
  want = distance.mean_attention_distance(
    [m[..., 2:, 2:] / m[..., 2:, 2:].sum(-1, keepdims=True) for m in maps],
    (2, 3),
    8,
  )
  got = distance.mean_attention_distance(maps, (2, 3), 8, 2)
  np.testing.assert_allclose(got, want)
  np.testing.assert_allclose(  # in pixels
    distance.mean_attention_distance(maps, (2, 3), 16, 2), 2 * got
  )
  only_class = np.zeros((1, 1, 7, 7))
  only_class[..., 0] = 1
  assert distance.mean_attention_distance([only_class], (2, 3), 8, 1) == 0
  with pytest.raises(ValueError, match='7 patch tokens.*2x3'):
    distance.mean_attention_distance(maps, (2, 3), 8, 1)


def test_wider_attention_has_larger_distance():
  pixels = distance.patch_distances((6, 6), 16)
  got = []
  for sigma in (8, 16, 32, 64):
    a = np.exp(-(pixels**2) / (2 * sigma**2))
    a /= a.sum(-1, keepdims=True)
    got.append(
      distance.mean_attention_distance([a[None, None]], (6, 6), 16)[0, 0]
    )
  assert got == sorted(got) and got[0] > 0
  assert got[-1] < distance.uniform_distance((6, 6), 16)


# ---------------------------------------------- position tables and filters


def test_position_similarity():
  table = RNG.standard_normal((1, 7, 16))
  got = posemb.position_similarity(table, (2, 3), 1)
  assert got.shape == (2, 3, 2, 3)
  flat = got.reshape(6, 6)
  np.testing.assert_allclose(np.diag(flat), 1)
  np.testing.assert_allclose(flat, flat.T)
  assert np.abs(flat).max() <= 1 + 1e-12
  np.testing.assert_allclose(  # the lengths of embeddings do not matter
    posemb.position_similarity(3 * table[0], (2, 3), 1), got
  )
  np.testing.assert_allclose(
    posemb.position_similarity(np.eye(6), (2, 3)).reshape(6, 6), np.eye(6)
  )
  with pytest.raises(ValueError, match='7 rows after the first 0 .*2x3'):
    posemb.position_similarity(table, (2, 3))


def test_filter_components():
  kernel = RNG.standard_normal((4, 4, 3, 60))
  components, shares = filters.filter_components(kernel)
  assert components.shape == (28, 4, 4, 3)
  flat = components.reshape(28, -1)
  np.testing.assert_allclose(flat @ flat.T, np.eye(28), atol=1e-9)
  assert (np.diff(shares) <= 0).all() and shares.sum() < 1
  rgb = filters.to_rgb(components)
  assert rgb.min() >= 0 and rgb.max() <= 1
  # All filters are multiples of one direction, which is the first component,
  # up to its sign.
  one = RNG.standard_normal(48)
  one /= np.linalg.norm(one)
  rank1 = one.reshape(4, 4, 3, 1) * RNG.standard_normal(9)
  components, shares = filters.filter_components(rank1)
  assert len(shares) == 9  # at most as many as filters
  np.testing.assert_allclose(abs(components[0].ravel() @ one), 1)
  np.testing.assert_allclose(shares, [1, *[0] * 8], atol=1e-12)
  assert np.array_equal(
    filters.to_rgb(np.zeros((1, 2, 2, 3))), np.full((1, 2, 2, 3), 0.5)
  )


# ---------------------------------------------------------------- similarity


def test_token_similarity_is_the_cosine_of_columns():
  p, q = random_maps(2)
  m = similarity.token_similarity(p, q)
  assert m.shape == (2, 2, 7)
  a, b = p[1, 0, :, 3], q[1, 0, :, 3]
  np.testing.assert_allclose(
    m[1, 0, 3], a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  )
  np.testing.assert_allclose(similarity.token_similarity(p, p), 1)
  with pytest.raises(ValueError, match='different shapes'):
    similarity.token_similarity(p, q[..., :6, :6])


def test_layer_similarity():
  maps = random_maps(4)
  matrix = similarity.layer_similarity(maps)
  np.testing.assert_allclose(matrix, matrix.T)
  np.testing.assert_allclose(np.diag(matrix), 1, rtol=1e-6)
  np.testing.assert_allclose(
    matrix[0, 2],
    similarity.token_similarity(maps[0], maps[2]).mean(),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    similarity.adjacent_similarity(matrix), [matrix[i, i + 1] for i in range(3)]
  )
  mixed = [identity()[0], uniform()[0]]
  np.testing.assert_allclose(  # of a unit vector and a constant one
    similarity.layer_similarity(mixed)[0, 1], 7**-0.5, rtol=1e-6
  )
  for threshold, ratio in ((0.37, 1), (0.38, 0)):  # 7 ** -0.5 = 0.378
    assert similarity.similar_ratio(mixed, threshold)[0, 1] == ratio
  with pytest.raises(ValueError, match='layers 0 and 1'):
    similarity.layer_similarity([identity()[0], identity(tokens=6)[0]])


def test_similar_blocks_and_heads():
  a, b = random_maps(2)
  collapsed = similarity.layer_similarity([a, b, b, b])
  assert similarity.similar_blocks(collapsed, 0.99) == 2 / 4
  assert similarity.similar_blocks(np.eye(4)) == 0
  np.testing.assert_allclose(similarity.head_similarity(uniform()), 1)
  want = similarity.token_similarity(a[:, :1], a[:, 1:]).mean()
  np.testing.assert_allclose(similarity.head_similarity([a]), [want])
  assert np.isnan(similarity.head_similarity([a[:, :1]])).all()


# --------------------------------------------------------- models and plots


@pytest.mark.parametrize(
  'model,prefix,layers',
  [
    (
      CaiT(
        num_classes=2, patch_size=8, width=16, depth=3, num_heads=2, scan=True
      ),
      0,
      3,
    ),
    (
      DeepViT(num_classes=2, patch_size=8, width=12, depth=2, num_heads=3),
      1,
      2,
    ),
  ],
)
def test_collect(model, prefix, layers):
  images = jnp.asarray(RNG.standard_normal((2, 16, 24, 3)), jnp.float32)
  variables = random_variables(model, images)
  got = attend.collect(model, variables, images)
  assert got.grid == (2, 3) and got.num_prefix == prefix
  tokens = 6 + prefix
  assert [a.shape for a in got.maps] == [
    (2, model.num_heads, tokens, tokens)
  ] * layers
  for a in got.maps:
    np.testing.assert_allclose(a.sum(-1), 1, atol=1e-5)
  mixed = attend.collect(model, variables, images, mixed=True)
  assert np.abs(mixed.maps[0] - got.maps[0]).max() > 1e-3
  view = views.View(layers=(1, 1), head=2)
  layers, tokens_before = views.shown_layers(got, view)
  np.testing.assert_allclose(layers[0][:, 0], got.maps[0][:, 1], rtol=1e-6)
  assert tokens_before == prefix
  if prefix == 0:
    layers, tokens_before = views.shown_layers(
      got, views.View(layers=(-1, -1), head=2)
    )
    assert tokens_before == 1
    np.testing.assert_allclose(
      layers[0][:, 0, 0], got.class_maps[-1][:, 1, 0], rtol=1e-6
    )
    joined = rollout.join_class_layers(got.maps, got.class_maps)
    assert rollout.rollout_maps(joined, got.grid, 1).shape == (2, 2, 3)
  assert posemb.find_table(variables).shape == (tokens, model.width)
  assert filters.find_kernel(variables).shape == (8, 8, 3, model.width)


def test_find_grid():
  assert attend.find_grid(197, (14, 14)) == ((14, 14), 1)
  assert attend.find_grid(198, (14, 14)) == ((14, 14), 2)
  assert attend.find_grid(196, (28, 28)) == ((14, 14), 0)
  with pytest.raises(ValueError, match='150 tokens.*14x14'):
    attend.find_grid(150, (14, 14))


@dataclasses.dataclass
class NoAttention:
  num_classes: int = 2


def test_what_is_not_there():
  with pytest.raises(ValueError, match='NoAttention has no attention maps'):
    attend.collect(NoAttention(), {}, None)
  params = {'params': {'conv': {'kernel': np.zeros((3, 3, 4, 8))}}}
  with pytest.raises(ValueError, match='no learned position table'):
    posemb.find_table(params)
  with pytest.raises(ValueError, match='RGB'):
    filters.find_kernel(params)


def is_png(path):
  data = path.read_bytes()
  return data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) > 2000


def test_plots(tmp_path):
  pytest.importorskip('matplotlib')
  maps = random_maps(4)
  matrix = similarity.layer_similarity(maps)
  table = posemb.position_similarity(RNG.standard_normal((7, 8)), (2, 3), 1)
  components, shares = filters.filter_components(
    RNG.standard_normal((4, 4, 3, 20)), 9
  )
  for written in (
    overlay.plot_maps(
      [
        overlay.MapOfPhoto(
          255 * RNG.random((8, 12, 3)), overlay.to_photo(heat, (8, 12)), name
        )
        for heat, name in zip(
          rollout.rollout_maps(maps, (2, 3), 1), 'ab', strict=True
        )
      ],
      tmp_path / 'new' / 'rollout.png',
    ),
    distance.plot_distance(
      distance.mean_attention_distance(maps, (2, 3), 8, 1),
      tmp_path / 'distance.png',
      uniform=9.0,
    ),
    posemb.plot_similarity(table, tmp_path / 'posemb.png'),
    filters.plot_filters(components, tmp_path / 'f.png', shares=shares),
    similarity.plot_layers(matrix, tmp_path / 'layers.png'),
    similarity.plot_curves(
      {'ViT': matrix, 'DeepViT': [0.1, 0.2, 0.1]}, tmp_path / 'curves.png'
    ),
  ):
    assert is_png(written)


def test_rollout_by_hand():
  """Two layers and three tokens, the class token first, of one head."""
  first = np.array([[0.2, 0.4, 0.4], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
  last = np.array([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
  # Row 0 of (last + I) / 2 is (0.5, 0.3, 0.2); times (first + I) / 2, whose
  # rows are (0.6, 0.2, 0.2), (0, 1, 0) and (0.25, 0, 0.75):
  shares = [0.35, 0.4, 0.25]
  layers = [first[None, None], last[None, None]]
  np.testing.assert_allclose(rollout.rollout(layers)[0, 0], shares)
  got = rollout.rollout_maps(layers, (1, 2), 1)
  np.testing.assert_allclose(got[0, 0], np.array([0.4, 0.25]) / 0.65)


def test_views_of_a_rollout():
  maps = random_maps(3, heads=2)
  one = rollout.select(maps, layers=(-1, -1), head=2)
  np.testing.assert_array_equal(one, [maps[2][:, 1:]])
  np.testing.assert_allclose(
    rollout.rollout_maps(one, (2, 3), 1, residual=0).reshape(2, 6),
    maps[2][:, 1, 0, 1:] / maps[2][:, 1, 0, 1:].sum(1, keepdims=True),
  )
  assert len(rollout.select(maps, layers=(-2, 3))) == 2
  # Of (0.1, 0.2, 0.3, 0.4) the larger half stays.
  row = np.full((1, 1, 4, 4), [0.1, 0.2, 0.3, 0.4])
  got = rollout.select([row], discard=0.5)[0]
  np.testing.assert_allclose(got[0, 0, 0], [0, 0, 3 / 7, 4 / 7])
  for bad, words in (
    ({'layers': (4, 4)}, 'layer=4:4: .*1 to 3'),
    ({'layers': (3, 1)}, 'must not be after'),
    ({'head': 3}, 'head=3: .*1 to 2'),
    ({'discard': 1.0}, 'below 1'),
  ):
    with pytest.raises(ValueError, match=words):
      rollout.select(maps, **bad)


def test_outliers():
  maps = np.ones((1, 4, 5))
  maps[0, 1, 2] = 4.5
  maps[0, 3, 4] = 3.5
  assert np.argwhere(rollout.outliers(maps)).tolist() == [[0, 1, 2]]
  filled = rollout.fill_outliers(maps)
  assert filled[0, 1, 2] == 1 and filled[0, 3, 4] == 3.5


def test_maps_on_photos():
  constant = overlay.to_photo(np.full((2, 2), 0.25), (8, 12))
  np.testing.assert_allclose(constant, 0.25, rtol=1e-5)
  rising = overlay.to_photo(np.array([[0.0, 1.0]] * 2), (8, 12))
  assert rising.min() >= 0 and rising.max() <= 1
  assert (np.diff(rising, axis=1) >= -1e-6).all()
  # The center of a patch has weight 2/3 for itself and 1/6 for each neighbor.
  single = np.zeros((5, 5))
  single[2, 2] = 1
  fine = overlay.to_photo(single, (15, 15))
  np.testing.assert_allclose(fine[7, 7], (2 / 3) ** 2, rtol=1e-5)
  np.testing.assert_allclose(fine[7, 10], 2 / 3 / 6, rtol=1e-5)
  # The model sees the columns 2 to 9 of 12; the rest has no value.
  part = overlay.to_photo(np.ones((2, 2)), (8, 12), (0.0, 2.0, 8.0, 8.0))
  assert np.isnan(part[:, :2]).all() and np.isnan(part[:, 10:]).all()
  np.testing.assert_allclose(part[:, 2:10], 1, rtol=1e-5)
  photo = np.full((8, 12, 3), (200, 100, 0))
  shaded = overlay.overlay(photo, rising)
  assert shaded.dtype == np.uint8
  # Gray with 62 % of the light on the left, the photo's colors on the right.
  np.testing.assert_allclose(shaded[4, 0], 62, atol=2)
  assert shaded[4, -1, 0] > 190 and shaded[4, -1, 2] < 20


def test_locality_and_smoothness():
  n = 4
  y, x = np.indices((n, n))
  waves = [np.cos(k * np.pi * (i + 0.5) / n) for k in (1, 2) for i in (y, x)]
  table = np.stack(waves, axis=-1).reshape(n * n, -1)
  near = posemb.locality(posemb.position_similarity(table, (n, n)))
  far = posemb.locality(
    posemb.position_similarity(RNG.standard_normal((n * n, 64)), (n, n))
  )
  assert near > 0.3 and abs(far) < 0.1
  ones = np.ones((1, 4, 4, 3))
  checks = np.where((y + x) % 2, 1.0, -1.0)[None, ..., None]
  assert filters.smoothness(ones) == pytest.approx(1)
  assert filters.smoothness(checks) == pytest.approx(-1)
  noise = filters.filter_components(RNG.standard_normal((8, 8, 3, 200)))
  assert 'little to see' in filters.why_nothing_to_see(*noise)
  for kernel, words in (
    (np.ones((8, 8, 3, 20)), 'all filters are equal'),
    (RNG.standard_normal((1, 1, 3, 20)), '1 x 1 pixels are too small'),
  ):
    values = filters.filter_components(kernel)
    assert words in filters.why_nothing_to_see(*values)
  stripes = np.cos(RNG.uniform(0.2, 0.8, 64) * x[..., None] + RNG.random(64))
  stripes = np.repeat(stripes[:, :, None], 3, axis=2)
  values = filters.filter_components(stripes)
  assert not filters.why_nothing_to_see(*values)
