"""Position-table resizing against scipy and PyTorch, and its properties."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.resampling import aligned_matrix, bicubic_matrix
from vit_jax.weights import resize_table

sizes = st.integers(1, 12)


def grid_table(h, w, prefix=0, width=5, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((1, prefix + h * w, width)).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(
  st.integers(2, 9), st.integers(2, 9), st.integers(2, 12), st.integers(2, 12)
)
def test_linear_is_scipy_zoom(h, w, new_h, new_w):
  table = grid_table(h, w)
  want = scipy.ndimage.zoom(
    table.reshape(h, w, -1), (new_h / h, new_w / w, 1), order=1
  )
  got = resize_table(table, (h, w), (new_h, new_w), 'linear')
  np.testing.assert_allclose(got.reshape(want.shape), want, atol=2e-6)


@pytest.mark.parametrize(
  'old,new',
  [
    ((7, 7), (12, 12)),
    ((14, 14), (7, 7)),
    ((5, 9), (8, 3)),
    ((1, 4), (3, 9)),
    ((37, 37), (16, 16)),
  ],
)
def test_bicubic_is_pytorchs(old, new):
  torch = pytest.importorskip('torch')
  table = grid_table(*old)
  want = torch.nn.functional.interpolate(
    torch.from_numpy(table).reshape(1, *old, -1).permute(0, 3, 1, 2),
    size=new,
    mode='bicubic',
    align_corners=False,
  )
  got = resize_table(table, old, new, 'bicubic')
  np.testing.assert_allclose(
    got.reshape(1, *new, -1), want.permute(0, 2, 3, 1), atol=1e-5
  )


def test_bicubic_known_weights():
  # At twice the size, entry 5 is at 2.25, at distances 1.25, 0.25, 0.75 and
  # 1.75 from its neighbors.
  np.testing.assert_allclose(
    bicubic_matrix(6, 12)[5],
    [0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0],
  )


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.sampled_from([aligned_matrix, bicubic_matrix]))
def test_weights_sum_to_one(old, new, matrix):
  np.testing.assert_allclose(matrix(old, new).sum(1), 1.0, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, st.integers(0, 2), st.sampled_from(['linear', 'bicubic']))
def test_same_grid_is_identity_and_prefix_is_untouched(h, w, prefix, method):
  table = grid_table(h, w, prefix)
  np.testing.assert_array_equal(
    resize_table(table, (h, w), (h, w), method), table
  )
  wider = resize_table(table, (h, w), (h + 1, w + 3), method)
  assert wider.shape == (1, prefix + (h + 1) * (w + 3), 5)
  assert wider.dtype == table.dtype
  np.testing.assert_array_equal(wider[:, :prefix], table[:, :prefix])


def test_linear_keeps_corners():
  table = grid_table(4, 5)
  out = resize_table(table, (4, 5), (9, 7), 'linear').reshape(9, 7, -1)
  grid = table.reshape(4, 5, -1)
  for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
    np.testing.assert_allclose(out[i, j], grid[i, j], atol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match='cubic.*allowed: linear, bicubic'):
    resize_table(grid_table(2, 2), (2, 2), (3, 3), 'cubic')
  with pytest.raises(ValueError, match='4 rows is too short for a grid of 3x3'):
    resize_table(grid_table(2, 2), (3, 3), (2, 2), 'linear')
