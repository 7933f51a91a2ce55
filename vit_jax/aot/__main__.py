"""Compiles one recipe, in the process that `aot.estimate.estimate` starts."""

import sys

from vit_jax.aot.estimate import answer_request

if __name__ == '__main__':
  answer_request(*sys.argv[1:])
