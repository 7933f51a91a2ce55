"""Labels, evaluation metrics and few-shot probe against recorded outputs."""

import re

import jax
import numpy as np

from tests.parity.check_training import compare_relative
from tests.parity.harness import Case, kind
from vit_jax.data.sources.source import Source
from vit_jax.evaluation.fewshot import ridge_scores, support_indices
from vit_jax.training import augment, losses, metrics


class LabelSets(Source):
  """A multi-label source of recorded label sets, which -1 pads."""

  multi_label, in_memory = True, True

  def __init__(self, sets: np.ndarray, num_classes: int):
    self._sets, self.num_classes = sets, num_classes

  def __len__(self):
    return len(self._sets)

  def __getitem__(self, i):
    labels = [int(x) for x in self._sets[i] if x >= 0]
    pixel = np.zeros((1, 1, 3), np.uint8)
    return {'image': pixel, 'label': labels, 'id': str(i)}


def multi_hot(sets: np.ndarray, num_classes: int) -> np.ndarray:
  _, labels = LabelSets(sets, num_classes).arrays()
  return labels


@kind('labels_classification')
def check_classification(case: Case) -> None:
  """Labels by the names of config, then the evaluator's sums for each loss."""
  logits, mask = case.inputs['logits'], case.inputs['mask']
  for name, text in case.config.items():
    depth, key = re.match(r'onehot\((\d+), key="(\w+)"', text).groups()
    options = dict(re.findall(r'(on|off)=([\d.e-]+)', text))
    if key == 'real_label':
      labels = multi_hot(case.inputs['real_label_sets'], int(depth))
    else:
      labels = augment.one_hot(case.inputs['single_labels'], int(depth))
    label_range = float(options.get('off', 0)), float(options.get('on', 1))
    labels = np.asarray(losses.to_range(labels, label_range))
    case.compare(f'labels.{name}', labels, 1e-6)
    for loss in ('softmax', 'sigmoid'):
      prefix = f'{name}.{loss}_xent'
      per_example = losses.LOSSES[loss](logits, labels)
      compare_relative(case, f'{prefix}.per_example', per_example)
      sums = jax.jit(metrics.batch_metrics)(logits, labels, per_example, mask)
      compare_relative(
        case,
        f'{prefix}.ncorrect_loss_nseen',
        [sums['top1'], sums['loss'], sums['examples']],
      )
      means = metrics.summarize(jax.device_get(sums))
      compare_relative(
        case, f'{prefix}.prec1_loss', [means['top1'], means['loss']]
      )
      if name == 'real' and loss == 'softmax':
        # The class with the largest logit is one of the image's labels.
        compare_relative(case, 'real_accuracy_set_form', means['top1'])


@kind('labels_real_timm')
def check_real(case: Case) -> None:
  logits, order = case.inputs['logits'], case.inputs['order']
  labels = multi_hot(case.inputs['real_label_sets'], logits.shape[1])
  topk = tuple(case.config['topk'])
  sums = jax.jit(lambda *args: metrics.batch_metrics(*args, topk=topk))(
    logits, labels[order]
  )
  means = metrics.summarize(jax.device_get(sums))
  atol = case.meta['tolerance']['atol']
  for k in topk:
    case.compare(f'top{k}', 100 * means[f'top{k}'], atol)


@kind('labels_fewshot')
def check_fewshot(case: Case) -> None:
  config, tolerance = case.config, case.meta['tolerance']
  x, y = case.inputs['train_features'], case.inputs['train_labels']
  test_x, test_y = case.inputs['test_features'], case.inputs['test_labels']
  classes = config['num_classes']
  case.compare('l2', config['l2'], 1e-12)
  case.compare('shots', config['shots'], 1e-12)
  accuracy = np.zeros(case.outputs['accuracy'].shape)
  for j, seed in enumerate(config['seeds']):
    for k, shots in enumerate(config['shots']):
      name = f'seed{seed}.shots{shots}'
      chosen = support_indices(y, classes, shots, seed)
      case.compare(f'indices.{name}', chosen, 0.0)
      for i, l2 in enumerate(config['l2']):
        scores = ridge_scores(x[chosen], y[chosen], test_x, classes, l2=l2)
        accuracy[i, j, k] = np.mean(np.argmax(scores, axis=1) == test_y)
        key = f'scores_float64.{name}'
        if i == 0 and key in case.outputs:
          want = case.outputs[key]
          case.compare(
            key,
            scores[: len(want)],
            tolerance['scores_rtol_of_max'] * np.abs(want).max(),
          )
  case.compare('accuracy', accuracy, tolerance['accuracy_atol'])
