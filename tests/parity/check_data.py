"""RandAugment operations and preprocessing against the recorded outputs."""

import ast

import numpy as np

from tests.parity.harness import kind
from vit_jax.data import transforms
from vit_jax.data.randaugment import google, timm


def _compare_uint8(case, key, value):
  """Equal, or one level apart: another backend than the recorded one."""
  case.compare(key, value, tolerance=1.0)


@kind('big_vision_randaugment_ops')
def check_google(case):
  image = case.inputs['image']
  for key, args in case.config['op_args'].items():
    _, op = google.GOOGLE[key.split('.')[0]]
    _compare_uint8(case, key, op(image, *args))


@kind('timm_randaugment_ops')
def check_timm(case):
  image = case.inputs['image']
  for key, args in case.config['op_args'].items():
    parts = key.split('.')
    interpolation = next((p for p in parts if p in timm.RESAMPLING), 'bicubic')
    value = timm.timm_op(
      parts[0], image, tuple(args), interpolation, tuple(case.config['fill'])
    )
    case.compare(key, value, tolerance=0.0)  # the same backend, Pillow


@kind('big_vision_preprocess')
def check_preprocess(case):
  image = case.inputs['image']
  for key, text in case.config.items():
    if key not in case.outputs:  # 'kind' and the like
      continue
    call = ast.parse(text, mode='eval').body
    args = [ast.literal_eval(a) for a in call.args]
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    value = _OPS[call.func.id](image, *args, **options)
    if value.dtype == np.uint8:
      _compare_uint8(case, key, value)
    else:
      case.compare(key, value, case.meta['tolerance']['float_atol'])


def _cut_off(image):
  """To uint8 as TensorFlow casts: towards zero."""
  return np.clip(image, 0, 255).astype(np.uint8)


def _resize(image, size, method='bilinear', antialias=False):
  return _cut_off(
    transforms.resize_float(
      image, transforms.image_size(size), method, antialias
    )
  )


def _resize_small(image, smaller, method='area', antialias=False):
  ratio = np.float32(smaller) / np.float32(min(image.shape[:2]))
  size = [int(np.rint(np.float32(n) * ratio)) for n in image.shape[:2]]
  return _resize(image, tuple(size), method, antialias)


def _central_crop(image, size=None):
  height, width = transforms.image_size(
    min(image.shape[:2]) if size is None else size
  )
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return transforms.cut(image, (top, left, height, width))


def _value_range(image, low=0, high=1, in_min=0, in_max=255, clip=False):
  scaled = (image.astype(np.float32) - in_min) / (in_max - in_min)
  scaled = low + scaled * np.float32(high - low)
  return np.clip(scaled, low, high) if clip else scaled


def _vgg_value_range(
  image,
  mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
  std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
):
  return (image.astype(np.float32) - np.float32(mean)) / np.float32(std)


_OPS = {
  'resize': _resize,
  'resize_small': _resize_small,
  'central_crop': _central_crop,
  'value_range': _value_range,
  'vgg_value_range': _vgg_value_range,
}
