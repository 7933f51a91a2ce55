"""The process that `aot.compile.estimate` starts to compile one recipe in."""

import sys

from vit_jax.aot.compile import answer_request

if __name__ == '__main__':
  answer_request(*sys.argv[1:])
