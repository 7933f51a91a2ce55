"""Creates figures without a display, and saves them as PNG."""

import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> 'Figure':
  """A figure of a size in inches, which pyplot does not keep in memory."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def save_figure(figure: 'Figure', path: str | os.PathLike) -> pathlib.Path:
  """Writes a figure as PNG, creates its directory, and returns the path."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150, facecolor='white')
  return path
