"""What is compiled: a recipe and a chip, with the facts of the data."""

import dataclasses
from typing import Any

from vit_jax.aot.chips import EXAMPLES


@dataclasses.dataclass(frozen=True)
class Request:
  """What a compilation is asked for; it is sent to a process of its own."""

  config: Any
  chip: str  # key of CHIPS
  grid: str
  effort: str  # 'full' or 'fast'
  evaluate: bool
  num_classes: int | None
  num_examples: int | None
  program_file: str | None


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What a train step must know of its data."""

  num_classes: int
  num_examples: int
  multi_label: bool


def data_facts(
  config: Any, num_classes: int | None, num_examples: int | None
) -> DataFacts:
  """The facts of a recipe's data, also where the data is not on this machine.

  Args:
    config: the recipe.
    num_classes, num_examples: given by the user; None takes those of the
      recipe, then the published ones of a data set of so many classes, and
      opens the data set at last.
  """
  num_classes = num_classes or config.data.num_classes
  num_examples = num_examples or config.data.num_examples
  if num_classes and (num_examples or num_classes in EXAMPLES):
    packed = config.data.source == 'packed'
    return DataFacts(
      num_classes,
      num_examples or EXAMPLES[num_classes],
      packed and config.loss.name == 'sigmoid',
    )
  if not num_classes and config.data.source == 'tfds:imagenet2012':
    return DataFacts(1_000, num_examples or EXAMPLES[1_000], False)
  from vit_jax.recipe.inputs import open_train_source

  source = open_train_source(config)
  return DataFacts(
    num_classes or source.num_classes,
    num_examples or len(source),
    source.multi_label,
  )
