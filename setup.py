"""Packaging; the metadata is in pyproject.toml.

The one file in C is compiled if there is a compiler. Without it, the package
has the same functions, and resizes images more slowly.
"""

import setuptools

setuptools.setup(
  ext_modules=[
    setuptools.Extension(
      'vit_jax.data._pixels',
      ['vit_jax/data/pixels.c'],
      # Products and sums are rounded one by one, as in TensorFlow.
      extra_compile_args=['-O3', '-ffp-contract=off'],
      optional=True,
    )
  ]
)
