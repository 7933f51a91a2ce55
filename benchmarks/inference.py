"""Measures inference beside its peers, in the same rounds.

The peers are timm, eager and compiled, and transformers, under PyTorch; and for
ViT-Ti/16, S/16 and B/16 also jimm (`pip install jax-image-models`) and equimo,
in JAX.

  python -m benchmarks.inference --quick
  python -m benchmarks.inference --models vit_small_patch16_224 --batches 1 16

Peers that are not installed are left out with a line that says so. The speed of
timm is 1.
"""

from benchmarks import models

if __name__ == '__main__':
  models.main('inference', __doc__)
