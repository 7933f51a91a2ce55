"""timm's names of models: what this package builds for them.

`create_model('vit_base_patch16_224.augreg2_in21k_ft_in1k')` makes the model of
a name of timm, with a tag or without, and `model_info` says how timm feeds it.
The names are not listed among those of `vit-jax models`: they stand for the
same classes with timm's fields, such as the exact GELU.

The table in timm_models.json has, for the modules of timm that are of this
family, the class or registered name and the fields of each architecture, and
the image size, crop, interpolation, normalization and way to crop of each tag.
`python -m tests.zoo.table` writes it.
"""

from collections.abc import Sequence
import functools
import json
import math
import pathlib
from typing import Any, NamedTuple

from vit_jax.preprocessing import NORMALIZATION, Preprocessing

_TABLE = pathlib.Path(__file__).with_name('timm_models.json')
_SCHEMES = ('hf-hub:', 'hf_hub:', 'hf:')


class TimmModel(NamedTuple):
  """What a name of timm stands for.

  Attributes:
    name: the name without a scheme and an organization.
    base: name of a registered model, or the class 'Tower' or 'ResNetV2'.
    fields: fields that differ from those of the base.
    preprocessing: how timm feeds the model.
  """

  name: str
  base: str
  fields: dict[str, Any]
  preprocessing: Preprocessing


@functools.cache
def _table() -> dict[str, Any]:
  return json.loads(_TABLE.read_text())


def plain_name(name: str) -> str:
  """A name without 'hf-hub:' or another scheme, and without 'timm/'."""
  for scheme in _SCHEMES:
    name = name.removeprefix(scheme)
  return name.removeprefix('timm/')


def find(name: str) -> TimmModel | None:
  """What a name of timm stands for; None if it is none.

  Args:
    name: an architecture such as 'vit_base_patch16_224', with or without a tag,
      'timm/' and 'hf-hub:'. An unknown tag has the preprocessing of the
      architecture's first one.

  Raises:
    ValueError: it is an architecture of timm that is not of this family.
  """
  name = plain_name(name)
  architecture = name.partition('.')[0]
  table = _table()
  if architecture in table['others']:
    raise ValueError(
      f'{name!r} is a model of timm that this package does not have: its '
      'layers are those of no model of vit-jax models'
    )
  if architecture not in table['architectures']:
    return None
  base, fields = table['architectures'][architecture]
  feeding = table['preprocessing']
  size, crop, method, style, resize = feeding.get(name, feeding[architecture])
  return TimmModel(
    name,
    base,
    fields,
    Preprocessing(size, crop, method, style, crop_resize=resize),
  )


def normalize(mean: Sequence[float], std: Sequence[float]) -> str:
  """The `Preprocessing.normalize` of a mean and a deviation in [0, 1]."""
  values = (*mean, *std)
  for name, (a, b) in NORMALIZATION.items():
    if all(
      math.isclose(255 * x, y, abs_tol=1e-6)
      for x, y in zip(values, (*a, *b), strict=True)
    ):
      return name
  return f'mean_std({",".join(f"{value:.8g}" for value in values)})'


def interpolation(name: str) -> str:
  """The `Preprocessing.interpolation` of timm's name of one."""
  return {'bilinear': 'bilinear_antialias'}.get(name, name)


def crop_resize(mode: str) -> str:
  """The `Preprocessing.crop_resize` of timm's `crop_mode`."""
  return {'squash': 'squash', 'border': 'resize_long'}.get(mode, 'timm')


def names() -> list[str]:
  """All architectures of the table."""
  return sorted(_table()['architectures'])
