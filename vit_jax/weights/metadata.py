"""The metadata of weights: their model, preprocessing, classes and recipe."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from vit_jax.preprocessing import Preprocessing, as_size

# Larger numbers are taken for a mistake or damage: a head of so many classes
# has more parameters than any model, and an image of such sides does not fit
# into memory.
MOST_CLASSES = 10_000_000
_LONGEST_SIDE = 2**15


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
  """The metadata in checkpoint steps, weight files and exported programs.

  Every attribute is optional. `WeightsMetadata()` stands for the weight files
  of other projects, which have no such metadata.

  Attributes:
    model: registered name of the model.
    module: Python module that registers the model, '' for the models of this
      package; see `models.registry.load_module`.
    fields: fields of the model that differ from those of its registered name.
    num_classes: number of outputs of the head.
    classes: class names, in the order of the outputs.
    preprocessing: how an image becomes the input of the model.
    image_size: (height, width) in pixels; the size of `preprocessing` if there
      is one. It tells the grid of a position table that is not square.
    loss: key of `losses.LOSSES` that the head was trained with; it tells how
      logits become probabilities.
    average: whether the run was evaluated with its averaged parameters, which
      are then the ones to load from a step that has both.
    data: fingerprint of the training data.
    parameters: number of parameters.
    recipe: the complete recipe of the run, as in WORKDIR/config.json.
  """

  VERSION: ClassVar[int] = 1

  model: str | None = None
  module: str = ''
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  num_classes: int | None = None
  classes: tuple[str, ...] | None = None
  preprocessing: Preprocessing | None = None
  image_size: tuple[int, int] | None = None
  loss: str = 'softmax'
  average: bool = False
  data: str | None = None
  parameters: int | None = None
  recipe: dict[str, Any] | None = None

  def __post_init__(self):
    object.__setattr__(self, 'fields', _with_tuples(self.fields))
    if self.classes is not None:
      object.__setattr__(self, 'classes', tuple(self.classes))
    size = self.preprocessing.size if self.preprocessing else self.image_size
    if size is not None:
      object.__setattr__(self, 'image_size', as_size(size))
      if max(self.image_size or ()) > _LONGEST_SIDE:
        raise ValueError(
          f'its metadata has image_size={size}; at most {_LONGEST_SIDE:,} '
          'pixels are allowed for each side'
        )
    if self.num_classes is not None and not (
      isinstance(self.num_classes, int)
      and 0 <= self.num_classes <= MOST_CLASSES
    ):
      raise ValueError(
        f'its metadata has num_classes={self.num_classes!r}; allowed: 0 to '
        f'{MOST_CLASSES:,}'
      )

  def to_json(self) -> dict[str, Any]:
    """The record as JSON values, with 'version' and without what is None."""
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    if self.preprocessing is not None:
      values['preprocessing'] = self.preprocessing.to_json()
    for name in ('classes', 'image_size'):
      if values[name] is not None:
        values[name] = list(values[name])
    return {
      'version': self.VERSION,
      **{k: v for k, v in values.items() if v is not None},
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'WeightsMetadata':
    """Reads what `to_json` wrote, or the metadata of vit_jax 0.1.0.

    Keys that are not attributes are ignored, because a file may have the record
    together with other values.

    Raises:
      ValueError: the record has another version, or a value is not allowed.
    """
    if 'version' not in values:
      return _from_unversioned(values)
    if values['version'] != cls.VERSION:
      raise ValueError(
        f'its metadata has version {values["version"]!r}, and this vit_jax '
        f'reads version {cls.VERSION}: use the vit_jax that wrote it, or a '
        'later one'
      )
    names = {field.name for field in dataclasses.fields(cls)}
    known = {k: v for k, v in values.items() if k in names}
    if known.get('preprocessing') is not None:
      known['preprocessing'] = Preprocessing.from_json(known['preprocessing'])
    return cls(**known)


def _from_unversioned(values: Mapping[str, Any]) -> WeightsMetadata:
  """Reads the metadata of vit_jax 0.1.0.

  It has the recipe of the run under 'config', and other values beside it. In
  files that `vit-jax convert` wrote, the recipe has a few keys only. Any key
  may be missing.
  """
  recipe = values.get('config') or {}
  section = lambda name: recipe.get(name) or {}
  fields = dict(section('model'))
  model = fields.pop('name', None)
  feeding = {
    'size': values.get('image_size'),
    'crop': section('eval').get('crop'),
    'interpolation': section('eval').get('interpolation'),
    'normalize': section('data').get('normalize'),
  }
  preprocessing = None
  if all(value is not None for value in feeding.values()):
    # A crop of 0 meant that images are resized without keeping the aspect
    # ratio.
    feeding['crop'] = feeding['crop'] or None
    # The orientation of photos was ignored.
    preprocessing = Preprocessing(**feeding, upright=False)
  return WeightsMetadata(
    model=model,
    fields=fields,
    num_classes=values.get('num_classes'),
    classes=values.get('classes'),
    preprocessing=preprocessing,
    image_size=values.get('image_size'),
    loss=section('loss').get('name', 'softmax'),
    average=bool(section('eval').get('ema') and section('optim').get('ema')),
    data=values.get('data'),
    parameters=values.get('parameters'),
    recipe=dict(recipe) if 'run' in recipe else None,
  )


def _with_tuples(value: Any) -> Any:
  """Converts the lists of JSON to tuples, which Linen fields must be."""
  if isinstance(value, Mapping):
    return {k: _with_tuples(v) for k, v in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
