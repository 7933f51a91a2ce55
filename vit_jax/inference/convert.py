"""Weights from one format to another: .npz, .safetensors, workdir."""

import pathlib

from vit_jax.inference.classifier import Classifier, load_classifier
from vit_jax.weights import WeightsError, save_weights


def convert(
  source: str,
  target: str,
  *,
  model: str | None = None,
  image_size=None,
  fmt: str | None = None,
  **options,
) -> Classifier:
  """Reads weights in any format and writes them in another.

  Model name, image size, preprocessing and class names travel along.

  Args:
    source: .npz, .pth, .safetensors, workdir, step or hub name.
    target: .npz (published Google names), .safetensors (timm's names), or a
      directory without suffix: a workdir to fine-tune or predict from.
    model, image_size, **options: see `predict.load_classifier`.
    fmt: another naming, see `weights.known_formats`.

  Returns:
    What was loaded.

  Raises:
    WeightsError: unreadable weights, weights of another model, a target that
      exists or has another suffix.
  """
  path = pathlib.Path(target)
  if path.suffix not in ('.npz', '.safetensors', ''):
    raise WeightsError(
      f'cannot write {target}: its suffix must be .npz or '
      '.safetensors, or it is a directory without suffix'
    )
  if (
    path.suffix == ''
    and path.exists()
    and (not path.is_dir() or any(path.iterdir()))
  ):
    raise WeightsError(f'{target} exists and is not empty: name another')
  loaded = load_classifier(
    source, model=model, image_size=image_size, **options
  )
  if path.suffix:
    save_weights(
      loaded.variables, loaded.model, target, loaded.metadata(), fmt=fmt
    )
  else:
    _save_step(loaded, target)
  return loaded


def _save_step(loaded: Classifier, workdir: str):
  """A workdir with one step that holds parameters and no optimizer."""
  from vit_jax.training import checkpoint

  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(
    0,
    {
      'params': loaded.variables['params'],
      'batch_stats': loaded.variables.get('batch_stats', {}),
    },
    loaded.metadata(),
  )
  checkpoints.close()
