"""Images whose headers lie, and files under the names of images."""

import contextlib
import io
import os
import socket
import struct
import subprocess
import tracemalloc
import zlib

import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from tests.data.helpers import encode, make_image, write_images
from tests.data.test_decode import claim
from vit_jax.data import decode as decode_lib
from vit_jax.data import labels, listing, pack
from vit_jax.data.decode import BadImage, decode
from vit_jax.data.listing import list_images
from vit_jax.data.sources.opening import open_source

SIDE = struct.pack('>HH', 20_000, 20_000)


def frame(height, width) -> bytes:
  """The frame header of a JPEG with one component."""
  return (
    b'\xff\xc0\x00\x0b\x08'
    + struct.pack('>HH', height, width)
    + (b'\x01\x01\x11\x00')
  )


def jpeg_with(segment: bytes) -> bytes:
  data = encode(make_image(0), 'JPEG')
  start = data.index(b'\xff\xc0')
  return data[:start] + segment + data[start:]


def tiff_with(tag: int, value: int) -> bytes:
  """A tiled TIFF of 20 x 24 pixels in which a tag has another value."""
  buffer = io.BytesIO()
  image = Image.fromarray(make_image(0))
  image.save(buffer, 'TIFF', compression='tiff_adobe_deflate')
  data = bytearray(buffer.getvalue())
  directory = struct.unpack_from('<I', data, 4)[0]
  (count,) = struct.unpack_from('<H', data, directory)
  for i in range(count):
    entry = directory + 2 + 12 * i
    if struct.unpack_from('<H', data, entry)[0] == 278:  # rows of a strip
      struct.pack_into('<HHII', data, entry, tag, 4, 1, value)
  return bytes(data)


def png_with(kind: bytes, content: bytes) -> bytes:
  """A PNG with a further chunk after its header."""
  data = encode(make_image(0), 'PNG')
  chunk = struct.pack('>I', len(content)) + kind + content
  chunk += struct.pack('>I', zlib.crc32(kind + content))
  return data[:33] + chunk + data[33:]


LIARS = {
  'two frames': jpeg_with(frame(20_000, 20_000)),
  'a small frame first': jpeg_with(frame(10, 10)),
  # Pillow takes what is in such a segment for headers.
  'a frame in another segment': jpeg_with(
    b'\xff\xcc\x00\x0f' + frame(10, 10)
  ).replace(struct.pack('>HH', 20, 24), SIDE),
  'a frame in front of a thumbnail': jpeg_with(
    b'\xff\xc1' + frame(9, 9)[2:] + b'\xff\xff\xff\xc2' + frame(99, 9)[2:]
  ),
  'few bytes for many pixels': claim('JPEG', 11_000, 11_000),
  'few bytes for many pixels of a PNG': claim('PNG', 11_000, 11_000),
  'a second header of a PNG': png_with(
    b'IHDR', struct.pack('>II', 9000, 9000) + b'\x08\x02\0\0\0'
  ),
  'tiles of a TIFF': tiff_with(322, 2_000_000_000),
}


@pytest.mark.parametrize('name', LIARS)
def test_headers_that_lie(name):
  tracemalloc.start()
  try:
    # What is no contradiction to the decoders is read as what it is.
    image = decode(LIARS[name])
    assert image.size < 10_000
  except BadImage as e:
    assert str(e)
  assert tracemalloc.get_traced_memory()[1] < 20e6
  tracemalloc.stop()


@pytest.mark.parametrize(
  'name', ['two frames', 'few bytes for many pixels', 'tiles of a TIFF']
)
def test_headers_that_lie_are_named(name):
  with pytest.raises(BadImage, match=r'several sizes|can hold|its blocks of'):
    decode(LIARS[name])


def test_sizes_of_jpeg_2000():
  data = encode(make_image(0), 'JPEG2000')
  start = data.index(b'\xff\x4f\xff\x51') + 8
  data = data[:start] + struct.pack('>II', 30_000, 30_000) + data[start + 8 :]
  with pytest.raises(BadImage, match='several sizes'):
    decode(data)


@pytest.mark.parametrize('kind', [b'iCCP', b'zTXt', b'iTXt', b'eXIf'])
def test_huge_chunks_of_a_png(kind):
  bomb = zlib.compress(bytes(50_000_000), 1)
  head = {b'iCCP': b'x\0\0', b'zTXt': b'x\0\0', b'iTXt': b'x\0\1\0\0\0'}
  data = png_with(kind, head.get(kind, b'') + bomb)
  tracemalloc.start()
  try:
    assert decode(data).shape == (20, 24, 3)
  except BadImage as e:
    assert 'large' in str(e)
  assert tracemalloc.get_traced_memory()[1] < 20e6
  tracemalloc.stop()


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'MPO', 'TIFF'])
def test_of_several_images_the_first_is_read(kind):
  images = [Image.fromarray(make_image(i)) for i in range(5)]
  buffer = io.BytesIO()
  images[0].save(
    buffer, kind, save_all=True, append_images=images[1:], lossless=True
  )
  first = decode(buffer.getvalue())
  assert first.shape == (20, 24, 3)
  if kind in ('PNG', 'TIFF'):
    np.testing.assert_array_equal(first, make_image(0))


def test_every_plugin_of_pillow_that_is_not_named_is_left_alone(monkeypatch):
  """Pillow reads some of these with other programs or from other files."""

  def run(*unused, **options):
    raise AssertionError('a program was started')

  monkeypatch.setattr(subprocess, 'Popen', run)
  monkeypatch.setattr(os, 'system', run)
  Image.init()
  image = Image.fromarray(make_image(0))
  tried = 0
  for kind in sorted(set(Image.SAVE) - {'MPO', *decode_lib._formats()}):
    buffer = io.BytesIO()
    try:
      image.save(buffer, kind)
    except Exception:  # some formats save only images of other modes
      continue
    with pytest.raises(BadImage):
      decode(buffer.getvalue())
    tried += 1
  assert tried > 5
  for data in (
    b'\xd7\xcd\xc6\x9a' + bytes(100),  # WMF
    b'SIMPLE  =                    T' + bytes(3000),  # FITS
    b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c red","a"};',
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n',
    b'8BPS' + bytes(100),
    b'PCD_IPI' + bytes(5000),
    b'{\\rtf1}',
  ):
    with pytest.raises(BadImage, match='not an image in a format'):
      decode(data)


@pytest.fixture
def odd_folder(tmp_path):
  """Two classes of images, and whatever else can have the name of one."""
  root = write_images(tmp_path / 'data', {'a': 3, 'b': 3})
  os.mkfifo(root / 'a' / 'pipe.jpg')
  (root / 'a' / 'zero.png').symlink_to('/dev/zero')
  (root / 'b' / 'loop.jpg').symlink_to('loop.jpg')
  (root / 'b' / 'round').symlink_to('..')
  os.mkfifo(root / 'b' / 'x.tar')
  with contextlib.chdir(root / 'b'):  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as s:
      s.bind('socket.jpg')
  yield root


def test_pipes_devices_and_loops_are_never_opened(odd_folder, tmp_path):
  listed = list_images(odd_folder)
  assert len(listed.files) == 6
  assert {'named pipe', 'device', 'socket', 'broken link'} <= {
    kind for kind, n in listed.skipped.items() if n
  }
  source = open_source('folder', split='train', data_dir=str(odd_folder))
  assert len(source) == 4
  meta = pack.pack(odd_folder, tmp_path / 'out')['train']
  assert (meta['num_examples'], meta['bad']) == (6, 0)


def test_links_that_multiply_and_folders_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(listing, '_MOST_LINKS', 100)
  for i in range(12):  # 2^12 paths
    (tmp_path / f'{i}').mkdir()
    for name in 'ab':
      (tmp_path / f'{i}' / name).symlink_to(f'../{i + 1}')
  with pytest.raises(ValueError, match='more than 100 links'):
    list_images(tmp_path / '0')
  tmp_path.joinpath('deep', *('d' * 101)).mkdir(parents=True)
  with pytest.raises(ValueError, match='within more than 100'):
    list_images(tmp_path / 'deep')


def test_pipes_under_other_names_are_never_opened(tmp_path):
  out = tmp_path / 'out'
  root = write_images(tmp_path / 'data', {'a': 3, 'b': 3})
  pack.pack(root, out)
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  with pytest.raises(ValueError, match='pipe: a named pipe'):
    labels.read_labels(pipe)
  with pytest.raises(ValueError, match='a named pipe'):
    list_images(pipe)
  shard = next(out.glob('*.array_record'))
  shard.unlink()
  os.mkfifo(shard)
  source = open_source('packed', split='train', data_dir=str(out))
  with pytest.raises(BadImage, match='a named pipe'):
    source[0]
  meta = out / 'train.packed.json'
  meta.unlink()
  os.mkfifo(meta)
  with pytest.raises(ValueError, match=r'train.packed.json.*a named pipe'):
    open_source('packed', split='train', data_dir=str(out))


def test_text_chunks_do_not_count(tmp_path):
  """A sound PNG with much text is an image as any other."""
  info = PngImagePlugin.PngInfo()
  info.add_text('x', 'y' * 100_000, zip=True)
  buffer = io.BytesIO()
  Image.fromarray(make_image(0)).save(buffer, 'PNG', pnginfo=info)
  np.testing.assert_array_equal(decode(buffer.getvalue()), make_image(0))
