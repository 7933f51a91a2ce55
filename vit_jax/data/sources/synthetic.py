"""Synthetic images, for tests and trial runs without data."""

import numpy as np

from vit_jax.data.identity import fingerprint
from vit_jax.data.sources.source import Source, checked_index


class Synthetic(Source):
  """Images of noise around a color that depends on the class.

  Image, label and id are a pure function of (split, index).

  Args:
    split: any name; different names give different noise.
    num_examples: number of images.
    num_classes: number of classes; example i has class i % num_classes.
    image_size: (height, width) of the images.

  Raises:
    ValueError: `num_examples` or `num_classes` is not positive.
  """

  in_memory = True

  def __init__(
    self,
    split: str,
    num_examples: int,
    num_classes: int,
    image_size: tuple[int, int],
  ):
    if num_examples < 1 or num_classes < 1:
      raise ValueError(
        f'synthetic data with num_examples={num_examples}, num_classes='
        f'{num_classes}: both must be at least 1'
      )
    self._n, self._stream = num_examples, int(fingerprint(split)[:8], 16)
    self.num_classes = num_classes
    self.image_shape = self._size = image_size
    self.name = f'synthetic/{split}'
    self.fingerprint = fingerprint(
      'synthetic', split, num_examples, num_classes, image_size
    )

  def __len__(self) -> int:
    return self._n

  def labels(self) -> np.ndarray:
    return np.arange(self._n) % self.num_classes

  def __getitem__(self, i):
    i = checked_index(i, self._n)
    label = i % self.num_classes
    rng = np.random.Generator(np.random.Philox(key=[self._stream, i]))
    # Multiples of irrational numbers, modulo 1, keep the colors apart.
    color = np.floor(
      np.array([0.618034, 0.754878, 0.569840]) * (label + 1) % 1.0 * 192
    ).astype(np.uint8)
    noise = rng.integers(0, 64, (*self._size, 3), dtype=np.uint8)
    return {'image': noise + color, 'label': label, 'id': f'{self.name}/{i}'}
