"""Measures training steps with AdamW beside its peers, in the same rounds.

The peers are timm, eager and compiled; and for ViT-Ti/16, S/16 and B/16 also
jimm (`pip install jax-image-models`) and equimo, in JAX.

  python -m benchmarks.train_step --quick
  python -m benchmarks.train_step --models vit_small_patch16_224 --batches 16

A step goes from a batch in memory to the new parameters. Peers that are not
installed are left out with a line that says so. The speed of timm is 1.
"""

from benchmarks import models

if __name__ == '__main__':
  models.main('training', __doc__)
