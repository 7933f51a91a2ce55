"""Images of a training batch as the model gets them, as one picture.

It shows what every setting of the data does together: class names, crops,
colors, random erasing, mixup and CutMix with their mixed labels.
"""

from collections.abc import Callable, Sequence
import os
import textwrap
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit_jax.data.sources.source import Source
from vit_jax.files import as_path, open_atomically
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import compile_together
from vit_jax.parallel.mesh import replicated
from vit_jax.preprocessing import normalization
from vit_jax.recipe.build import Run, make_examples

FORMATS = ('.png', '.jpg')
MOST_IMAGES = 32
_LEAST_WEIGHT = 0.005  # of a class that a label names
_SIDE = 128  # pixels; smaller images are enlarged by a whole factor
_WIDTH = 2048  # pixels of the picture, about
_GAP, _FONT = 8, 13  # pixels
_MOST_LINES = 5  # of the label of an image


class FirstBatch(NamedTuple):
  """Some images of a batch.

  Attributes:
    images: uint8 (N, H, W, 3), the model's input without its normalization.
    labels: the target of each image in words, such as '0.7 cat + 0.3 dog'.
    title: what they are.
  """

  images: np.ndarray
  labels: list[str]
  title: str


def check_format(path: str | os.PathLike) -> None:
  """ValueError if the name of a picture is not that of a known format."""
  if as_path(path).suffix.lower() not in FORMATS:
    raise ValueError(
      f'{os.fspath(path)}: the name of the picture of a batch must end with '
      f'{" or ".join(FORMATS)}'
    )


def first_batch(
  run: Run,
  step: int,
  batch: Any,
  extras: Any,
  classes: Sequence[str] | None,
  *,
  most: int = MOST_IMAGES,
  teacher: Callable | None = None,
  load_batch: Callable | None = None,
) -> FirstBatch:
  """The first images of a batch, after all augmentation.

  They are computed by the code and the random numbers of the training step. The
  run's mesh must be set (`jax.set_mesh`).

  Args:
    run: what `build` returned.
    step: number of finished steps before this batch.
    batch, extras: as the training step gets them.
    classes: names of the classes; None if they have none.
    most: number of images.
    teacher, load_batch: see `vit_jax.training.step.make_train_step`.
  """
  examples_of = make_examples(run, teacher=teacher, load_batch=load_batch)

  def compute(step, batch, extras):
    examples, _ = examples_of(step, batch, extras)
    targets = examples['targets']
    examples['targets'] = targets['label']
    if 'token_labels' in targets:  # (B, tokens, C)
      examples['tokens'] = targets['token_labels'].mean(axis=1)
    return jax.tree.map(lambda x: x[:most].astype(np.float32), examples)

  compiled = jax.jit(compute, out_shardings=replicated(run.mesh))
  given = (np.int32(step), batch, extras)
  compile_together(compiled, *given)
  examples = jax.tree.map(np.asarray, compiled(*given))
  values, config = examples['image'], run.config
  labels = [in_words(target, classes) for target in examples['targets']]
  others = {}  # (B, C), of which the largest of each image is told
  if 'tokens' in examples:
    others['tokens'] = examples['tokens']
  if 'teacher_logits' in examples:
    others['teacher'] = np.asarray(jax.nn.softmax(examples['teacher_logits']))
  for what, rows in others.items():
    for i, (row, best) in enumerate(zip(rows, rows.argmax(1), strict=True)):
      name = classes[best] if classes else f'class {best}'
      labels[i] += f'\n{what}: {row[best]:.2g} {name}'
  height, width = values.shape[1:3]
  title = (
    f'{config.run.name or config.model.name}, step {step + 1}: {len(values)} '
    f'of {config.data.batch_size} images, {height}x{width} px. The model gets '
    f'values from {values.min():.3g} to {values.max():.3g} (data.normalize='
    f'{config.data.normalize!r}), which are shown as colors'
  )
  if config.loss.label_smoothing:
    title += f'. The loss smooths labels by {config.loss.label_smoothing:g}'
  mean, std = normalization(config.data.normalize)
  pixels = np.clip(np.round(values * np.array(std) + np.array(mean)), 0, 255)
  return FirstBatch(pixels.astype(np.uint8), labels, title)


def shower(
  run: Run,
  extras: Any,
  reading: dict[str, Any],
  source: Source,
  log_image: Callable[[int, str, Image.Image], None],
  path: str,
  say: Callable[[str], None],
) -> Callable[[int, Any], None]:
  """A function of (step, batch) that shows the first batch of a run.

  Args:
    run: the run.
    extras, reading: of `vit_jax.teachers.inputs.input_with_teacher`.
    source: the training data.
    log_image: is given the step, a name and the picture of `log.images` images,
      where a run begins.
    path: where to write a picture; '' for none.
    say: prints a line.
  """
  log = run.config.log

  def show(step: int, batch: Any) -> None:
    # The same in all processes, which compute the images together.
    logged = 0 if step else log.images * bool(log.tensorboard or log.writers)
    if not path and not logged:
      return
    most = MOST_IMAGES if path else logged
    shown = first_batch(
      run, step, batch, extras, source.class_names, most=most, **reading
    )
    if not processes.is_first():
      return
    if logged:
      log_image(step, 'train/first_batch', draw(shown))
    if path:
      save(shown, path)
      say(f'{path} shows the batch of step {step + 1} as the model gets it')

  return show


def in_words(target: np.ndarray, classes: Sequence[str] | None = None) -> str:
  """A target (C,) as 'cat', '0.7 cat + 0.3 dog' or, for several labels, 'a, b'.

  Args:
    target: the weight of each class.
    classes: their names; None shows 'class 3'.
  """
  order = np.argsort(-target, kind='stable')
  chosen = [i for i in order if target[i] >= _LEAST_WEIGHT]
  name = lambda i: str(classes[i]) if classes else f'class {i}'
  more = f' + {len(chosen) - 3} more' if len(chosen) > 3 else ''
  if not chosen:
    return 'no class'
  if all(target[i] > 1 - _LEAST_WEIGHT for i in chosen):
    return ', '.join(name(i) for i in chosen[:3]) + more
  # '0.7 class 3' for a class whose name begins with a digit, not '0.7 3'.
  words = [f'class {x}' if x[:1].isdigit() else x for x in map(name, chosen)]
  return (
    ' + '.join(
      f'{target[i]:.2g} {word}'
      for i, word in zip(chosen[:3], words, strict=False)
    )
    + more
  )


def draw(batch: FirstBatch) -> Image.Image:
  """One picture of all images, with their labels below them."""
  count, height, width = batch.images.shape[:3]
  factor = max(1, _SIDE // min(height, width))
  height, width = height * factor, width * factor
  columns = min(count, 8, max(1, _WIDTH // (width + _GAP)))
  font = _font()
  fit = lambda text, pixels: [
    line
    for words in text.split('\n')
    for line in textwrap.wrap(words, max(8, int(pixels / (0.6 * _FONT))))
  ]
  labels = [fit(label, width) for label in batch.labels]
  labels = [
    words if len(words) <= _MOST_LINES else [*words[: _MOST_LINES - 1], '...']
    for words in labels
  ]
  line = _FONT + 4
  row = height + _GAP + line * max(map(len, labels))
  total = _GAP + columns * (width + _GAP)
  title = fit(batch.title, total - 2 * _GAP)
  top = 2 * _GAP + line * len(title)
  rows = -(-count // columns)
  picture = Image.new('RGB', (total, top + rows * row), 'white')
  write = ImageDraw.Draw(picture)
  write.multiline_text((_GAP, _GAP), '\n'.join(title), 'black', font)
  for i, (image, words) in enumerate(zip(batch.images, labels, strict=True)):
    x = _GAP + i % columns * (width + _GAP)
    y = top + i // columns * row
    # Whole factors and no interpolation: every pixel is seen as it is.
    tile = Image.fromarray(image).resize(
      (width, height), Image.Resampling.NEAREST
    )
    picture.paste(tile, (x, y))
    write.multiline_text((x, y + height + 2), '\n'.join(words), 'black', font)
  return picture


def save(batch: FirstBatch, path: str | os.PathLike) -> None:
  """Writes the picture as .png or .jpg; its directory is made."""
  check_format(path)
  path = as_path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  form = 'PNG' if path.suffix.lower() == '.png' else 'JPEG'
  with open_atomically(path, 'wb') as file:
    draw(batch).save(file, format=form)


def _font() -> Any:
  """matplotlib's font: it has the letters of most languages."""
  import matplotlib

  path = os.path.join(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')
  return ImageFont.truetype(path, _FONT)
