"""Measures of a trained model, besides its test accuracy, that papers report.

A recipe of an ablation calls these functions in its function
`measure(config, directory)`, which `python -m vit_jax.ablate` calls after each
run.
"""

import os

import jax
import numpy as np

from vit_jax.analysis.similarity import layer_similarity, similar_blocks
from vit_jax.data.sources.opening import open_source
from vit_jax.evaluation.fewshot import fewshot
from vit_jax.inference.loading import load_classifier
from vit_jax.recipe.inputs import open_eval_sets
from vit_jax.recipe.keys import preprocessing
from vit_jax.recipe.sections import Config


def fewshot_accuracy(
  config: Config, directory: str | os.PathLike, shots: int
) -> float:
  """The few-shot accuracy of a run's features, in percent.

  It is the mean over three random choices of the training images, see
  `vit_jax.evaluation.fewshot`, on the data set in the recipe's `eval.fewshot`.

  Args:
    config: recipe of the run.
    directory: workdir of the run.
    shots: number of training images per class.

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
  config: Config,
  directory: str | os.PathLike,
  *,
  images: int = 16,
  threshold: float = 0.9,
) -> float:
  """The share of blocks with attention maps similar to the previous block's.

  As in DeepViT (arXiv:2103.11886), section 3.3, two blocks are similar if the
  cosine similarity of their maps, averaged over heads and tokens, exceeds a
  threshold.

  Args:
    config: recipe of the run.
    directory: workdir of the run.
    images: number of images to average over, from the first eval set.
    threshold: the threshold.
  """
  classifier = load_classifier(str(directory))
  source = next(
    iter(open_eval_sets(config, classifier.model.num_classes).values())
  )
  examples = [source[i]['image'] for i in range(min(images, len(source)))]
  _, out = classifier.run(examples, attention=True)
  maps = [np.asarray(a) for a in out['attention']]
  return similar_blocks(layer_similarity(maps), threshold)
