"""RandAugment operations and preprocessing against the recorded outputs."""

import ast
import dataclasses
import re

import numpy as np

from tests.parity.harness import Case, kind
from vit_jax.data import transforms
from vit_jax.data.decode import Decoding, check_jpeg_dct, decode
from vit_jax.data.randaugment import google, timm
from vit_jax.data.resize import resize
from vit_jax.preprocessing import Preprocessing, normalization
from vit_jax.recipe import keys
from vit_jax.recipe.overrides import load_config
from vit_jax.training import augment

# Operations that move pixels, and the share of pixels of which rounding may
# choose another neighbor.
GEOMETRIC = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
GEOMETRIC_TOLERANCE = 0.02


# --- RandAugment ------------------------------------------------------------


@kind('big_vision_randaugment_ops')
def check_big_vision_ops(case: Case) -> None:
  for key, args in case.config['op_args'].items():
    name = key.split('.')[0]
    _, op = google.GOOGLE[name]
    compare_op(case, key, name, op(case.inputs['image'], *args))


@kind('randaugment_ops_google')
def check_google_ops(case: Case) -> None:
  """OP.mLEVEL[.pos|.neg].IMAGE, and the boxes of cut-outs."""
  for key in list(case.outputs):
    name, level, *sign, image = key.split('.')
    level = float(level.removeprefix('m'))
    if image == 'boxes':
      check_cutout(case, key, name, level)
      continue
    recorded = case.meta['args']['.'.join([name, f'm{level:g}', *sign])]
    arguments, op = google.GOOGLE[name]
    args = signed_arguments(arguments, level, sign, recorded)
    compare_op(case, key, name, op(case.inputs[image], *args))


def compare_op(case: Case, key: str, name: str, value: np.ndarray) -> None:
  """One level apart at most; of a geometric operation few pixels differ."""
  if name in GEOMETRIC and value.shape == case.outputs[key].shape:
    differing = np.mean((value != case.outputs[key]).any(axis=-1))
    case.outputs[key] = np.zeros(())
    case.compare(key, differing, GEOMETRIC_TOLERANCE)
  else:
    case.compare(key, value, 1.0)


def signed_arguments(arguments, level: float, sign: list, recorded: list):
  """The product's own arguments of a level, of the recorded sign.

  ValueError unless they are the recorded ones.
  """
  rng = np.random.default_rng(0)
  for _ in range(100):
    args = arguments(level, rng, tuple(recorded[-1]) if sign else ())
    if not sign or (args[0] > 0) == (sign[0] == 'pos'):
      break
  ours = [list(a) if isinstance(a, tuple) else a for a in args]
  same = len(ours) == len(recorded) and all(
    np.allclose(a, b, rtol=1e-6) for a, b in zip(ours, recorded, strict=True)
  )
  if not same:
    raise ValueError(f'arguments {ours} of level {level}, recorded {recorded}')
  return args


def check_cutout(case: Case, key: str, name: str, level: float) -> None:
  """Every recorded box is one that our operation fills, at the same place."""
  name, size = name.split('_')
  size = int(size)
  arguments, op = google.GOOGLE[name]
  black = np.zeros((size, size, 3), np.uint8)
  boxes = []
  for top, left, height, width in case.outputs[key]:
    half, _, _, fill = arguments(level, np.random.default_rng(0), (128,) * 3)
    # The center, which an edge may hide: then the opposite edge tells it.
    y = top + half if top > 0 else height - half
    x = left + half if left > 0 else width - half
    filled = op(black, half, (y + 0.5) / size, (x + 0.5) / size, fill)
    rows, columns = (np.flatnonzero(filled[..., 0].any(a)) for a in (1, 0))
    boxes.append([rows[0], columns[0], len(rows), len(columns)])
  case.compare(key, np.array(boxes), tolerance=0.0)


@kind('timm_randaugment_ops')
def check_timm_ops(case: Case) -> None:
  image = case.inputs['image']
  for key, args in case.config['op_args'].items():
    name, *words = key.split('.')
    interpolation = next((w for w in words if w in timm.RESAMPLING), 'bicubic')
    value = timm.timm_op(
      name, image, tuple(args), interpolation, tuple(case.config['fill'])
    )
    case.compare(key, value, tolerance=0.0)  # the same backend, Pillow


# --- big_vision's preprocessing ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class Op:
  """One operation of a preprocessing string: name, arguments, options."""

  name: str
  args: tuple
  options: dict


def parse_ops(text: str) -> list[Op]:
  """'resize(32)|central_crop(24)' -> its operations."""
  ops = []
  for word in text.split('|'):
    call = ast.parse(word if word.endswith(')') else f'{word}()', mode='eval')
    call = call.body
    ops.append(
      Op(
        call.func.id,
        tuple(ast.literal_eval(a) for a in call.args),
        {k.arg: ast.literal_eval(k.value) for k in call.keywords},
      )
    )
  return ops


# method and antialias where a resizing operation does not say them.
DEFAULTS = {
  'resize': ('bilinear', False),
  'resize_small': ('area', False),
  'resize_long': ('area', True),
}


def interpolation_of(op: Op) -> str:
  """Our name of the method of a resizing operation."""
  given = (*op.args[1:], *DEFAULTS[op.name][len(op.args) - 1 :])
  method = op.options.get('method', given[0])
  antialias = op.options.get('antialias', given[1])
  if method == 'area' or (method == 'bilinear' and not antialias):
    return method  # 'area' ignores antialias
  suffix = '_antialias' * (bool(antialias) and method != 'nearest')
  return f'tf_{method}{suffix}'


def pair(size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


def normalization_of(op: Op) -> str:
  """Our name of a value range; ValueError for one that cuts values off."""
  if op.name == 'vgg_value_range':
    mean, std = normalization('imagenet')
    mean, std = (*op.args, mean, std)[:2] if op.args else (mean, std)
    mean, std = op.options.get('mean', mean), op.options.get('std', std)
    numbers = [float(x) / 255 for x in (*mean, *std)]
    return f'mean_std({",".join(map(repr, numbers))})'
  defaults = {
    'vmin': -1,
    'vmax': 1,
    'in_min': 0,
    'in_max': 255,
    'clip_values': False,
  }
  given = dict(zip(defaults, op.args, strict=False))
  v = {**defaults, **given, **op.options}
  low, high = (
    np.broadcast_to(v[k], 3).astype(float) for k in ('in_min', 'in_max')
  )
  if v['clip_values'] and (low.max() > 0 or high.min() < 255):
    raise ValueError(f'{op} cuts values off')
  std = (high - low) / (v['vmax'] - v['vmin'])
  mean = low - v['vmin'] * std
  if np.ptp(mean) == np.ptp(std) == 0:
    low, high = (float((pixel - mean[0]) / std[0]) for pixel in (0, 255))
    return f'range({low!r},{high!r})'
  return f'mean_std({",".join(repr(float(x) / 255) for x in (*mean, *std))})'


def normalized(image: np.ndarray, style: str) -> np.ndarray:
  return np.asarray(augment.normalize(image[None], style))[0]


def run_ops(ops: list[Op], image: np.ndarray) -> np.ndarray:
  """A preprocessing string by the product's transforms."""
  for op in ops:
    if op.name in DEFAULTS:
      size = op.args[0]
      if op.name != 'resize':
        side = op.name.removeprefix('resize_').replace('small', 'short')
        size = transforms.proportional_size(*image.shape[:2], size, side)
      image = resize(image, pair(size), interpolation_of(op), 'truncate')
    elif op.name == 'central_crop':
      size = pair(*op.args) if op.args else (min(image.shape[:2]),) * 2
      image = transforms.central_crop(image, size)
    elif op.name in ('value_range', 'vgg_value_range'):
      image = normalized(image, normalization_of(op))
    else:
      raise ValueError(f'unknown operation {op}')
  return image


def as_preprocessing(ops: list[Op]) -> Preprocessing | None:
  """The value of `Preprocessing` that means the same; None if there is none."""
  if ops[0].name not in DEFAULTS:
    return None
  resizing, *rest = ops
  target = resizing.args[0]
  common = {
    'interpolation': interpolation_of(resizing),
    'rounding': 'truncate',
    'normalize': 'half',
  }
  if rest and rest[-1].name in ('value_range', 'vgg_value_range'):
    common['normalize'] = normalization_of(rest.pop())
  if not rest and resizing.name == 'resize':
    return Preprocessing(pair(target), **common)
  if not rest and resizing.name == 'resize_long':
    return Preprocessing(pair(target), 1.0, crop_resize='resize_long', **common)
  if len(rest) != 1 or rest[0].name != 'central_crop' or not rest[0].args:
    return None
  size = pair(*rest[0].args)
  square = size[0] == size[1] and isinstance(target, int)
  if resizing.name == 'resize' and not square:
    return None
  mode = {'resize': 'squash'}.get(resizing.name, resizing.name)
  return Preprocessing(size, max(size) / target, crop_resize=mode, **common)


def compare_pixels(case: Case, key: str, value, float_atol: float) -> None:
  """Integers at most one level apart; floating point within a tolerance."""
  case.compare(key, value, 1.0 if value.dtype == np.uint8 else float_atol)


@kind('big_vision_preprocess')
def check_preprocess(case: Case) -> None:
  image = case.inputs['image']
  for key, text in case.config.items():
    if key in case.outputs:
      value = run_ops(parse_ops(text), image)
      compare_pixels(case, key, value, case.meta['tolerance']['float_atol'])


@kind('preprocess_google')
def check_google(case: Case) -> None:
  tolerance = case.meta['tolerance']
  for key in list(case.outputs):
    name, image = key.rsplit('.', 1)
    if name in case.config:
      ops = parse_ops(case.config[name])
      value = run_ops(ops, case.inputs[image])
      check_eval_image(ops, case.inputs[image], value)
      # One level apart at most. Small deviations make more of a level than a
      # range of 2 does.
      atol = tolerance['float_atol_from_uint8']
      if 'value_range' in ops[-1].name:
        std = normalization(normalization_of(ops[-1]))[1]
        atol *= max(1.0, 127.5 / min(map(abs, std)))
      compare_pixels(case, key, value, atol)
    elif name.startswith('decode'):
      check_decode(case, key, name, image)
    else:
      check_recipe(case, key, name, image)


def check_eval_image(ops: list[Op], image: np.ndarray, value) -> None:
  """ValueError unless evaluation with these settings has the same pixels."""
  preprocessing = as_preprocessing(ops)
  if preprocessing is None:
    return
  evaluated = transforms.eval_image(image, preprocessing)
  if ops[0].name == 'resize_long' and value.shape != evaluated.shape:
    # Evaluation fills the square with black on both sides.
    rows, columns = (
      slice((new - old) // 2 + (new - old) % 2, None)
      if new > old
      else slice(None)
      for old, new in zip(value.shape[:2], evaluated.shape[:2], strict=True)
    )
    evaluated = evaluated[rows, columns][: value.shape[0], : value.shape[1]]
  if value.dtype != np.uint8:
    evaluated = normalized(evaluated, preprocessing.normalize)
  np.testing.assert_array_equal(evaluated, value)


def check_decode(case: Case, key: str, name: str, image: str) -> None:
  """Decoded JPEGs: exactly as TensorFlow where simplejpeg is installed."""
  data = case.inputs[f'{image}.jpeg'].tobytes()
  if name == 'decode_precise':
    case.compare(key, decode(data, Decoding(upright=False)), 0.0)
    return
  jpeg_dct, atol = 'fast', 0.0
  try:
    check_jpeg_dct('fast')
  except ValueError:
    jpeg_dct, atol = 'accurate', 8.0  # that of meta.tolerance.decode
  decoded = decode(data, Decoding(jpeg_dct, upright=False))
  if name == 'decode':
    case.compare(key, decoded, atol)
    return
  # 'decode_resize_crop_range': the file does not say which of its strings.
  texts = [
    text
    for text in case.config.values()
    if isinstance(text, str)
    and re.fullmatch(
      r'resize\w*\(.*\)\|central_crop\(.*\)\|value_range.*', text
    )
  ]
  values = [run_ops(parse_ops(text), decoded) for text in texts]
  values = [v for v in values if v.shape == case.outputs[key].shape]
  nearest = min(values, key=lambda v: np.abs(v - case.outputs[key]).mean())
  rounding = 1e-6  # of two numbers near one
  case.compare(key, nearest, (1 + atol) / 127.5 + rounding)


def check_recipe(case: Case, key: str, name: str, image: str) -> None:
  """The recipes of big_vision (bv_) and vision_transformer (vit_jax_)."""
  pixels, want = case.inputs[image], case.outputs[key]
  big_vision = name.startswith('bv_')
  atol = case.meta['tolerance'][
    'float_atol_from_uint8' if big_vision else 'vit_jax_float_atol'
  ]
  config = load_config(
    'configs/vit_s16_i1k.py' if big_vision else 'configs/finetune.py'
  )
  config.data.image_size, config.data.image_width = want.shape[:2]
  if name.endswith('train_crop'):
    top, left, height, width = case.config['train_crop_box_y_x_h_w']
    transform = FixedCrop(
      want.shape[:2],
      interpolation=config.data.interpolation,
      rounding=config.data.rounding,
      flip=0.0,
      box=(top, left, height, width),
    )
    value, _ = transform(pixels, np.random.default_rng(0))
  else:
    value = transforms.eval_image(pixels, keys.preprocessing(config))
  case.compare(key, normalized(value, config.data.normalize), atol)


@dataclasses.dataclass(frozen=True)
class FixedCrop(transforms.TrainTransform):
  """A training transform whose random crop is given."""

  box: tuple[int, int, int, int] = (0, 0, 1, 1)

  def draw_box(self, rng, height, width):
    return self.box


# --- timm and DeiT ----------------------------------------------------------


@kind('preprocess_timm_deit')
def check_timm_preprocess(case: Case) -> None:
  tolerance = case.meta['tolerance']
  for key in list(case.outputs):
    if key.startswith('decoded_pillow.'):
      data = case.inputs[f'{key.split(".")[1]}.jpeg'].tobytes()
      case.compare(key, decode(data, Decoding(upright=False)), 0.0)
      continue
    name, image, is_uint8 = re.fullmatch(
      r'(.+)\.([a-z])(\.uint8)?', key
    ).groups()
    preprocessing = timm_preprocessing(case.config[name])
    value = transforms.eval_image(case.inputs[image], preprocessing)
    if is_uint8:
      case.compare(key, value, 0.0)  # the same backend, Pillow
    else:
      value = normalized(value, preprocessing.normalize)
      case.compare(key, value, tolerance['float_atol'])


def timm_preprocessing(setting: dict) -> Preprocessing:
  """How timm or DeiT evaluates: sizes, crop, method, mean and deviation."""
  method = setting.get('interpolation', 'bicubic')
  normalize = next(x for x in setting['steps'] if x.startswith('Normalize'))
  numbers = re.findall(r'[-\d.]+(?:e-?\d+)?', normalize)
  return Preprocessing(
    pair(setting['input_size']),
    setting.get('crop_pct', setting.get('eval_crop_ratio')),
    'bilinear_antialias' if method == 'bilinear' else method,
    f'mean_std({",".join(numbers)})',
  )
