"""Loading into models and saving from them."""

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from vit_jax.models.bit import BiT
from vit_jax.models.mixer import Mixer
from vit_jax.models.registry import create_model
from vit_jax.models.vit import ViT
from vit_jax.weights import (
  FileContents,
  WeightsError,
  WeightsMetadata,
  from_state_dict,
  inspect,
  load_pretrained,
  read,
  resize_table,
  save_weights,
  stack_blocks,
  to_state_dict,
  unstack_blocks,
)

TABLE = ('Transformer', 'posembed_input', 'pos_embedding')


def vit(**fields) -> ViT:
  return ViT(
    **{
      **dict(
        num_classes=3, patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=12
      ),
      **fields,
    }
  )


MODELS = {
  'vit': (vit(), (8, 12)),
  'gap': (vit(pool='gap', norm_after_pool=True, layer_scale=1.0), (8, 8)),
  'map': (vit(pool='map', representation_size=5), (8, 8)),
  'scan': (vit(scan=True, depth=3), (8, 8)),
  'hybrid': (vit(stem=(1,), stem_width=0.5, patch_size=1), (8, 8)),
  'mixer': (
    Mixer(
      num_classes=3,
      patch_size=4,
      width=8,
      depth=2,
      tokens_mlp_dim=6,
      mlp_dim=12,
    ),
    (8, 8),
  ),
  'bit': (BiT(num_classes=3, num_layers=(1, 1), width_factor=0.5), (32, 32)),
}


def variables_of(model, size, seed=0):
  return random_variables(model, jnp.zeros((1, *size, 3)), seed)


def assert_same(a, b):
  a, b = flatten_dict(a, sep='/'), flatten_dict(b, sep='/')
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def table_of(variables):
  node = variables['params']
  for name in TABLE:
    node = node[name]
  return node


def logits_of(model, variables, size):
  images = jax.random.normal(jax.random.key(3), (2, *size, 3))
  with jax.default_matmul_precision('highest'):
    return jax.jit(lambda v, x: model.apply(v, x, train=False)[0])(
      variables, images
    )


# ------------------------------------------------------------- round trips


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
@pytest.mark.parametrize('name', MODELS)
def test_round_trip_is_exact(name, suffix, tmp_path):
  model, size = MODELS[name]
  variables = variables_of(model, size)
  path = tmp_path / f'x{suffix}'
  fmt = save_weights(
    variables,
    model,
    path,
    WeightsMetadata(classes=('a', 'b', 'c'), image_size=size),
  )
  assert fmt == ('npz' if suffix == '.npz' else 'timm')
  loaded, report = load_pretrained(model, path, size)
  assert_same(loaded, variables)
  assert report.class_names == ('a', 'b', 'c')
  assert {e.action for e in report.records} == {'loaded'}

  # From the file to a model and back to a file.
  again = tmp_path / f'y{suffix}'
  save_weights(loaded, model, again)
  first, second = read(path)[0], read(again)[0]
  assert first.keys() == second.keys()
  for key in first:
    np.testing.assert_array_equal(first[key], second[key], strict=True)
  assert not list(tmp_path.glob('*.partial'))


def test_names_that_a_format_lacks_fall_back_to_the_tree(tmp_path):
  model, size = vit(posemb='learn2d'), (8, 8)
  variables = variables_of(model, size)
  # timm has no name for two-dimensional tables.
  assert save_weights(variables, model, tmp_path / 'x.safetensors') == 'flax'
  loaded, _ = load_pretrained(model, tmp_path / 'x.safetensors', size)
  assert_same(loaded, variables)
  with pytest.raises(WeightsError, match='timm.*row_embedding'):
    save_weights(variables, model, tmp_path / 'y.safetensors', fmt='timm')
  with pytest.raises(WeightsError, match='.npz or .safetensors'):
    save_weights(variables, model, tmp_path / 'y.pth')
  with pytest.raises(WeightsError, match="'keras'.*allowed: npz"):
    save_weights(variables, model, tmp_path / 'y.npz', fmt='keras')


def test_workdirs_and_steps_load(tmp_path):
  from vit_jax.training.checkpoint import Checkpoints

  model, size = vit(scan=True), (8, 12)
  variables = variables_of(model, size)
  average = variables_of(model, size, seed=1)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(
    5,
    {
      'params': variables['params'],
      'batch_stats': {},
      'ema': average['params'],
    },
    WeightsMetadata(classes=('x', 'y', 'z'), image_size=size),
  )
  checkpoints.close()
  loaded, report = load_pretrained(model, tmp_path, size)
  assert_same(loaded, variables)
  assert report.class_names == ('x', 'y', 'z')
  loaded, _ = load_pretrained(
    model, tmp_path / 'checkpoints' / '5', size, average=True
  )
  assert_same(loaded, average)
  # The metadata of the step tells the grid of a table that is not square.
  loaded, report = load_pretrained(vit(), tmp_path, (16, 8))
  assert report.resized[0].note == '2x3 -> 4x2, linear'


# ----------------------------------------------------------- stacked blocks


def test_scanned_and_unrolled_models_share_files(tmp_path):
  size = (8, 8)
  plain, scanned = vit(), vit(scan=True)
  variables = variables_of(plain, size)
  save_weights(variables, plain, tmp_path / 'x.npz')
  stacked, _ = load_pretrained(scanned, tmp_path / 'x.npz', size)
  block = stacked['params']['Transformer']['encoderblock']
  assert block['MlpBlock_0']['Dense_0']['kernel'].shape == (2, 8, 12)
  np.testing.assert_allclose(
    logits_of(scanned, stacked, size),
    logits_of(plain, variables, size),
    atol=1e-6,
  )
  save_weights(stacked, scanned, tmp_path / 'y.npz')
  assert_same(read(tmp_path / 'x.npz')[0], read(tmp_path / 'y.npz')[0])


@pytest.mark.parametrize('scan', [True, False])
def test_files_with_stacked_blocks(scan):
  size = (8, 8)
  scanned, model = vit(depth=3, scan=True), vit(depth=3, scan=scan)
  variables = variables_of(scanned, size)
  names = flatten_dict(variables, sep='/')
  assert 'params/Transformer/encoderblock/LayerNorm_0/bias' in names
  loaded, _ = from_state_dict(model, names, size)
  assert_same(
    to_state_dict(loaded, model, 'npz'),
    to_state_dict(variables, scanned, 'npz'),
  )


def test_leading_blocks_may_stand_alone():
  # Area attention in the first block, the other blocks scanned.
  size, fields = (8, 8), dict(depth=3, area_sizes=((1, 2),))
  plain, scanned = vit(**fields), vit(**fields, scan=True)
  variables = variables_of(plain, size)
  arrays = to_state_dict(variables, plain, 'npz')
  stacked, _ = from_state_dict(scanned, arrays, size)
  blocks = stacked['params']['Transformer']
  assert 'encoderblock_0' in blocks and 'encoderblock_1' not in blocks
  assert blocks['encoderblock']['LayerNorm_0']['scale'].shape == (2, 8)
  assert_same(to_state_dict(stacked, scanned, 'npz'), arrays)


def test_stack_and_unstack_are_inverse():
  rng = np.random.default_rng(0)
  flat = {
    f'params/block_{i}/Dense_{j}/kernel': rng.standard_normal((2, 3))
    for i in range(11)
    for j in (0, 1)
  }
  flat['params/head/kernel'] = np.ones(2)
  stacked = stack_blocks(
    flat,
    [
      'params/block/Dense_0/kernel',
      'params/block/Dense_1/kernel',
      'params/head/kernel',
    ],
  )
  assert stacked['params/block/Dense_1/kernel'].shape == (11, 2, 3)
  np.testing.assert_array_equal(  # blocks are in the order of their numbers
    stacked['params/block/Dense_0/kernel'][10],
    flat['params/block_10/Dense_0/kernel'],
  )
  assert_same(unstack_blocks(stacked, flat), flat)


# -------------------------------------------------------------------- heads


def test_head_is_kept_or_reset():
  size = (8, 8)
  arrays = to_state_dict(variables_of(vit(), size), vit(), 'npz')
  loaded, report = from_state_dict(vit(), arrays, size)
  np.testing.assert_array_equal(
    loaded['params']['head']['kernel'], arrays['head/kernel']
  )
  assert not report.reset

  model = vit(num_classes=5, head_bias=-2.0)
  loaded, report = from_state_dict(model, arrays, size)
  head = loaded['params']['head']
  np.testing.assert_array_equal(head['kernel'], np.zeros((8, 5)))
  np.testing.assert_array_equal(head['bias'], np.full(5, -2.0))
  assert {e.path for e in report.reset} == {
    'params/head/kernel',
    'params/head/bias',
  }
  assert '3 classes in the file, 5 in the model' in str(report)

  # With a key, the head has the model's initial values, N(0, 0.02).
  model = vit(num_classes=500, depth=0, init_style='timm')
  blocks = [k for k in arrays if 'encoderblock' in k]
  arrays = {k: x for k, x in arrays.items() if k not in blocks}
  loaded, _ = from_state_dict(model, arrays, size, key=jax.random.key(7))
  assert np.std(loaded['params']['head']['kernel']) == pytest.approx(
    0.02, rel=0.1
  )


def test_models_and_files_without_a_head():
  size, bare = (8, 8), vit(num_classes=0)
  arrays = to_state_dict(variables_of(vit(), size), vit(), 'timm')
  loaded, report = from_state_dict(bare, arrays, size)
  assert 'head' not in loaded['params']
  assert {e.name for e in report.dropped} == {'head.weight', 'head.bias'}

  features = to_state_dict(loaded, bare, 'timm')
  loaded, report = from_state_dict(vit(), features, size)
  np.testing.assert_array_equal(loaded['params']['head']['kernel'], 0)
  assert report.reset[0].note == 'the file has no head'


def test_pre_logits():
  size = (8, 8)
  full = vit(representation_size=8)
  arrays = to_state_dict(variables_of(full, size), full, 'npz')
  loaded, report = from_state_dict(vit(), arrays, size)
  assert 'pre_logits' not in loaded['params']
  assert {e.name for e in report.dropped} == {
    'pre_logits/kernel',
    'pre_logits/bias',
  }
  # The head has the same shape, but its input in the file is another layer.
  np.testing.assert_array_equal(loaded['params']['head']['kernel'], 0)
  assert 'takes its pre_logits, which the model lacks' in report.reset[0].note

  plain = to_state_dict(variables_of(vit(), size), vit(), 'npz')
  with pytest.raises(WeightsError, match=r'missing pre_logits/kernel.*\(8, 8'):
    from_state_dict(full, plain, size)


# ---------------------------------------------------------- position tables


@pytest.mark.parametrize(
  'fmt,method',
  [
    ('npz', 'linear'),
    ('big_vision', 'linear'),
    ('timm', 'bicubic'),
    ('flax', 'linear'),
  ],
)
@pytest.mark.parametrize('new', [(20, 20), (8, 24), (4, 12)])
def test_tables_are_resized_as_in_the_source_family(fmt, method, new):
  model, old = vit(), (12, 12)
  variables = variables_of(model, old)
  arrays = to_state_dict(variables, model, fmt)
  loaded, report = from_state_dict(model, arrays, new)
  grid = (new[0] // 4, new[1] // 4)
  table = table_of(variables)
  if fmt == 'big_vision':  # row 0 is added to the class token
    table = np.concatenate([np.zeros((1, 1, 8)), table[:, 1:]], axis=1)
    np.testing.assert_array_equal(
      loaded['params']['cls'],
      variables['params']['cls'] + table_of(variables)[:, :1],
    )
  np.testing.assert_allclose(
    table_of(loaded), resize_table(table, (3, 3), grid, method), atol=1e-6
  )
  note = f'3x3 -> {grid[0]}x{grid[1]}, {method}'
  assert report.resized[0].note.startswith(note)


def test_two_dimensional_tables_are_resized():
  model = vit(posemb='learn2d')
  arrays = to_state_dict(variables_of(model, (12, 8)), model, 'flax')
  loaded, report = from_state_dict(model, arrays, (8, 20))
  tables = loaded['params']['Transformer']['posembed_input']
  assert tables['row_embedding'].shape == (1, 2, 1, 4)
  assert tables['col_embedding'].shape == (1, 1, 5, 4)
  assert len(report.resized) == 2


def test_tables_that_are_not_square():
  model, old = vit(), (8, 24)  # 2 x 6
  variables = variables_of(model, old)
  arrays = to_state_dict(variables, model, 'npz')
  with pytest.raises(
    WeightsError,
    match=r'pos_embedding is \(1, 13, 8\).*'
    'not a square grid.*source_image_size',
  ):
    from_state_dict(model, arrays, (16, 16))
  loaded, _ = from_state_dict(model, arrays, (16, 16), source_image_size=old)
  np.testing.assert_array_equal(
    table_of(loaded),
    resize_table(table_of(variables), (2, 6), (4, 4), 'linear'),
  )
  # The same number of patches in another grid.
  loaded, report = from_state_dict(
    model, arrays, (12, 16), source_image_size=old
  )
  assert report.resized[0].note == '2x6 -> 3x4, linear'


def test_big_vision_form_means_the_same():
  size, model = (8, 8), vit()
  variables = variables_of(model, size)
  arrays = to_state_dict(variables, model, 'big_vision')
  assert arrays['params/pos_embedding'].shape == (1, 4, 8)
  loaded, report = from_state_dict(model, arrays, size)
  assert report.format == 'big_vision'
  np.testing.assert_allclose(
    logits_of(model, loaded, size), logits_of(model, variables, size), atol=1e-5
  )
  again = to_state_dict(loaded, model, 'big_vision')
  assert_same(again, arrays)


def test_a_table_of_the_patches_only():
  # DeiT III has no row for the class token; the model gets a row of zeros.
  size, model = (12, 12), vit()
  arrays = to_state_dict(variables_of(model, size), model, 'timm')
  arrays['pos_embed'] = arrays['pos_embed'][:, 1:]
  loaded, report = from_state_dict(model, arrays, size)
  np.testing.assert_array_equal(table_of(loaded)[:, 0], 0)
  assert 'zero row' in str(report)
  # 9 rows could be a class token and 8 patches, or 9 patches.
  with pytest.raises(WeightsError, match='source_image_size'):
    from_state_dict(model, arrays, (16, 16))
  loaded, _ = from_state_dict(model, arrays, (16, 16), source_image_size=size)
  assert table_of(loaded).shape == (1, 17, 8)


# ------------------------------------------------- wrappers and old layouts


@pytest.mark.parametrize(
  'prefix,outside',
  [
    ('params/', {'opt/0/mu/head/kernel': np.zeros(3)}),
    ('opt/target/', {'opt/state/step': np.zeros(())}),
    ('opt/target/params/', {}),
  ],
)
def test_google_wrappers(prefix, outside):
  model, size = vit(), (8, 8)
  variables = variables_of(model, size)
  arrays = {
    prefix + k: x for k, x in to_state_dict(variables, model, 'npz').items()
  }
  loaded, report = from_state_dict(model, arrays | outside, size)
  assert_same(loaded, variables)
  assert {e.name for e in report.dropped} == set(outside)


def test_torch_wrappers_and_ignored_names():
  model, size = vit(), (8, 8)
  variables = variables_of(model, size)
  arrays = to_state_dict(variables, model, 'timm')
  arrays['mask_token'] = np.zeros((1, 8))
  arrays = {f'module.{k}': x for k, x in arrays.items()}
  loaded, report = from_state_dict(model, arrays, size)
  assert_same(loaded, variables)
  assert [e.name for e in report.dropped] == ['mask_token']


def test_old_google_layouts():
  model, size = MODELS['bit']
  variables = variables_of(model, size)
  arrays = {
    k.replace('standardized_conv2d', f'standardized_conv2d_{i}'): x
    for i, (k, x) in enumerate(to_state_dict(variables, model, 'npz').items())
  }
  assert_same(from_state_dict(model, arrays, size)[0], variables)

  model, size = MODELS['mixer']
  variables = variables_of(model, size)
  arrays = to_state_dict(variables, model, 'legacy')
  assert arrays['Mixer/encoderblock_1/token_mixing_phase_0/kernel2'].shape == (
    6,
    4,
  )
  arrays = {
    k.replace('LayerNorm_1', 'LayerNorm_2'): x[None] for k, x in arrays.items()
  }
  loaded, report = from_state_dict(model, arrays, size)
  assert report.format == 'legacy'
  assert_same(loaded, variables)

  model, size = MODELS['hybrid']  # GroupNorm vectors as (1, 1, 1, C), or (C,)
  variables = variables_of(model, size)
  arrays = to_state_dict(variables, model, 'npz')
  assert arrays['gn_root/scale'].shape == (1, 1, 1, 32)
  arrays = {k: x.reshape(-1) if 'gn' in k else x for k, x in arrays.items()}
  assert_same(from_state_dict(model, arrays, size)[0], variables)


def test_half_precision_arrays_become_float32():
  model, size = vit(), (8, 8)
  arrays = {
    k: x.astype(np.float16)
    for k, x in to_state_dict(variables_of(model, size), model, 'timm').items()
  }
  loaded, _ = from_state_dict(model, arrays, size)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype('float32')}


# ------------------------------------------------------------------- errors


def broken(change) -> str:
  model, size = vit(), (8, 8)
  arrays = to_state_dict(variables_of(model, size), model, 'timm')
  change(arrays)
  with pytest.raises(WeightsError) as e:
    from_state_dict(model, arrays, size, source='file.pth')
  assert 'file.pth' in str(e.value)
  return str(e.value)


def test_errors_name_tensors_and_shapes():
  message = broken(lambda a: a.pop('blocks.1.attn.qkv.weight'))
  assert 'missing blocks.1.attn.qkv.weight, expected (24, 8)' in message
  message = broken(lambda a: a.update({'blocks.2.norm1.bias': np.zeros(8)}))
  assert 'left over blocks.2.norm1.bias (8,)' in message
  message = broken(
    lambda a: a.update(
      {'blocks.0.mlp.fc1.weight': np.zeros((12, 9), np.float32)}
    )
  )
  assert 'blocks.0.mlp.fc1.weight is (12, 9), expected (12, 8)' in message
  message = broken(
    lambda a: a.update(  # transposed
      {'blocks.0.mlp.fc1.weight': np.zeros((8, 12), np.float32)}
    )
  )
  assert 'is (8, 12), expected (12, 8)' in message
  message = broken(
    lambda a: a.update(
      {'patch_embed.proj.weight': np.zeros((8, 3, 2, 8), np.float32)}
    )
  )
  assert 'is (8, 3, 2, 8), expected (8, 3, 4, 4)' in message
  message = broken(
    lambda a: a.update({'pos_embed': np.zeros((1, 5, 4), np.float32)})
  )
  assert 'pos_embed is (1, 5, 4), expected (1, 5, 8)' in message


def test_a_file_of_another_architecture():
  model, size = MODELS['bit']
  arrays = to_state_dict(variables_of(model, size), model, 'npz')
  with pytest.raises(
    WeightsError,
    match='(?s)w.npz is not a file of ViT.*'
    r'resnet/block1/unit01/a/group_norm/beta \(32,\)',
  ):
    from_state_dict(vit(), arrays, size, source='w.npz')
  with pytest.raises(WeightsError, match='is not a file of ViT'):
    from_state_dict(vit(), {}, (8, 8))
  with pytest.raises(WeightsError, match="'tf' is not known.*allowed"):
    from_state_dict(vit(), {}, (8, 8), fmt='tf')


def test_not_strict():
  model, size = vit(), (8, 8)
  variables = variables_of(model, size)
  arrays = to_state_dict(variables, model, 'timm')
  arrays.pop('blocks.1.norm1.weight')
  arrays['extra'] = np.zeros(2)
  loaded, report = from_state_dict(model, arrays, size, strict=False)
  block = loaded['params']['Transformer']['encoderblock_1']
  np.testing.assert_array_equal(block['LayerNorm_0']['scale'], np.ones(8))
  assert [e.name for e in report.reset] == ['blocks.1.norm1.weight']
  assert [e.name for e in report.left_over] == ['extra']
  # The file has a class token; the model averages patches and drops it.
  gap = vit(pool='gap')
  loaded, report = from_state_dict(
    gap, to_state_dict(variables, model, 'npz'), size, strict=False
  )
  assert [e.name for e in report.left_over] == ['cls']
  np.testing.assert_array_equal(table_of(loaded), table_of(variables)[:, 1:])


def test_report_lists_every_tensor():
  model, size = vit(), (8, 8)
  arrays = to_state_dict(variables_of(model, size), model, 'npz')
  _, report = from_state_dict(vit(num_classes=4), arrays, (16, 16))
  assert {e.name for e in report.records} == set(arrays)
  assert str(report).splitlines()[0] == (
    f'the state dict (npz): {len(arrays) - 3} loaded, 1 resized, 2 reset'
  )
  assert len(report.table().splitlines()) == len(arrays)


def test_report_has_grids_and_class_counts_as_numbers():
  model, old = vit(), (8, 24)
  arrays = to_state_dict(variables_of(model, old), model, 'npz')
  _, report = from_state_dict(
    vit(num_classes=4), arrays, (16, 8), source_image_size=old
  )
  (table,) = report.resized
  assert (table.file_grid, table.grid) == ((2, 6), (4, 2))
  assert {(r.file_classes, r.classes) for r in report.reset} == {(3, 4)}
  assert report.image_size == (16, 8)

  model = vit(posemb='learn2d')
  arrays = to_state_dict(variables_of(model, (12, 8)), model, 'flax')
  del arrays['params/head/kernel'], arrays['params/head/bias']
  _, report = from_state_dict(model, arrays, (8, 20))
  assert {(r.file_grid, r.grid) for r in report.resized} == {
    ((3, 1), (2, 1)),
    ((1, 2), (1, 5)),
  }
  assert {(r.file_classes, r.classes) for r in report.reset} == {(None, 3)}


# ------------------------------------------------- the size that a file is for


@pytest.mark.parametrize(
  'model,size',
  [
    (vit(), (8, 8)),
    (vit(scan=True, num_classes=5), (12, 12)),
    (vit(posemb='learn2d'), (8, 20)),
    (vit(stem=(1,), stem_width=0.5, patch_size=2), (32, 32)),
  ],
)
def test_the_size_of_a_file_is_that_of_its_table(model, size):
  arrays = to_state_dict(variables_of(model, size), model, 'flax')
  contents = inspect(model, arrays)
  assert contents.image_size == size
  assert contents.num_classes == model.num_classes
  loaded, report = from_state_dict(model, arrays)
  assert report.image_size == size
  assert_same(to_state_dict(loaded, model, 'flax'), arrays)


def test_a_file_says_what_it_has():
  size = (8, 8)
  full = vit(representation_size=5)
  arrays = to_state_dict(variables_of(full, size), full, 'npz')
  contents = inspect(vit(num_classes=0), arrays)
  assert contents == FileContents('npz', 3, 5, size)
  del arrays['head/kernel'], arrays['head/bias']
  arrays['Transformer/posembed_input/pos_embedding'] = np.zeros((1, 7, 8))
  assert inspect(vit(), arrays) == FileContents('npz', 0, 5, None)


def test_files_and_workdirs_load_without_more_arguments(tmp_path):
  from vit_jax.training.checkpoint import Checkpoints

  model, size = (
    vit(),
    (8, 12),
  )  # 2 x 3 patches, which the table alone does not tell
  variables = variables_of(model, size)
  save_weights(
    variables, model, tmp_path / 'x.npz', WeightsMetadata(image_size=size)
  )
  loaded, report = load_pretrained(model, tmp_path / 'x.npz')
  assert_same(loaded, variables)
  assert report.image_size == size

  checkpoints = Checkpoints(tmp_path / 'run')
  state = {'params': variables['params'], 'batch_stats': {}}
  checkpoints.save(1, state, WeightsMetadata(image_size=size))
  checkpoints.close()
  loaded, report = load_pretrained(model, tmp_path / 'run')
  assert_same(loaded, variables)
  assert report.image_size == size


def test_without_a_table_the_registry_knows_the_size():
  model = create_model('bit_r50x1', num_layers=(1,), width_factor=0.5)
  arrays = to_state_dict(variables_of(model, (32, 32)), model, 'npz')
  _, report = from_state_dict(model, arrays)
  assert report.image_size == (224, 224)
  model, size = MODELS['mixer']
  arrays = to_state_dict(variables_of(model, size), model, 'npz')
  with pytest.raises(WeightsError, match='at image size 224x224'):
    from_state_dict(model, arrays)
