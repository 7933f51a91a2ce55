"""The record beside weights: which model they are for and how to feed it."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from vit_jax.preprocessing import Preprocessing, as_size


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
  """What checkpoint steps, weight files and exported programs say about them.

  Every attribute is optional: the weight files of other projects know nothing,
  and `WeightsMetadata()` stands for that.

  Attributes:
    model: registered name.
    module: Python module that registers the model, '' for the models of this
      package; see `models.registry.load_module`.
    fields: fields of the model that differ from those of its name.
    num_classes: outputs of the head.
    classes: names of the outputs, in order.
    preprocessing: how images are fed to the model.
    image_size: (height, width) in pixels; that of `preprocessing` where there
      is one. It gives the grid of a position table that is not square.
    loss: key of `losses.LOSSES` that the head was trained with, which says how
      logits become probabilities.
    average: the run was evaluated with its averaged parameters, so these are
      the ones to load from a step that holds both.
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

  def to_json(self) -> dict[str, Any]:
    """Plain JSON values, with 'version'; unknown attributes are left out."""
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
    """Reads what `to_json` wrote, or the metadata of version 0.1.0.

    Other keys than those of the record are ignored, so that the record can
    stand among the values of a larger file.

    Raises:
      ValueError: a later version wrote it, or a value is not allowed.
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
  """Reads version 0.1.0: the recipe under 'config', the rest beside it.

  Files that were converted have a recipe of a few keys only, and the metadata
  of a file that a user wrote may lack all of it.
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
    # 0 stood for an image that is resized without regard to its aspect ratio.
    feeding['crop'] = feeding['crop'] or None
    preprocessing = Preprocessing(**feeding)
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
  """JSON lists as tuples, which fields of Linen modules have to be."""
  if isinstance(value, Mapping):
    return {k: _with_tuples(v) for k, v in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
