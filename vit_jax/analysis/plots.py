"""Creates figures without a display, and saves them."""

import os
from typing import TYPE_CHECKING

from etils import epath

from vit_jax.files import as_path, open_atomically

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> 'Figure':
  """A figure of a size in inches, which pyplot does not keep in memory."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


FORMATS = ('png', 'svg', 'pdf')


def check_format(path: str | os.PathLike) -> str:
  """The format that the name of a picture says, one of FORMATS.

  Raises:
    ValueError: it is another one.
  """
  suffix = as_path(path).suffix.removeprefix('.').lower()
  if suffix not in FORMATS:
    raise ValueError(
      f'{os.fspath(path)}: the name of a picture must end with .png, .svg or '
      '.pdf'
    )
  return suffix


def save_figure(figure: 'Figure', path: str | os.PathLike) -> epath.Path:
  """Writes a figure in the format of the path's suffix, and returns the path.

  Args:
    figure: the figure.
    path: .png, .svg or .pdf; its directory is made.

  Raises:
    ValueError: the path has another suffix.
  """
  path, form = as_path(path), check_format(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open_atomically(path, 'wb') as file:
    figure.savefig(file, format=form, dpi=150, facecolor='white')
  return path
