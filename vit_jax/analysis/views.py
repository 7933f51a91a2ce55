"""Which attention a rollout shows: layers, a head, the larger probabilities."""

import dataclasses

import numpy as np

from vit_jax.analysis import rollout
from vit_jax.analysis.attend import Attention


@dataclasses.dataclass(frozen=True)
class View:
  """Which attention a rollout shows.

  Attributes:
    layers, head, discard: see `rollout.select`.
    fill: replace outliers, see `rollout.fill_outliers`.
    overlays: directory for each shaded photo at its own resolution; '' for
      none.
  """

  layers: tuple[int, int] | None = None
  head: int | None = None
  discard: float = 0.0
  fill: bool = False
  overlays: str = ''

  def describe(self, count: int) -> str:
    """The name of the maps of a model with so many layers."""
    words = ['rollout']
    if self.layers is not None:
      first, last = (n if n > 0 else n + count + 1 for n in self.layers)
      words = [f'rollout of the layers {first} to {last}']
      if first == last:
        words = [f'layer {last}' + ', the last' * (last == count)]
    if self.head is not None:
      words.append(f'head {self.head}')
    if self.discard:
      words.append(f'{self.discard:.0%} discarded')
    if self.fill:
      words.append('outliers filled')
    return ', '.join(words)


def shown_layers(
  attention: Attention, view: View
) -> tuple[list[np.ndarray], int]:
  """The maps of a view, for `rollout.rollout_maps`, and its `num_prefix`.

  Raises:
    ValueError: the model has no such layer or head.
  """
  choose = lambda maps: rollout.select(
    maps, head=view.head, discard=view.discard
  )
  patches, count = choose(attention.maps), len(attention.maps)
  if not attention.class_maps:
    return rollout.select(patches, layers=view.layers), attention.num_prefix
  joined = rollout.join_class_layers(patches, choose(attention.class_maps))
  last = view.layers[1] if view.layers else -1
  if 0 < last <= count or last < count - len(joined):
    # The class token has no attention yet, so all patches are averaged.
    layers = rollout.select(joined, layers=view.layers)
    return [a[:, :, 1:, 1:] for a in layers], 0
  return rollout.select(joined, layers=view.layers), 1


def outlier_note(share: float, view: View) -> str:
  """What to do about a fraction of outliers; '' for few, or for a chosen view.

  Args:
    share: fraction of the patches that are outliers.
    view: which attention was drawn.
  """
  if share < 0.002 or dataclasses.replace(view, overlays='') != View():
    return ''
  return (
    f'note: {share:.1%} of the patches get more than {rollout.OUTLIER:g} times '
    'the attention of their neighbors. Large models such as DINOv2 without '
    'registers keep global information in patches without content. Try '
    '--fill-outliers, --layer -1, --layer=-4:-1, --head N or --discard 0.9'
  )
