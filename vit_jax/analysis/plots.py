"""Creates figures without a display, and saves them as PNG."""

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


def save_figure(figure: 'Figure', path: str | os.PathLike) -> epath.Path:
  """Writes a figure as PNG, creates its directory, and returns the path."""
  path = as_path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open_atomically(path, 'wb') as file:
    figure.savefig(file, format='png', dpi=150, facecolor='white')
  return path
