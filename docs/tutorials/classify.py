"""Classifies photos by an exported model: classify.py PROGRAM PHOTO ...

It needs jax, flatbuffers and Pillow, and nothing of vit_jax.
"""

import json
import pathlib
import sys

import jax
from jax import export
import numpy as np
from PIL import Image, ImageOps

path, *photos = sys.argv[1:]
model = export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
about = json.loads(pathlib.Path(f'{path}.json').read_text())
how = about['preprocessing']
if how['crop'] or how['interpolation'] != 'bilinear':
  sys.exit(f'this script knows only bilinear resizing without a crop: {how}')
for photo in photos:
  image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
  pixels = jax.image.resize(
    np.asarray(image, np.float32),
    (*how['size'], 3),
    'bilinear',
    antialias=False,
  )
  images = np.rint(pixels).astype(np.uint8)[None]
  probabilities = jax.nn.softmax(model.call(images)[0])
  best = int(probabilities.argmax())
  print(f'{photo}: {probabilities[best]:.2%} {about["classes"][best]}')
