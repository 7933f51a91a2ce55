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


DPI = 150  # pixels per inch of .png and .jpg, if not set otherwise
FORMATS = ('png', 'jpg', 'svg', 'pdf')


def check_format(path: str | os.PathLike) -> str:
  """The format that the name of a picture says, one of FORMATS.

  Raises:
    ValueError: it is another one.
  """
  suffix = as_path(path).suffix.removeprefix('.').lower()
  suffix = 'jpg' if suffix == 'jpeg' else suffix
  if suffix not in FORMATS:
    raise ValueError(
      f'{os.fspath(path)}: the name of a picture must end with .png, .jpg, '
      '.svg or .pdf'
    )
  return suffix


def set_dpi(dpi: int) -> None:
  """Sets the pixels per inch of the .png and .jpg that are written."""
  import matplotlib

  matplotlib.rcParams['savefig.dpi'] = dpi


def save_figure(figure: 'Figure', path: str | os.PathLike) -> epath.Path:
  """Writes a figure in the format of the path's suffix, and returns the path.

  Args:
    figure: the figure.
    path: .png, .jpg, .svg or .pdf; its directory is made.

  Raises:
    ValueError: the path has another suffix.
  """
  import matplotlib

  path, form = as_path(path), check_format(path)
  dpi = matplotlib.rcParams['savefig.dpi']
  dpi = DPI if dpi == 'figure' else dpi  # 'figure' is matplotlib's default
  path.parent.mkdir(parents=True, exist_ok=True)
  with open_atomically(path, 'wb') as file:
    figure.savefig(file, format=form, dpi=dpi, facecolor='white')
  return path
