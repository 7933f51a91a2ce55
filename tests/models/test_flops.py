"""Multiply-accumulates of programs whose count is known."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import flops


def shape(*dimensions):
  return jax.ShapeDtypeStruct(dimensions, jnp.float32)


def test_matrix_products():
  count = flops.count_macs(lambda a, b: a @ b, shape(2, 3), shape(3, 5))
  assert count == 2 * 3 * 5
  batched = lambda a, b: jnp.einsum('bij,bjk->bik', a, b)
  count = flops.count_macs(batched, shape(7, 2, 3), shape(7, 3, 5))
  assert count == 7 * 2 * 3 * 5


@pytest.mark.parametrize('groups', [1, 4])
def test_convolutions(groups):
  def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      window_strides=(2, 2),
      padding='VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )

  count = flops.count_macs(
    convolve, shape(1, 9, 9, 8), shape(3, 3, 8 // groups, 12)
  )
  assert count == 4 * 4 * 12 * 9 * 8 // groups


def test_elementwise_work_does_not_count():
  count = flops.count_macs(lambda x: jax.nn.softmax(x * x + 1), shape(4, 4))
  assert count == 0


def test_a_scan_counts_each_step_and_a_branch_counts_the_larger():
  square = lambda x: x @ x

  def scanned(x):
    return jax.lax.scan(lambda y, _: (square(y), None), x, length=5)[0]

  assert flops.count_macs(scanned, shape(3, 3)) == 5 * 27
  branches = lambda x: jax.lax.cond(
    x[0, 0] > 0, lambda x: square(square(x)), square, x
  )
  assert flops.count_macs(branches, shape(3, 3)) == 2 * 27
  inside = jax.jit(jax.checkpoint(square))
  assert flops.count_macs(inside, shape(3, 3)) == 27


def test_peak_flops_takes_the_longest_name():
  class Device:
    def __init__(self, device_kind):
      self.device_kind = device_kind

  assert flops.peak_flops(Device('TPU v5 lite')) == 197e12
  assert flops.peak_flops(Device('TPU v5')) == 459e12
  assert flops.peak_flops(Device('NVIDIA H100 80GB HBM3')) == 989e12
  assert flops.peak_flops(Device('cpu')) is None
