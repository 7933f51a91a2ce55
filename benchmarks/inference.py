"""Measures inference beside timm, transformers and jimm in the same rounds.

  python -m benchmarks.inference --quick
  python -m benchmarks.inference --models vit_small_patch16_224 --batches 1 16

Peers that are not installed are left out with a line that says so. The speed of
timm is 1.
"""

from benchmarks import models

if __name__ == '__main__':
  models.main('inference', __doc__)
