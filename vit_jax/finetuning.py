"""Fine-tunes a model on a folder of images with the published settings.

    summary = finetune('vit_b16', 'ViT-B_16.npz', 'flowers', 'runs/flowers')

The settings are in `vit_jax.recipe.finetuning`: SGD with momentum 0.9, a linear
warm-up and a cosine, gradients clipped to norm 1, no weight decay, a new head
that starts at zero, random crops of 5 to 100 % of the area, and flips. The
number of steps depends on the number of images.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import jax

from vit_jax.data.sources.vtab import TASKS, find_task
from vit_jax.evaluation import vtab as vtab_table
from vit_jax.files import as_path
from vit_jax.parallel import processes
from vit_jax.recipe.checks import check
from vit_jax.recipe.finetuning import folder_config
from vit_jax.recipe.inputs import open_eval_sets, open_train_source
from vit_jax.recipe.keys import ConfigError, to_json
from vit_jax.recipe.sections import Config
from vit_jax.recipe.stored import check_workdir
from vit_jax.recipe.vtab import task_config


def finetune(
  model: str | None,
  weights: str,
  data: str,
  workdir: str,
  *,
  show_batch: str = '',
  **options: Any,
) -> dict[str, Any]:
  """Fine-tunes and evaluates a model; a stopped run continues.

  Args:
    model: registered name; None takes the model that the weights name.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random parameters.
    data: folder of images (train/ and test/ with a directory per class, or
      only class directories), or a directory that `vit-jax pack` wrote.
    workdir: directory for checkpoints, metrics and the summary.
    show_batch: see `train_and_evaluate`.
    **options: options of `folder_config`:
      `steps` or `epochs`: length; by default 500 steps below 20,000 images,
        10,000 below 500,000, else 20,000.
      `lr`: peak learning rate; by default 0.03 for a batch of 512, and in
        proportion for other batch sizes.
      `batch_size`: images of all devices together; by default 512, on a CPU 32.
      `image_size`: pixels, or (height, width); by default the model's own. The
        papers use 384.
      `head_only`: train only the head, a linear probe.
      `layer_decay`: factor of the learning rate from each block to the block
        before it.
      `holdout`: fraction of the images for testing, if the folder has no test/;
        0 trains on all images and evaluates nothing.
      `flat`: every folder is a class, also one named 'train' or 'test'.
      `match_classes`: the key data.match_classes: 'names', 'numbers' or 'new'.
      `max_bad_fraction`: fraction of the images that may be unreadable (0.01);
        one always may.
      `seed`: seed of all random numbers.
      `module`: Python module that registers the model.
      `fields`: {name: value} of fields of the model.
      `keys`: {'section.key': value} of other keys of the recipe.

  Returns:
    The summary of `train_and_evaluate`; the accuracy is
    summary['results']['test']['top1'].

  Raises:
    ConfigError: the settings do not fit the model or the data.
    WeightsError: the weights cannot be read or do not fit the model.
  """
  from vit_jax import train

  return train.train_and_evaluate(
    folder_config(model, weights, data, **options),
    workdir,
    show_batch=show_batch,
  )


def vtab(
  model: str | None,
  weights: str,
  data: str | Mapping[str, str],
  output: str | os.PathLike,
  *,
  tasks: Sequence[str] = tuple(TASKS),
  say: Callable[[str], None] = lambda line: print(line, flush=True),
  **options: Any,
) -> dict[str, dict[str, Any]]:
  """Fine-tunes on the tasks of VTAB-1k, one after the other.

  Each task is a run with a workdir of its own, output/TASK. When the function
  is called again, finished tasks are skipped, and a stopped one continues. Only
  the data of one task is open at a time.

  Args:
    model, weights: as for `finetune`.
    data: TFDS's data_dir, or {task: directory} with the directory of the other
      tasks under ''. The directory of a task may be a folder of images or a
      packed data set too.
    output: directory for the workdirs, vtab.json and vtab.md, which is written
      after each task.
    tasks: the tasks to run.
    say: prints a line.
    **options: options of `vit_jax.recipe.vtab.task_config`.

  Returns:
    {task: {'top1', 'images', 'data'}} of all tasks that `output` has, those
    that are not among `tasks` too; {task: {'error'}} for a run whose loss was
    not finite.

  Raises:
    ConfigError, ValueError: there is no such task, a data set is not prepared,
      or the settings do not fit. All tasks are checked before the first run.
    Preempted: a run was told to stop, and has saved its state.
  """
  directories = {'': data} if isinstance(data, str) else dict(data)
  for task in (*tasks, *filter(None, directories)):
    find_task(task)
  configs = {
    task: task_config(
      model,
      weights,
      task,
      directories.get(task, directories.get('', '')),
      **options,
    )
    for task in TASKS
    if task in tasks
  }
  output = as_path(output)
  _check_tasks(configs, output)
  results = _earlier_results(output)
  for number, (task, config) in enumerate(configs.items()):
    workdir = output / task
    if not (workdir / 'summary.json').exists():
      say(f'{task}: task {number + 1} of {len(configs)}')
      results.pop(task, None)
    results[task] = _task_result(config, workdir)
    results = {task: results[task] for task in TASKS if task in results}
    if processes.is_first():
      vtab_table.write(results, output)
  return results


def _check_tasks(configs: Mapping[str, Config], output: Any) -> None:
  """Raises for a recipe that cannot work, or for data that is missing.

  Tasks that are finished do not need their data.
  """
  missing = {}
  for task, config in configs.items():
    check(config)
    check_workdir(output / task, to_json(config))
    if (output / task / 'summary.json').exists():
      continue
    try:
      source = open_train_source(config)
      open_eval_sets(config, source.num_classes, source.class_names)
    except ValueError as e:
      missing[task] = str(e)
  if missing:
    ready = [task for task in configs if task not in missing]
    raise ConfigError(
      f'the images of {len(missing)} of {len(configs)} tasks cannot be read:\n'
      + '\n'.join(f'{task}: {error}' for task, error in missing.items())
      + '\nGive these images'
      + (f', or run the other tasks: tasks={" ".join(ready)}' if ready else '')
    )


def _earlier_results(output: Any) -> dict[str, dict[str, Any]]:
  """The results that an output has from earlier calls."""
  path = output / 'vtab.json'
  return json.loads(path.read_text()) if path.exists() else {}


def _task_result(config: Config, workdir: Any) -> dict[str, Any]:
  """The result of a task, which is run unless it is finished."""
  from vit_jax import train

  path = workdir / 'summary.json'
  try:
    summary = (
      json.loads(path.read_text())
      if path.exists()
      else train.train_and_evaluate(config, workdir)
    )
  except train.NonFinite as e:
    return {'error': str(e)}
  finally:
    # The next task compiles programs of its own, so keeping those of this one
    # would only take memory.
    jax.clear_caches()
  test = summary['results']['test']
  return {
    'top1': test['top1'],
    'images': int(test['examples']),
    'data': config.data.dir,
  }
