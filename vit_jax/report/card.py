"""Model cards: README.md in the format of the Hugging Face hub."""

import json
import os
from typing import Any

from etils import epath

from vit_jax.files import as_path, write_atomically
from vit_jax.inference.convert import convert
from vit_jax.recipe.stored import changed_keys
from vit_jax.report import table
from vit_jax.report.runs import Run, read_runs

WEIGHTS = 'model.safetensors'
# Keys that say where files are on one machine.
_LOCAL = ('data.dir', 'run.name', 'run.resume', 'log.')


_USAGE = """\
## How to use

```
vit-jax predict {source} photo.jpg
```

```python
import vit_jax

classifier = vit_jax.load_classifier('{source}')
for result in classifier.classify(['photo.jpg']):
  print(result['predictions'][0])
```

The file of weights has the model, the preprocessing and the class names.

## Limits

It gives every image one of the classes above, also an image that shows none of
them. What the training images do not show, such as other cameras, places or
people, it has not learned. Biases of the data were not examined.
"""


def write_card(
  workdir: str | os.PathLike,
  folder: str | os.PathLike,
  *,
  repo: str = '',
  license_name: str = '',
) -> list[str]:
  """Writes the weights of a run and a card that describes them.

  Args:
    workdir: of one run.
    folder: for README.md, recipe.json and the weights; made if it is missing.
    repo: 'ORG/NAME' on the hub, for the lines that load the weights.
    license_name: such as 'apache-2.0'; '' says that none was chosen.

  Returns:
    The names of the files.

  Raises:
    ValueError: there is not exactly one run, or it has no weights.
  """
  runs = read_runs([workdir])
  if len(runs) != 1:
    raise ValueError(
      f'{workdir} has {len(runs)} runs, and a card is about one: give the '
      'workdir of one run'
    )
  path = as_path(folder)
  path.mkdir(parents=True, exist_ok=True)
  classifier = convert(workdir, path / WEIGHTS)
  text = card(
    runs[0],
    classes=classifier.classes,
    size=classifier.preprocessing.size,
    repo=repo,
    license_name=license_name,
  )
  recipe = json.dumps(runs[0].recipe, indent=2) + '\n'
  write_atomically(path / 'recipe.json', recipe)
  write_atomically(epath.Path(path) / 'README.md', text)
  return ['README.md', 'recipe.json', WEIGHTS]


def card(
  run: Run,
  *,
  classes: list[str] | None,
  size: tuple[int, int],
  repo: str = '',
  license_name: str = '',
) -> str:
  """The text of README.md.

  Args:
    run: the run.
    classes: names of the classes; None if they are not known.
    size: (height, width) of the input in pixels.
    repo, license_name: as in `write_card`.
  """
  model, data = run.recipe['model.name'], run.recipe['data.source']
  name = repo.rpartition('/')[2] or run.name.replace('/', '-')
  source = f'hf:{repo}' if repo else WEIGHTS
  settings = {
    key: value
    for key, value in changed_keys(run.recipe).items()
    if not key.startswith(_LOCAL)
  }
  rows = '\n'.join(
    f'| `{key}` | `{table.show_value(value)}` |'
    for key, value in settings.items()
  )
  pretrained = run.recipe.get('run.pretrained')
  start = (
    f'It started from the weights `{os.path.basename(pretrained)}`.'
    if pretrained
    else 'It started from random parameters.'
  )
  parameters = run.summary.get('parameters')
  versions = run.summary.get('versions', {})
  return f"""---
{_front_matter(run, name, license_name)}---

# {name}

`{model}` for images of {size[0]} x {size[1]} pixels\
{f', {parameters:,} parameters' if parameters else ''}, trained with vit_jax.

## Results

{table.to_markdown(table.columns([run]))}
The accuracy is that of the newest step on the eval sets of the recipe.

## Data

`{data}`, split `{run.recipe['data.split']}`. {_describe_classes(classes)}

## Recipe

{start} It was trained for {run.step:,} steps of \
{run.recipe['data.batch_size']:,} images. `recipe.json` has all keys; \
these are not the defaults:

| key | value |
|---|---|
{rows}

{_USAGE.format(source=source)}
## Environment

{', '.join(f'{key} {value}' for key, value in versions.items()) or 'not known'};
device: {run.summary.get('device', 'not known')}.
"""


def _describe_classes(classes: list[str] | None) -> str:
  if not classes:
    return 'The names of the classes are not known.'
  some = ', '.join(f'`{name}`' for name in classes[:20])
  more = f' and {len(classes) - 20} more' if len(classes) > 20 else ''
  return f'{len(classes)} classes: {some}{more}.'


def _front_matter(run: Run, name: str, license_name: str) -> str:
  """The lines that the hub reads: YAML, of which JSON values are a part."""
  data = run.recipe['data.source']
  entries: dict[str, Any] = {
    'library_name': 'vit_jax',
    'pipeline_tag': 'image-classification',
    'tags': ['jax', 'flax', 'vision', run.recipe['model.name']],
    'metrics': ['accuracy'],
  }
  if license_name:
    entries['license'] = license_name
  if data.startswith('tfds:'):
    entries['datasets'] = [data.removeprefix('tfds:').partition('/')[0]]
  results = [
    {
      'task': {'type': 'image-classification'},
      'dataset': {'name': f'{data} ({eval_set})', 'type': data},
      'metrics': [{'type': 'accuracy', 'value': round(values['top1'], 6)}],
    }
    for eval_set, values in run.results().items()
    if 'top1' in values
  ]
  if results:
    entries['model-index'] = [{'name': name, 'results': results}]
  return ''.join(f'{key}: {json.dumps(x)}\n' for key, x in entries.items())
