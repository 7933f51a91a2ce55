"""Upper rows of JPEGs: the pixels of whole images, damage, whole streams."""

import io

import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import assert_same, encode, make_image, recipe, take
from vit_jax.data.decode import ORIENTATION, BadImage, Decoding, decode
from vit_jax.data.late_jpeg import LateJpeg, decode_when_cropped
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.renumbered import Renumbered
from vit_jax.data.sources.source import Concat, Source, Subset

simplejpeg = pytest.importorskip('simplejpeg')

_HEIGHT, _WIDTH = 83, 61


def _noise(channels=3):
  shape = (_HEIGHT, _WIDTH, channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _late(data, **decoding) -> LateJpeg:
  late = decode_when_cropped(data, Decoding(**decoding))
  assert isinstance(late, LateJpeg)
  return late


@pytest.mark.parametrize('dct', ['accurate', 'fast'])
@pytest.mark.parametrize('colors', ['444', '422', '420', '440', '411', 'Gray'])
def test_rows_are_those_of_the_whole_image(colors, dct):
  if colors == 'Gray':
    data = simplejpeg.encode_jpeg(_noise(1), 90, 'GRAY', 'Gray')
  else:
    data = simplejpeg.encode_jpeg(_noise(), 90, 'RGB', colors)
  whole = decode(data, Decoding(dct))
  late = _late(data, jpeg_dct=dct)
  assert late.shape == whole.shape
  for bottom in range(1, _HEIGHT + 1):
    first, rows = late.rows(bottom // 2, bottom)
    assert first == 0
    assert bottom <= len(rows) <= bottom + 2 or bottom > _HEIGHT - 3
    np.testing.assert_array_equal(rows[:bottom], whole[:bottom])


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('subsampling', [0, 1, 2])
def test_rows_begin_at_a_restart_marker(subsampling, mode):
  image = Image.fromarray(_noise()).convert(mode)
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', subsampling=subsampling, restart_marker_rows=1)
  data = buffer.getvalue()
  whole, late = decode(data), _late(data)
  block = 16 if subsampling == 2 and mode == 'RGB' else 8
  for top in range(_HEIGHT):
    for bottom in range(top + 1, _HEIGHT + 1, 7):
      first, rows = late.rows(top, bottom)
      # No more than a row of blocks on either side.
      assert top - block - 1 <= first <= top
      assert bottom <= first + len(rows) <= bottom + block + 1
      np.testing.assert_array_equal(rows, whole[first : first + len(rows)])


@pytest.mark.parametrize(
  'options',
  [{'progressive': True}, {'exif': 6}, {'kind': 'PNG'}, {'mode': 'CMYK'}],
)
def test_other_images_are_decoded_as_a_whole(options):
  image = Image.fromarray(_noise()).convert(options.pop('mode', 'RGB'))
  if 'exif' in options:
    exif = Image.Exif()
    exif[ORIENTATION] = options['exif']
    options['exif'] = exif
  buffer = io.BytesIO()
  image.save(buffer, options.pop('kind', 'JPEG'), **options)
  pixels = decode_when_cropped(buffer.getvalue())
  np.testing.assert_array_equal(pixels, decode(buffer.getvalue()))


@pytest.mark.parametrize('blocks', [1, 3, 16])
def test_restart_markers_elsewhere_change_no_pixel(blocks):
  data = encode(_noise(), restart_marker_blocks=blocks)
  first, rows = _late(data).rows(20, 30)
  np.testing.assert_array_equal(rows[:30], decode(data)[first:][:30])


def test_a_smaller_decoding_is_one_of_the_whole_image():
  data = encode(_noise())
  small = Decoding(jpeg_min_side=30)
  np.testing.assert_array_equal(
    decode_when_cropped(data, small), decode(data, small)
  )


@pytest.mark.parametrize('bottom', [8, 60])
@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}])
@pytest.mark.parametrize('removed', [3, 3000])
def test_a_file_that_is_cut_short_is_bad_wherever_the_crop_is(
  bottom, options, removed
):
  late = _late(encode(_noise(), **options)[:-removed])
  with pytest.raises(BadImage):
    late.rows(0, bottom)


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}])
def test_damage_within_the_rows_is_that_of_the_whole_image(options):
  data = bytearray(encode(_noise(), **options))
  middle = len(data) // 2
  data[middle : middle + 2] = b'\xff\xd9'  # the end of the image
  late = _late(bytes(data))
  try:
    expected = decode(bytes(data))
  except BadImage:
    with pytest.raises(BadImage):
      late.rows(0, 70)
  else:
    np.testing.assert_array_equal(late.rows(0, 70)[1], expected)


class _Listed(Source):
  """Encoded images whose owner says that they were checked, or not."""

  name, num_classes = 'listed', 2

  def __init__(self, images, checked):
    self._images, self.checked = images, checked

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    return {'image': self._images[i], 'label': i % 2, 'id': str(i)}


@pytest.mark.parametrize(
  'keys',
  [
    {},
    {'crop_sampling': 'height', 'rounding': 'truncate', 'jpeg_dct': 'fast'},
    {'interpolation': 'random', 'randaugment': 'rand-m9'},
    {'crop': 'resize_crop', 'resize': 24},
  ],
)
def test_the_stream_of_checked_images_is_that_of_whole_images(keys):
  markers = [{}, {'restart_marker_rows': 1}]
  images = [
    encode(make_image(i, 40 + i, 50), **markers[i % 2]) for i in range(12)
  ]
  images[3] = images[3][:400]  # replaced by the next, in both streams
  config = recipe(max_bad_fraction=0.2, **keys)
  streams = [
    take(3, _Listed(images, checked), config) for checked in (True, False)
  ]
  assert_same(*streams)


def _packed(folder, **options):
  for name in ('a', 'b'):
    (folder / 'in' / name).mkdir(parents=True)
    (folder / 'in' / name / '0.jpg').write_bytes(encode(make_image(0, 48, 64)))
  pack(folder / 'in', folder / 'out', **options)
  return open_source('packed', split='train', data_dir=str(folder / 'out'))


def test_images_that_are_packed_smaller_have_restart_markers(tmp_path):
  data = _packed(tmp_path, short_side=32)[0]['image']
  first, rows = _late(data).rows(20, 32)
  assert first > 0
  np.testing.assert_array_equal(rows, decode(data)[first:])


def test_packed_images_are_checked_under_every_wrapper(tmp_path):
  packed = _packed(tmp_path)
  other = _Listed([b'', b''], checked=False)
  assert packed.checked
  assert Subset(packed, 0, 1, 'first').checked
  assert Renumbered(packed, [1, 0], ['b', 'a']).checked
  assert Concat([packed, packed], 'twice').checked
  assert not Concat([packed, other], 'mixed').checked
