"""The charts of a report, as specifications of Vega-Lite."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import math
from typing import Any

from vit_jax.report.runs import Run

_POINTS = 400  # of a curve; a longer one has the mean of neighboring points
_SCHEMA = 'https://vega.github.io/schema/vega-lite/v6.json'


@functools.cache
def library() -> str:
  """The JavaScript of Vega, Vega-Lite and vega-embed, about 0.9 MB.

  Raises:
    ImportError: the package that has it is not installed.
  """
  try:
    import vl_convert  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise ImportError(
      "a report needs the charts of vl-convert-python: pip install '.[report]'"
    ) from e
  return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]


def curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """The curves of runs, one for each quantity that a run has written.

  Returns:
    'title', 'note' and 'unit', texts; 'rows', the points {'run', 'step',
    'epoch', 'hours', 'value'}; and 'spec', the chart of these.
  """
  evaluated = dict.fromkeys(name for run in runs for name in run.results())
  quantities = [
    ('Loss of training', 'loss', 'loss', ''),
    *(
      (f'Loss on {x}', f'{x}_loss', 'loss', 'after each evaluation')
      for x in evaluated
    ),
    *(
      (f'Accuracy on {x}', f'{x}_top1', 'top-1', 'after each evaluation')
      for x in evaluated
    ),
    ('Accuracy in training', 'train_top1', 'top-1', 'on augmented batches'),
    ('Learning rate', 'lr', 'learning rate', ''),
    ('Gradient norm', 'grad_norm', 'norm', 'before clipping'),
    ('Throughput', 'img_per_sec', 'images/s', ''),
  ]
  result = []
  for title, key, unit, note in quantities:
    rows = [row for run in runs for row in _rows(run.name, run.series(key))]
    if rows:
      result.append(_curve(title, note, unit, rows))
  waits = [row for run in runs for row in _rows(run.name, _input_wait(run))]
  if waits:
    note = 'share of the time that a step waits for images'
    result.append(_curve('Input wait', note, '% of the time', waits))
  return result


def _input_wait(run: Run) -> list[tuple[dict[str, Any], float]]:
  """The share of the time between two lines that went into waiting."""
  result, before = [], None
  for line, total in run.series('time_input'):
    if before is not None:
      seconds = line['seconds'] - before[0]['seconds']
      waited = total - before[1]
      if seconds > 0 and waited >= 0:  # a resumed run begins at 0 seconds
        result.append((line, 100 * min(1.0, waited / seconds)))
    before = line, total
  return result


def _rows(
  name: str, series: Sequence[tuple[Mapping[str, Any], float]]
) -> Iterator[dict[str, Any]]:
  """Points of a curve; of a long one the means of neighboring points."""
  series = [(line, x) for line, x in series if math.isfinite(x)]
  width = -(-len(series) // _POINTS) or 1
  for start in range(0, len(series), width):
    group = series[start : start + width]
    line = group[-1][0]
    yield {
      'run': name,
      'step': line['step'],
      'epoch': line.get('epoch', 0.0),
      'hours': round(line.get('seconds', 0.0) / 3600, 5),
      'value': float(f'{sum(x for _, x in group) / len(group):.5g}'),
    }


def _curve(
  title: str, note: str, unit: str, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  names = list(dict.fromkeys(row['run'] for row in rows))
  color = {'field': 'run', 'type': 'nominal', 'sort': names, 'title': None}
  # A legend that says nothing takes space on a phone.
  color['legend'] = (
    {'orient': 'bottom', 'columns': 1, 'labelLimit': 280}
    if len(names) > 1
    else None
  )
  axis = {'title': unit, 'format': ',.4~r'}
  if unit == 'top-1':
    axis['format'] = '.3~p'
  return {
    'title': title,
    'note': note,
    'unit': unit,
    'rows': list(rows),
    'spec': {
      '$schema': _SCHEMA,
      'description': f'{title} of {", ".join(names)}',
      'data': {'values': list(rows)},
      'width': 'container',
      'height': 190,
      'mark': {'type': 'line', 'point': {'size': 14}, 'tooltip': True},
      'encoding': {
        'x': {'field': 'step', 'type': 'quantitative', 'title': 'step'},
        'y': {
          'field': 'value',
          'type': 'quantitative',
          'axis': axis,
          'scale': {'zero': False},
        },
        'color': color,
        'tooltip': [
          {'field': 'run', 'title': 'run'},
          {'field': 'step', 'format': ','},
          {'field': 'epoch', 'format': '.2f'},
          {'field': 'value', 'title': unit, 'format': '.4~g'},
        ],
      },
    },
  }


def confusion(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The confusion matrix; a row is divided by the images of its label.

  Args:
    entries: 'label', 'predicted', 'images' and 'share', row by row.
  """
  names = list(dict.fromkeys(x['label'] for x in entries))
  axis = {'labelLimit': 110, 'title': 'label'}
  height = max(180, min(620, 26 * len(names)))
  return {
    '$schema': _SCHEMA,
    'description': 'Confusion matrix: rows are labels, columns predictions',
    'data': {'values': list(entries)},
    'width': 'container',
    'height': height,
    'encoding': {
      'y': {'field': 'label', 'type': 'nominal', 'sort': names, 'axis': axis},
      'x': {
        'field': 'predicted',
        'type': 'nominal',
        'sort': names,
        'axis': {**axis, 'title': 'predicted class', 'labelAngle': -90},
      },
    },
    'layer': [
      {
        'mark': {'type': 'rect', 'tooltip': True},
        'encoding': {
          'color': {
            'field': 'share',
            'type': 'quantitative',
            'scale': {'domain': [0, 1], 'scheme': 'blues'},
            'legend': {'title': 'share of a label', 'format': '.0%'},
          },
          'tooltip': [
            {'field': 'label'},
            {'field': 'predicted'},
            {'field': 'images', 'type': 'quantitative'},
            {'field': 'share', 'type': 'quantitative', 'format': '.1%'},
          ],
        },
      },
      *([_numbers()] if len(names) <= 20 else []),
    ],
  }


def _numbers() -> dict[str, Any]:
  """The numbers of images, on the tiles of a small matrix."""
  return {
    'transform': [{'filter': 'datum.images > 0'}],
    'mark': {'type': 'text', 'fontSize': 10},
    'encoding': {
      'text': {'field': 'images', 'type': 'quantitative'},
      'color': {
        'condition': {'test': 'datum.share > 0.5', 'value': 'white'},
        'value': 'black',
      },
    },
  }


def calibration(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """A reliability diagram (arXiv:1706.04599, figure 1).

  Args:
    bins: 'confidence', 'accuracy' and 'images' of each bin with images.
  """
  domain = {'domain': [0, 1]}
  x = {
    'field': 'confidence',
    'type': 'quantitative',
    'scale': domain,
    'axis': {'format': '.0%', 'title': 'confidence'},
  }
  y = {
    'field': 'accuracy',
    'type': 'quantitative',
    'scale': domain,
    'axis': {'format': '.0%', 'title': 'accuracy'},
  }
  diagonal = [{'confidence': v, 'accuracy': v} for v in (0, 1)]
  return {
    '$schema': _SCHEMA,
    'description': 'Accuracy against confidence',
    'width': 'container',
    'height': 260,
    'layer': [
      {
        'data': {'values': diagonal},
        'mark': {'type': 'line', 'strokeDash': [5, 4], 'color': '#888'},
        'encoding': {'x': x, 'y': y},
      },
      {
        'data': {'values': list(bins)},
        'mark': {'type': 'line', 'point': False},
        'encoding': {'x': x, 'y': y},
      },
      {
        'data': {'values': list(bins)},
        'mark': {'type': 'circle', 'tooltip': True, 'opacity': 0.85},
        'encoding': {
          'x': x,
          'y': y,
          'size': {
            'field': 'images',
            'type': 'quantitative',
            'legend': {
              'orient': 'bottom',
              'title': 'images',
              'tickCount': 3,  # more do not fit on a phone
            },
          },
          'tooltip': [
            {'field': 'confidence', 'format': '.1%'},
            {'field': 'accuracy', 'format': '.1%'},
            {'field': 'images', 'format': ','},
          ],
        },
      },
    ],
  }
