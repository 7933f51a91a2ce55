"""Token labels: ROI-align, targets of crops, storage, training on them."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny_config
from tests.random_variables import random_variables
from vit_jax import train
from vit_jax.data import token_labels, token_targets, transforms
from vit_jax.data.randaugment.timm import timm_op
from vit_jax.data.resize import flip_left_right
from vit_jax.data.sources.opening import open_source
from vit_jax.inference.jobs import Share
from vit_jax.models import ceit, mixer, vit, volo
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import data as recipe_data
from vit_jax.teachers import token_labels as teacher_labels
from vit_jax.training import losses

C = 7


def tiny_volo(**fields):
  return volo.VOLO(
    **{
      **dict(
        num_classes=C,
        patch_size=4,
        layers=(1, 1),
        embed_dims=(8, 16),
        num_heads=(2, 2),
        mlp_ratios=(2, 2),
        outlook_attention=(True, False),
        downsamples=(True, False),
        post_layers=('ca',),
        stem_hidden_dim=4,
      ),
      **fields,
    }
  )


def bilinear(image, y, x):
  """One sample of torchvision's ROI-align."""
  height, width = image.shape
  if y < -1 or y > height or x < -1 or x > width:
    return 0.0
  y, x = max(y, 0.0), max(x, 0.0)
  y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
  y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
  dy, dx = (
    0.0 if y0 == height - 1 else y - y0,
    0.0 if x0 == width - 1 else x - x0,
  )
  return (
    (1 - dy) * (1 - dx) * image[y0, x0]
    + (1 - dy) * dx * image[y0, x1]
    + dy * (1 - dx) * image[y1, x0]
    + dy * dx * image[y1, x1]
  )


def roi_align(image, y1, x1, y2, x2, bins):
  """torchvision.ops.roi_align(aligned=False), one channel, by loops."""
  height, width = max(y2 - y1, 1.0), max(x2 - x1, 1.0)
  ny, nx = (int(np.ceil(n / b)) for n, b in zip((height, width), bins))
  out = np.zeros(bins)
  for i in range(bins[0]):
    for j in range(bins[1]):
      for a in range(ny):
        for b in range(nx):
          y = y1 + (i + (a + 0.5) / ny) * height / bins[0]
          x = x1 + (j + (b + 0.5) / nx) * width / bins[1]
          out[i, j] += bilinear(image, y, x) / (ny * nx)
  return out


@pytest.mark.parametrize(
  'box',
  [
    (0.0, 0.0, 1.0, 1.0),
    (0.1, 0.35, 0.5, 0.61),
    (0.03, 0.4, 0.9, 0.05),
    (0.71, 0.2, 0.29, 0.31),
    (-0.25, 0.25, 1.0, 1.0),
  ],
)
@pytest.mark.parametrize('grid', [(1, 1), (3, 4), (9, 5)])
def test_roi_align(box, grid):
  size = (6, 5)
  image = np.random.default_rng(0).standard_normal(size)
  top, left, height, width = box
  start = top * 6 - 0.5, left * 5 - 0.5
  end = (top + height) * 6 - 0.5, (left + width) * 5 - 0.5
  rows, columns = jax.jit(
    lambda start, end: [
      token_targets.roi_weights(start[i], end[i], size[i], grid[i])
      for i in (0, 1)
    ]
  )(jnp.array(start), jnp.array(end))
  got = rows @ image @ columns.T
  want = roi_align(image, *start, *end, grid)
  np.testing.assert_allclose(got, want, atol=1e-5)


def stored(rng, k=2, shape=(3, 4)):
  """A stored label map, and the same map with all classes."""
  classes = np.stack([rng.permutation(C)[:k] for _ in range(12)], 1)
  classes = classes.reshape(k, *shape).astype(np.int32)
  logits = rng.standard_normal((k, *shape)).astype(np.float16)
  dense = np.zeros((*shape, C))
  for i in range(k):
    np.put_along_axis(
      dense, classes[i][..., None], logits[i][..., None].astype(float), 2
    )
  return logits, classes, dense


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_targets_of_a_crop():
  logits, classes, dense = stored(np.random.default_rng(1))
  box, grid = (0.2, 0.1, 0.5, 0.8), (2, 2)
  corners = (0.2 * 3 - 0.5, 0.1 * 4 - 0.5, 0.7 * 3 - 0.5, 0.9 * 4 - 0.5)
  source = np.array([[1, 0], [-1, 2]], np.int16)  # mirrored, one token filled
  tokens, cls = token_targets.crop_targets(
    logits, classes, jnp.array(box), source, C
  )
  aligned = lambda bins: np.stack(
    [roi_align(dense[..., c], *corners, bins) for c in range(C)], -1
  )
  want = aligned(grid).reshape(4, C)[[1, 0, 3, 2]]
  want[2] = 0
  np.testing.assert_allclose(tokens, softmax(want), atol=1e-5)
  np.testing.assert_allclose(tokens[2], 1 / C, atol=1e-6)
  np.testing.assert_allclose(cls, softmax(aligned((1, 1))[0, 0]), atol=1e-5)


def test_the_whole_image_is_the_map():
  logits, classes, dense = stored(np.random.default_rng(2))
  got = token_targets.crop_logits(
    logits, classes, jnp.array([0.0, 0, 1, 1]), (3, 4), C
  )
  np.testing.assert_allclose(got, dense, atol=1e-6)


@pytest.mark.parametrize(
  'ops',
  [
    (),
    (('Rotate', (20.0,)),),
    (('ShearX', (0.3,)),),
    (('ShearY', (-0.2,)),),
    (('TranslateXRel', (0.2,)),),
    (('TranslateYRel', (-0.4,)),),
    (('ShearX', (-0.25,)), ('ColorIncreasing', (1.3,)), ('Rotate', (-27.0,))),
  ],
)
@pytest.mark.parametrize('flip', [False, True])
def test_tokens_follow_the_pixels(ops, flip):
  """Pixels that have the number of their token show the right tokens."""
  grid, size = (4, 6), (128, 192)
  number = 8 * (np.arange(24).reshape(grid) + 1)
  image = np.kron(number, np.ones((32, 32))).astype(np.uint8)
  image = np.repeat(image[..., None], 3, axis=-1)
  if flip:
    image = flip_left_right(image)
  for name, args in ops:
    if name != 'ColorIncreasing':  # gray stays gray
      image = timm_op(name, image, args, 'bilinear', (0, 0, 0))
  got = token_targets.token_source(
    transforms.Geometry((0, 0, 1, 1), flip, ops), grid, size
  )
  # The four pixels around each center, if they agree.
  y, x = np.arange(16, 128, 32), np.arange(16, 192, 32)
  patches = np.stack(
    [image[y + a][:, x + b, 0] for a in (-2, 1) for b in (-2, 1)]
  )
  clear = (patches == patches[0]).all(0)
  assert clear.mean() > 0.6
  np.testing.assert_array_equal(got[clear], (patches[0] // 8 - 1.0)[clear])


# How images are prepared for the teacher.
FED = Preprocessing((16, 32), None, 'bicubic', 'imagenet')


@pytest.fixture(scope='module')
def teacher():
  model = tiny_volo()
  images = jnp.zeros((1, 16, 32, 3))
  return model, random_variables(model, images)


@pytest.fixture(scope='module')
def data():
  return open_source(
    'synthetic',
    split='train',
    num_classes=C,
    num_examples=40,
    image_size=(32, 32),
  )


@pytest.fixture(scope='module')
def directory(teacher, data, tmp_path_factory):
  """Labels that two processes made, one after the other."""
  path = tmp_path_factory.mktemp('labels')
  for process, shards in ((1, 1), (0, 3)):
    teacher_labels.make_token_labels(
      *teacher,
      data,
      path,
      preprocessing=FED,
      top_k=3,
      batch_size=16,
      shard_size=15,
      threads=0,
      share=Share(process, 2),
    )
    assert len(list(path.glob('*.array_record'))) == shards
    assert (path / token_labels.META).exists() == (process == 0)
  return path


def test_stored_labels_are_the_teachers(directory, teacher, data):
  labels = token_labels.TokenLabels(directory)
  assert len(labels) == 40
  assert labels.meta['grid'] == [2, 4] and labels.meta['top_k'] == 3
  labels.check(data, C)
  labels = pickle.loads(pickle.dumps(labels))
  model, variables = teacher
  for i in (0, 14, 15, 39):
    image = transforms.eval_image(
      data[i]['image'], Preprocessing((16, 32), interpolation='bicubic')
    )
    mean = np.array((123.675, 116.28, 103.53))
    x = (image - mean) / np.array((58.395, 57.12, 57.375))
    _, out = model.apply(
      variables, jnp.asarray(x, jnp.float32)[None], train=False
    )
    want = np.asarray(out['logits_aux']).reshape(2, 4, C)
    logits, classes = labels[i]
    assert logits.dtype == np.float16 and classes.dtype == np.int32
    assert logits.shape == classes.shape == (3, 2, 4)
    order = np.argsort(-want, axis=-1)[..., :3]
    np.testing.assert_allclose(
      np.moveaxis(logits, 0, -1),
      np.take_along_axis(want, order, -1),
      rtol=2e-3,
      atol=2e-3,
    )
    np.testing.assert_allclose(
      np.take_along_axis(want, np.moveaxis(classes, 0, -1), -1),
      np.take_along_axis(want, order, -1),
      atol=1e-3,
    )


def test_making_labels_goes_on_where_it_stopped(directory, teacher, data):
  meta = directory / token_labels.META
  before = [p.read_bytes() for p in sorted(directory.glob('*.array_record'))]
  assert len(before) == 3 and not list(directory.glob('*.partial'))
  text = meta.read_text()
  meta.unlink()
  with pytest.raises(ValueError, match='unfinished'):
    token_labels.TokenLabels(directory)
  second = sorted(directory.glob('*.array_record'))[1]
  second.unlink()
  make = lambda **more: teacher_labels.make_token_labels(
    *teacher,
    data,
    directory,
    **{
      **dict(
        preprocessing=FED, top_k=3, batch_size=16, shard_size=15, threads=0
      ),
      **more,
    },
  )
  make()
  assert before == [
    p.read_bytes() for p in sorted(directory.glob('*.array_record'))
  ]
  assert meta.read_text() == text
  with pytest.raises(ValueError, match='another top_k'):
    make(top_k=2)


def test_labels_of_other_data_are_refused(directory, data):
  labels = token_labels.TokenLabels(directory)
  other = open_source(
    'synthetic',
    split='train',
    num_classes=C,
    num_examples=41,
    image_size=(32, 32),
  )
  with pytest.raises(ValueError, match=r'are of synthetic.*\(40 examples\)'):
    labels.check(other, C)
  with pytest.raises(ValueError, match='of 7 classes, the data has 8'):
    labels.check(data, 8)
  with pytest.raises(ValueError, match='no token_labels.json'):
    token_labels.TokenLabels(directory / 'none')


def test_swapped_axes(directory):
  geometry = transforms.Geometry((0.1, 0.2, 0.3, 0.4))
  box = lambda swap: token_labels.TokenLabels(directory, swap_axes=swap)(
    0, geometry
  )['token_box']
  np.testing.assert_allclose(box(False), (0.1, 0.2, 0.3, 0.4))
  np.testing.assert_allclose(box(True), (0.2, 0.1, 0.4, 0.3))


def test_batches_and_expansion(directory, data):
  config = tiny_config(
    data=dict(
      crop='inception', randaugment='rand-m9-inc1', image_size=32, batch_size=8
    )
  )
  open_labels = lambda model: token_labels.open_for_training(
    directory, model, data, C, image_size=(32, 32), host_size=(32, 32)
  )
  labels = open_labels(tiny_volo())
  assert labels.grid == (4, 4) and labels.size == (32, 32)
  with recipe_data.train_batches(config, data, token_labels=labels) as it:
    batch = next(it)
  assert batch['token_logits'].dtype == np.float16
  assert batch['token_source'].shape == (8, 4, 4)
  wire = sum(v.nbytes for k, v in batch.items() if k.startswith('token')) / 8
  assert wire == 3 * 2 * 4 * 6 + 16 + 32
  got = jax.jit(lambda b: token_targets.expand(b, C))(batch)
  assert got['token_labels'].shape == (8, 16, C)
  assert got['token_cls'].shape == (8, C)
  np.testing.assert_allclose(got['token_labels'].sum(-1), 1, atol=1e-5)
  assert not any(k in got for k in ('token_logits', 'token_source'))

  relabel = open_labels(
    vit.ViT(
      num_classes=C, patch_size=16, width=8, depth=1, num_heads=2, mlp_dim=8
    )
  )
  assert relabel.grid == (1, 1)
  with recipe_data.train_batches(config, data, token_labels=relabel) as it:
    same = next(it)
  relabeled = token_targets.expand(same, C)
  assert 'token_labels' not in relabeled
  np.testing.assert_allclose(relabeled['label'], got['token_cls'], atol=1e-6)


def test_a_vit_labels_tokens_with_its_head():
  model = vit.ViT(
    num_classes=C,
    patch_size=8,
    width=8,
    depth=1,
    num_heads=2,
    mlp_dim=8,
    pool='gap',
  )
  images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
  variables = random_variables(model, images)
  forward, grid = teacher_labels.token_logits(model, (16, 24))
  assert grid == (2, 3)
  got = forward(variables, images)
  want, _ = model.apply(variables, images, train=False)
  assert got.shape == (2, 2, 3, C)  # a class activation map
  np.testing.assert_allclose(got.mean((1, 2)), want, atol=1e-5)
  _, grid = teacher_labels.token_logits(
    model.clone(pool='token', patch_size=(4, 8)), (16, 24)
  )
  assert grid == (4, 3)
  _, grid = teacher_labels.token_logits(
    mixer.Mixer(
      num_classes=C, patch_size=8, width=8, depth=1, tokens_mlp_dim=4, mlp_dim=8
    ),
    (16, 24),
  )
  assert grid == (2, 3)


@pytest.mark.parametrize(
  'model',
  [
    vit.ViT(
      num_classes=C,
      patch_size=8,
      width=8,
      depth=1,
      num_heads=2,
      mlp_dim=8,
      representation_size=4,
    ),
    vit.ViT(
      num_classes=C,
      patch_size=8,
      width=8,
      depth=1,
      num_heads=2,
      mlp_dim=8,
      pool='map',
    ),
    ceit.CeiT(num_classes=C, patch_size=8, width=8, depth=1, num_heads=2),
  ],
)
def test_teachers_that_cannot_label_tokens(model):
  with pytest.raises(ValueError, match='does not read its tokens'):
    teacher_labels.token_logits(model, (16, 16))


def test_training_on_token_labels(directory, tmp_path):
  """A run reads stored token labels, and its loss falls."""
  config = tiny_config(
    data=dict(
      num_classes=C,
      num_examples=40,
      image_size=32,
      batch_size=8,
      labels=str(directory),
      flip=0.0,
    ),
    run=dict(steps=6),
    optim=dict(lr=3e-3),
  )
  config.model = dict(
    module='',
    name='volo_d1',
    patch_size=4,
    layers=(1, 1),
    embed_dims=(8, 16),
    num_heads=(2, 2),
    mlp_ratios=(2, 2),
    outlook_attention=(True, False),
    downsamples=(True, False),
    post_layers=('ca',),
    stem_hidden_dim=4,
  )
  summary = train.train_and_evaluate(config, str(tmp_path))
  assert summary['step'] == 6
  lines = [
    line
    for line in (tmp_path / 'metrics.jsonl').read_text().split('\n')
    if 'loss_tokens' in line
  ]
  assert len(lines) >= 6


def test_hard_labels_serve_as_token_targets():
  """Without label maps every token has the class target."""
  model = tiny_volo()
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  variables = random_variables(model, images)
  (logits, out), _ = model.apply(
    variables,
    images,
    train=True,
    rngs={'dropout': jax.random.key(2)},
    mutable=['batch_stats'],
  )
  label = jax.nn.one_hot(jnp.arange(4), C)
  loss, terms = losses.total_loss(
    tiny_config().loss, logits, out, {'label': label}
  )
  tokens = -jnp.sum(
    jax.nn.log_softmax(out['logits_aux']) * label[:, None], -1
  ).mean()
  np.testing.assert_allclose(terms['tokens'], tokens, rtol=1e-5)
  assert jnp.isfinite(loss)
