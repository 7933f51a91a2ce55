"""The error of everything in this package."""


class WeightsError(ValueError):
  """Weights that cannot be read, do not fit a model, or cannot be written."""
