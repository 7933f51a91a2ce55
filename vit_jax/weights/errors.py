"""The error that all functions of `vit_jax.weights` raise."""


class WeightsError(ValueError):
  """Weights that cannot be read, do not fit a model, or cannot be written."""
