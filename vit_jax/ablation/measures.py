"""What papers measure of a trained model besides its test accuracy.

A recipe's `measure(config, directory)` calls these functions, and
`python -m vit_jax.ablate` calls it after each run.
"""

from typing import Any

import jax
import numpy as np

from vit_jax.analysis.similarity import layer_similarity, similar_blocks
from vit_jax.data.sources.opening import open_source
from vit_jax.evaluation.fewshot import fewshot
from vit_jax.inference.loading import load_classifier
from vit_jax.recipe.inputs import open_eval_sets
from vit_jax.recipe.keys import preprocessing
from vit_jax.recipe.sections import Config


def fewshot_accuracy(config: Config, directory: Any, shots: int) -> float:
  """Few-shot accuracy of a run's features, in per cent.

  The mean of three draws of the support set (`vit_jax.evaluation.fewshot`), on
  the data set that `eval.fewshot` names.

  Args:
    config: recipe of the run.
    directory: its workdir.
    shots: training images per class.

  Raises:
    ValueError: the data cannot be opened, or a class has fewer images.
  """
  data = config.eval.fewshot
  train, test = (
    open_source(
      data.source,
      split=split,
      data_dir=data.dir or config.data.dir,
      num_classes=config.data.num_classes,
      num_examples=config.data.num_examples,
      image_size=preprocessing(config).size,
    )
    for split in (data.train, data.test)
  )
  classifier = load_classifier(str(directory))

  @jax.jit
  def features(images):
    return classifier.forward(classifier.on_device, images)[1]['pre_logits']

  results = fewshot(
    features, train, test, classifier.preprocessing, shots=(shots,)
  )
  return 100.0 * results[shots].mean


def similar_attention(
  config: Config, directory: Any, *, images: int = 16, threshold: float = 0.9
) -> float:
  """Share of blocks whose attention maps resemble the block before's.

  DeepViT (arXiv:2103.11886), section 3.3: two blocks are similar if the mean
  cosine of their attention maps, over heads and tokens, exceeds the threshold.

  Args:
    config: recipe of the run.
    directory: its workdir.
    images: number of images of the first eval set to average over.
    threshold: of the cosine.
  """
  classifier = load_classifier(str(directory))
  source = next(
    iter(open_eval_sets(config, classifier.model.num_classes).values())
  )
  examples = [source[i]['image'] for i in range(min(images, len(source)))]
  _, out = classifier.run(examples, attention=True)
  maps = [np.asarray(a) for a in out['attention']]
  return similar_blocks(layer_similarity(maps), threshold)
