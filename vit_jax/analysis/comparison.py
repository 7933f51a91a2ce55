"""The comparison tables of the papers: size, work, accuracy and speed.

    rows = list(compare('*'))
    Path('models.md').write_text(markdown(rows))
    plot(rows, 'models.png')

One row for each registered model and each published result of it. Speed is
measured on this machine on request, at the row's own image size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import os
import pathlib
import time

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.analysis.plots import new_figure, save_figure
from vit_jax.analysis.published import Published, published
from vit_jax.files import as_path
from vit_jax.inference.describe import measure
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.text import duration, shortened

_SPEED = 'images/s'  # head of the column of measured speeds
_SECONDS = 1.0  # shortest time over which the speed of a model is measured


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table.

  Attributes:
    name: registered name.
    size: side of the image in pixels.
    parameters: number for 1,000 classes, counted here.
    gmacs: 1e9 multiply-accumulates of one image, counted here.
    result: published result at this size; None if there is none.
    speed: images per second, measured here; None if not measured.
  """

  name: str
  size: int
  parameters: int
  gmacs: float
  result: Published | None = None
  speed: float | None = None


def compare(
  pattern: str = '*',
  *,
  throughput: bool = False,
  batch_size: int = 8,
  speeds: Mapping[tuple[str, int], float] | None = None,
  report: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
  """Describes every registered model with its published results.

  Args:
    pattern: shell pattern of the names.
    throughput: measure the speed of every model on this machine's first device.
    batch_size: number of images in a batch, for the speed.
    speeds: {(name, image size): images per second} that are known; these are
      not measured again.
    report: is given a line after each row, with the time that is left.
  """
  speeds = speeds or {}
  results: dict[str, list[Published | None]] = {}
  for result in published():
    results.setdefault(result.model, []).append(result)
  todo = [
    (name, result)
    for name in list_models(pattern)
    for result in results.get(name, [None])
  ]
  start, measured = time.monotonic(), {}
  for done, (name, result) in enumerate(todo, start=1):
    size = result.size if result else model_info(name).preprocessing.size[0]
    model = create_model(name)
    if (name, size) not in measured:
      counts = measure(model, (size, size))
      speed = speeds.get((name, size))
      if throughput and speed is None and _fits(counts[0], name, report):
        speed = images_per_second(model, size, batch_size)
        jax.clear_caches()  # frees the program and its copy of the parameters
      measured[name, size] = *counts, speed
    parameters, macs, speed = measured[name, size]
    yield Row(name, size, parameters, macs / 1e9, result, speed)
    left = (time.monotonic() - start) / done * (len(todo) - done)
    report(
      f'{done} of {len(todo)}: {name} at {size} px'
      + (f', {speed:.4g} images/s' if speed else '')
      + f'; {duration(left)} left'
    )


def _fits(parameters: int, name: str, report: Callable[[str], None]) -> bool:
  """Whether the memory of a CPU has room for a model.

  XLA keeps the parameters (float32) and may copy them into another layout.
  """
  needed, free = 8 * parameters, free_memory()
  if jax.default_backend() != 'cpu' or free is None or needed < free:
    return True
  report(
    f'{name}: not measured, it may need {needed / 2**30:.0f} GiB of memory and '
    f'{free / 2**30:.0f} are free'
  )
  return False


def free_memory() -> int | None:
  """Bytes that new programs can have; None where Linux does not tell it."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  sizes = dict(line.split(':') for line in lines)
  return 1024 * int(sizes['MemAvailable'].split()[0])


def read_speeds(
  path: str | os.PathLike, device: str
) -> dict[tuple[str, int], float]:
  """The speeds in a table that `markdown` wrote.

  Args:
    path: of the table; a missing file has no speeds.
    device: as for `markdown`; a table of another device has none either.

  Returns:
    {(name, image size): images per second}.

  Raises:
    ValueError: the table was changed so that its speeds cannot be read.
  """
  try:
    lines = as_path(path).read_text().splitlines()
  except FileNotFoundError:
    return {}
  except UnicodeDecodeError as e:
    raise ValueError(_edited(path, 'it is no text')) from e
  if not any(_measured_on(device) in line for line in lines):
    return {}
  cells = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in lines
    if line.startswith('| ')
  ]
  if not cells or _SPEED not in cells[0]:
    raise ValueError(_edited(path, f'it has no column {_SPEED!r}'))
  column, speeds = cells[0].index(_SPEED), {}
  for row in cells[1:]:
    if len(row) != len(cells[0]):
      wrong = f'the row of {row[0]} has {len(row)} cells, not {len(cells[0])}'
      raise ValueError(_edited(path, wrong))
    try:
      if row[column]:
        speeds[row[0].strip('`'), int(row[1])] = float(row[column])
    except ValueError as e:
      raise ValueError(_edited(path, f'the row of {row[0]}: {e}')) from e
  return speeds


def _edited(path: str | os.PathLike, problem: str) -> str:
  return (
    f'{os.fspath(path)} was changed by hand, and its speeds cannot be read: '
    f'{shortened(problem, 300)}. Restore the file, or remove it to measure '
    'all speeds again'
  )


def images_per_second(model: nn.Module, size: int, batch_size: int) -> float:
  """Speed of the forward pass on the first device, bfloat16 except on CPUs.

  The parameters are zeros: their values do not change the time.

  Args:
    model: a Linen module.
    size: side of the images in pixels.
    batch_size: number of images in a batch.
  """
  if jax.default_backend() != 'cpu' and hasattr(model, 'dtype'):
    model = model.clone(dtype='bfloat16')
  images = jnp.zeros((batch_size, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda key: model.init(key, images[:1], train=False), jax.random.key(0)
  )
  variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  forward = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
  jax.block_until_ready(forward(variables, images))
  start, batches = time.perf_counter(), 0
  while not batches or time.perf_counter() - start < _SECONDS:
    jax.block_until_ready(forward(variables, images))
    batches += 1
  return batches * batch_size / (time.perf_counter() - start)


def _measured_on(device: str) -> str:
  return (
    f' Images per second were measured on {device}; a model without a number '
    'needs more memory than it has.'
  )


def markdown(rows: Iterable[Row], device: str = '') -> str:
  """The rows as a table in Markdown.

  Args:
    rows: of `compare`.
    device: name of the device that the speed was measured on.
  """
  rows = list(rows)
  lines = [
    '# Models beside their published results',
    '',
    'Parameters are counted for 1,000 classes, and multiply-accumulates '
    '(GMACs) for one image of the given size. A published number of parameters '
    'says for how many classes and input channels it is, if these are not '
    '1,000 and 3. '
    'Top-1 is on the validation set of ImageNet.',
  ]
  head = ['model', 'px', 'parameters', 'published (M)', 'GMACs', 'top-1']
  head += ['images/s on V100 (published)', 'more data', 'source']
  if any(row.speed for row in rows):
    lines[-1] += _measured_on(device)
    head.insert(7, _SPEED)
  lines += ['', f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  number = lambda x, form: '' if x is None else format(x, form)
  for row in rows:
    result = row.result or Published(row.name, row.size, None)
    cells = [
      f'`{row.name}`',
      row.size,
      f'{row.parameters:,}',
      result.parameters_text(),
      f'{row.gmacs:.3f}',
      number(result.top1, '.2f'),
      number(result.v100, '.1f'),
      result.data,
      result.source,
    ]
    if _SPEED in head:
      cells.insert(7, number(row.speed, '.4g'))
    lines.append(f'| {" | ".join(map(str, cells))} |')
  return '\n'.join(lines) + '\n'


def plot(
  rows: Iterable[Row], path: str | os.PathLike, device: str = ''
) -> epath.Path:
  """Draws accuracy against speed, a line for each family (DeiT's figure 1).

  The speed is the measured one, or the published one on a V100 if no row was
  measured. Models with more data than ImageNet-1k are left out.

  Args:
    rows: of `compare`.
    path: of the PNG file to write.
    device: name of the device that the speed was measured on.

  Raises:
    ValueError: no row has both an accuracy and a speed.
  """
  rows = [r for r in rows if r.result and r.result.top1 and not r.result.data]
  here = any(row.speed for row in rows)
  families: dict[str, list[tuple[float, float, str]]] = {}
  for row in rows:
    result = row.result
    speed = row.speed if here else result and result.v100
    if speed and result and result.top1:
      families.setdefault(_family(row.name), []).append(
        (speed, result.top1, _label(row))
      )
  if not families:
    raise ValueError(
      'no model has a published accuracy and a speed: take more models, or '
      'measure the speed (--throughput)'
    )
  figure = new_figure(9, 6)
  axes = figure.add_subplot()
  colors = [f'C{i}' for i in range(10)]
  for i, (family, points) in enumerate(sorted(families.items())):
    points.sort()
    x, y, _ = zip(*points, strict=True)
    style = 'o-' if i < len(colors) else 's--'
    axes.plot(x, y, style, color=colors[i % 10], label=family, markersize=4)
    for a, b, label in points:
      axes.annotate(
        label, (a, b), xytext=(3, 3), textcoords='offset points', fontsize=6
      )
  axes.set_xscale('log')
  axes.set_xlabel(
    f'images per second, {device or "this machine"}'
    if here
    else 'images per second, V100 (published)'
  )
  axes.set_ylabel('top-1 on ImageNet (%), published')
  axes.grid(alpha=0.3)
  axes.legend(fontsize=7, loc='lower left')
  return save_figure(figure, path)


def _family(name: str) -> str:
  """Name of the line on which a model is drawn."""
  family = name.removeprefix('tf_').partition('_')[0].rstrip('0123456789')
  if family == 'deit' and 'distilled' in name:
    return 'deit, distilled'
  return family + ' with BatchNorm' * name.endswith('_bn')


def _label(row: Row) -> str:
  """A point's text: what tells a model from others of its family."""
  first, _, rest = row.name.removeprefix('tf_').partition('_')
  digits = first[len(first.rstrip('0123456789')) :]
  words = [w for w in rest.split('_') if w not in ('distilled', 'bn')]
  text = digits or '_'.join(words)
  own = model_info(row.name).preprocessing.size[0]
  return text + f' ({row.size} px)' * (row.size != own)
