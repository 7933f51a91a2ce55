"""Sends the metrics of a run to Weights & Biases or MLflow.

`log.writers=('wandb', 'mlflow')` names them. Neither is a requirement: each is
imported when a recipe names it. Projects, servers and keys are set as their own
documentation says, by environment variables such as WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.

A run that goes on continues the same run there; WORKDIR/trackers.json has its
id. An error of a tracker ends the tracking and not the run.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib
import importlib.util
import json
import os
from typing import Any
import uuid

from absl import logging
from etils import epath

from vit_jax.files import read_text, write_atomically

PROJECT = 'vit_jax'  # where the environment names none
_IDS = 'trackers.json'
_LONGEST = 500  # characters of a parameter in MLflow


class _Wandb:
  """A run of Weights & Biases."""

  def __init__(
    self,
    workdir: epath.Path,
    name: str,
    recipe: Mapping[str, Any],
    run_id: str | None,
  ):
    wandb = importlib.import_module('wandb')
    self.id = run_id or uuid.uuid4().hex[:12]
    self._image = wandb.Image
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      id=self.id,
      resume='allow',
      name=name,
      config=dict(recipe),
    )
    # Steps that a stopped run made again may be sent twice, which the own
    # counter of W&B does not allow.
    self._run.define_metric('*', step_metric='step')

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({'step': step, **values})

  def image(self, step: int, name: str, picture: Any) -> None:
    self._run.log({'step': step, name: self._image(picture)})

  def close(self) -> None:
    self._run.finish()


class _Mlflow:
  """A run of MLflow."""

  def __init__(
    self,
    workdir: epath.Path,
    name: str,
    recipe: Mapping[str, Any],
    run_id: str | None,
  ):
    self._mlflow = importlib.import_module('mlflow')
    if 'MLFLOW_EXPERIMENT_NAME' not in os.environ and run_id is None:
      self._mlflow.set_experiment(PROJECT)
    run = self._mlflow.start_run(run_id=run_id, run_name=name)
    self.id = run.info.run_id
    if run_id is None:  # the parameters of a run cannot change
      text = {k: str(v)[:_LONGEST] for k, v in recipe.items()}
      self._mlflow.log_params(text)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._mlflow.log_metrics(dict(values), step=step)

  def image(self, step: int, name: str, picture: Any) -> None:
    self._mlflow.log_image(picture, f'{name.replace("/", "_")}_{step}.png')

  def close(self) -> None:
    self._mlflow.end_run()


TRACKERS: dict[str, Callable[..., Any]] = {'wandb': _Wandb, 'mlflow': _Mlflow}


def check_trackers(names: Sequence[str]) -> None:
  """Checks the value of log.writers.

  Raises:
    ValueError: an unknown name, or a package that is not installed.
  """
  for name in names:
    if name not in TRACKERS:
      raise ValueError(
        f'log.writers={tuple(names)}: {name!r} is not known; allowed: '
        f'{", ".join(TRACKERS)}'
      )
    if importlib.util.find_spec(name) is None:
      raise ValueError(
        f'log.writers={tuple(names)}: the package {name} is not installed: '
        f'pip install {name}'
      )


class Trackers:
  """The trackers of a run; none for most runs.

  Args:
    names: of log.writers.
    workdir: the run's directory.
    name: of the run.
    recipe: {'section.key': value}.
    resumes: whether the run goes on, so that its ids count.
  """

  def __init__(
    self,
    names: Sequence[str],
    workdir: epath.Path,
    name: str,
    recipe: Mapping[str, Any],
    resumes: bool,
  ):
    self._open: dict[str, Any] = {}
    path = workdir / _IDS
    ids = _read_ids(path) if resumes and names else {}
    for kind in names:
      self._try(
        kind,
        lambda kind=kind: self._open.update(
          {kind: TRACKERS[kind](workdir, name, recipe, ids.get(kind))}
        ),
      )
    if names:
      ids |= {kind: tracker.id for kind, tracker in self._open.items()}
      write_atomically(path, json.dumps(ids) + '\n')

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Sends numbers, such as {'eval/test_top1': 0.9}."""
    for kind, tracker in list(self._open.items()):
      self._try(kind, lambda tracker=tracker: tracker.scalars(step, values))

  def image(self, step: int, name: str, picture: Any) -> None:
    """Sends a picture, given as an image of Pillow."""
    for kind, tracker in list(self._open.items()):
      self._try(
        kind, lambda tracker=tracker: tracker.image(step, name, picture)
      )

  def close(self) -> None:
    """Ends the runs of all trackers."""
    for kind, tracker in list(self._open.items()):
      self._try(kind, tracker.close)

  def _try(self, kind: str, action: Callable[[], Any]) -> None:
    try:
      action()
    except Exception as e:  # a server that does not answer, or a full disk
      self._open.pop(kind, None)
      logging.error(
        '%s failed and gets nothing more of this run: %s: %s',
        kind,
        type(e).__name__,
        e,
      )


def _read_ids(path: epath.Path) -> dict[str, str]:
  """{tracker: id} of a run that was stopped; {} if it had none."""
  try:
    ids = json.loads(read_text(path))
    return {str(k): str(v) for k, v in ids.items()}
  except (OSError, ValueError, AttributeError):
    return {}
