"""Pictures of how good predictions are: confusion matrix and calibration."""

from collections.abc import Sequence
import os

from etils import epath
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure
from vit_jax.evaluation.scores import Calibration

_MOST_NAMES = 40  # classes that are named on the axes
_MOST_CLASSES = 2000  # of a picture; more are narrower than its pixels


def plot_confusion(
  matrix: np.ndarray,
  names: Sequence[str],
  path: str | os.PathLike,
  title: str = '',
) -> epath.Path:
  """Draws a confusion matrix; every row is divided by its sum.

  Args:
    matrix: (C, C) numbers of images, rows are labels.
    names: of the C classes.
    path: of the PNG file to write.
    title: above the picture.

  Raises:
    ValueError: there are too many classes for a picture.
  """
  classes = len(matrix)
  if classes > _MOST_CLASSES:
    raise ValueError(
      f'{classes:,} classes are too many for a picture of {_MOST_CLASSES:,}'
    )
  total = matrix.sum(axis=1, keepdims=True)
  share = np.where(total > 0, matrix / np.maximum(total, 1), np.nan)
  side = 4.5 + 0.22 * min(classes, _MOST_NAMES)
  figure = new_figure(side + 0.8, side)
  axes = figure.add_subplot()
  image = axes.imshow(100 * share, cmap='Blues', vmin=0, vmax=100)
  axes.set_xlabel('predicted class')
  axes.set_ylabel('label')
  axes.set_title(title, fontsize=10)
  if classes <= _MOST_NAMES:
    axes.set_xticks(range(classes), names, rotation=90, fontsize=8)
    axes.set_yticks(range(classes), names, fontsize=8)
  if classes <= 20:
    for row, column in zip(*np.nonzero(matrix), strict=True):
      axes.text(
        column,
        row,
        f'{matrix[row, column]:,}',
        ha='center',
        va='center',
        fontsize=7,
        color='white' if share[row, column] > 0.5 else 'black',
      )
  figure.colorbar(
    image, ax=axes, shrink=0.8, label='% of the images of a label'
  )
  return save_figure(figure, path)


def plot_calibration(
  result: Calibration, path: str | os.PathLike, title: str = ''
) -> epath.Path:
  """Draws a reliability diagram (arXiv:1706.04599, figure 1).

  Above it is the share of the images in each bin of confidence.

  Args:
    result: of `scores.calibration`.
    path: of the PNG file to write.
    title: above the picture.
  """
  figure = new_figure(5, 5.6)
  top, bottom = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': (1, 3)}
  )
  center = (result.edges[:-1] + result.edges[1:]) / 2
  width = np.diff(result.edges) * 0.94
  top.bar(center, 100 * result.count / result.count.sum(), width, color='0.6')
  top.set_ylabel('% of images')
  top.set_title(
    f'{title}\nexpected calibration error {100 * result.error:.2f} %',
    fontsize=10,
  )
  bottom.bar(center, result.accuracy, width, color='C0', label='accuracy')
  bottom.plot(
    result.confidence, result.accuracy, 'o', color='black', markersize=3
  )
  bottom.plot((0, 1), (0, 1), '--', color='0.4', label='as confident as right')
  bottom.set_xlim(0, 1)
  bottom.set_ylim(0, 1)
  bottom.set_xlabel('confidence: probability of the best class')
  bottom.set_ylabel('accuracy')
  bottom.legend(loc='upper left', fontsize=8)
  return save_figure(figure, path)
