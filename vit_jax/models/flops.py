"""Counts the work of a function: multiply-accumulates of its matrix products.

What papers call "GFLOPs" are the multiply-accumulates of the convolutions and
matrix products, with those of attention, in units of 1e9. Norms, softmax and
activations are not counted.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax

from vit_jax.models.platform import traced_for

# Peak TFLOP/s of dense bfloat16 products on one JAX device. For TPU v2 and v3,
# a device is one of a chip's two cores.
PEAK_TFLOPS = {
  'TPU v2': 22.5,
  'TPU v3': 61.6,
  'TPU v4': 275.0,
  'TPU v5 lite': 197.0,
  'TPU v5e': 197.0,
  'TPU v5': 459.0,
  'TPU v5p': 459.0,
  'TPU v6 lite': 918.0,
  'TPU v6e': 918.0,
  'TPU7x': 1154.0,
  'NVIDIA A100': 312.0,
  'NVIDIA H100': 989.0,
  'NVIDIA H200': 989.0,
  'Tesla V100': 125.0,
}


def peak_flops(device: Any) -> float | None:
  """Peak FLOP/s of a JAX device; None if its kind is not in PEAK_TFLOPS."""
  kind = device.device_kind
  names = [n for n in PEAK_TFLOPS if kind.startswith(n)]
  return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def count_macs(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
  """Multiply-accumulates of a function, which is traced but not run.

  Args:
    fn: a function of arrays that JAX can trace.
    *args, **kwargs: its arguments; shapes (`jax.ShapeDtypeStruct`) suffice.
  """
  # A kernel of a platform, such as cuDNN's, does not show its products.
  with traced_for('any'):
    return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def forward_macs(
  model: nn.Module, height: int, width: int, variables: Any = None
) -> int:
  """Multiply-accumulates of a model's forward pass for one image.

  Args:
    model: a Linen module.
    height, width: size of the image in pixels.
    variables: the model's variables, or their shapes; None traces the model
      once more to know them.
  """
  image = jax.ShapeDtypeStruct((1, height, width, 3), 'float32')
  if variables is None:
    variables = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), image
    )
  return count_macs(
    lambda v, x: model.apply(v, x, train=False)[0], variables, image
  )


def _count(jaxpr: Any) -> int:
  """Multiply-accumulates of a jaxpr and of all that it calls."""
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      lhs = eqn.invars[0].aval.shape
      total += math.prod(eqn.outvars[0].aval.shape) * math.prod(
        lhs[d] for d in contract
      )
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      out_feature = eqn.params['dimension_numbers'].rhs_spec[0]
      per_output = math.prod(kernel) // kernel[out_feature]
      total += math.prod(eqn.outvars[0].aval.shape) * per_output
    elif eqn.params.get('name') == 'depthwise_conv':
      # `depthwise.depthwise_conv` is written as sums of shifted slices, so its
      # jaxpr has no convolution. It is recognized by its name and its kernel
      # (h, w, 1, C). JAX also makes calls of this name without the kernel, for
      # constants in a scan; they count as nothing.
      for output in (v.aval.shape for v in eqn.outvars[:1]):
        for kernel in (v.aval.shape for v in eqn.invars):
          if len(kernel) == 4 and kernel[2:] == (1, output[-1]):
            total += math.prod(output) * kernel[0] * kernel[1]
    elif name == 'cond':
      # Only one branch runs, and which one is not known here, so the largest
      # count is taken. The branches may be programs for different platforms.
      total += max(_count(b.jaxpr) for b in eqn.params['branches'])
    else:
      repeat = eqn.params.get('length', 1) if name == 'scan' else 1
      total += repeat * sum(_count(inner) for inner in inner_jaxprs(eqn))
  return total


def inner_jaxprs(eqn: Any) -> list[Any]:
  """The jaxprs that an equation calls, such as the body of a loop."""
  leaves = jax.tree.leaves(
    list(eqn.params.values()),
    is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'),
  )
  jaxprs = [getattr(leaf, 'jaxpr', leaf) for leaf in leaves]
  return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, 'eqns')]
