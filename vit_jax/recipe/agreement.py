"""What the processes of a run must have in common."""

from collections.abc import Mapping
import os
from typing import Any

from vit_jax.data.identity import data_identity
from vit_jax.data.sources.source import Source
from vit_jax.parallel import agreement, processes
from vit_jax.recipe.build import Run
from vit_jax.recipe.keys import to_json
from vit_jax.training.writers import versions
from vit_jax.weights.steps import absolute

# Keys that may differ from host to host: where the data lies and how many
# threads read it.
_MAY_DIFFER = ('dir', 'threads', 'workers', 'prefetch')


def facts_of_run(
  run: Run,
  workdir: str | os.PathLike,
  source: Source,
  eval_sets: Mapping[str, Source],
) -> dict[str, Any]:
  """Plain JSON values for `require_agreement`; {} where there is one process.

  Args:
    run: what `build` made of the recipe.
    workdir: of the run.
    source: of the training data.
    eval_sets: by name.
  """
  if processes.current_job() is None:
    return {}
  recipe = to_json(run.config)
  for values in (recipe['data'], *recipe['eval']['sets'].values()):
    for key in _MAY_DIFFER:
      values.pop(key, None)
  devices = run.mesh.devices
  return {
    'recipe': recipe,
    'workdir': str(absolute(workdir)),
    'code': agreement.code_fingerprint(),
    'versions': versions(),
    'jax': agreement.jax_settings(),
    'mesh': {
      'shape': dict(run.mesh.shape),
      'devices': [[d.id, d.process_index] for d in devices.flat],
      'kind': devices.flat[0].device_kind,
    },
    'parameters': run.parameters,
    'steps': run.total_steps,
    'training data': data_identity(source),
    'eval sets': {name: data_identity(s) for name, s in eval_sets.items()},
  }
