"""What the plots share: a headless figure, saving."""

import pathlib


def new_figure(width: float, height: float):
  """A figure of the given size in inches, without pyplot's global state."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def save_figure(figure, path) -> pathlib.Path:
  """Writes a PNG, making its directory."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150, facecolor='white')
  return path
