"""A request to compile a recipe, and what must be known of its data."""

import dataclasses

from vit_jax.aot.chips import EXAMPLES
from vit_jax.recipe.data import epoch_examples
from vit_jax.recipe.sections import Config


@dataclasses.dataclass(frozen=True)
class Request:
  """What to compile; it is sent to the process that compiles.

  Attributes:
    config: the recipe.
    chip: key of CHIPS.
    grid: grid of chips, such as '8x8'.
    effort: 'full' or 'fast', see `estimate.estimate`.
    evaluate: also compile the evaluation step.
    num_classes, num_examples: see `data_facts`.
    program_file: file for the text of the program; None for no file.
  """

  config: Config
  chip: str
  grid: str
  effort: str
  evaluate: bool
  num_classes: int | None
  num_examples: int | None
  program_file: str | None


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What the training step depends on in its data.

  Attributes:
    num_classes: number of classes.
    num_examples: number of examples in an epoch.
    multi_label: whether labels are vectors (C,) instead of numbers.
  """

  num_classes: int
  num_examples: int
  multi_label: bool


def data_facts(
  config: Config, num_classes: int | None, num_examples: int | None
) -> DataFacts:
  """The facts of a recipe's data, even if the data is not on this machine.

  Args:
    config: the recipe.
    num_classes, num_examples: numbers that the user gives, pseudo-labeled
      examples not counted. None takes those of the recipe, or else those of
      the published data set with so many classes, or else opens the data set.
  """
  num_classes = num_classes or config.data.num_classes
  num_examples = num_examples or config.data.num_examples
  ratio = config.data.pseudo_ratio
  if not num_classes and config.data.source == 'tfds:imagenet2012':
    num_classes = 1_000
  if num_classes and (num_examples or num_classes in EXAMPLES):
    packed = config.data.source == 'packed'
    return DataFacts(
      num_classes,
      (1 + ratio) * (num_examples or EXAMPLES[num_classes]),
      bool(ratio or config.data.pseudo_dir)
      or (packed and config.loss.name == 'sigmoid'),
    )
  from vit_jax.recipe.inputs import open_train_source

  source = open_train_source(config)
  return DataFacts(
    num_classes or source.num_classes,
    (1 + ratio) * num_examples
    if num_examples
    else epoch_examples(config, source),
    source.multi_label,
  )
