"""The prefix under which a file has the tensors of a model."""

import argparse
import collections
import datetime
import decimal
import io
import pathlib
import pickle
import re
import sys
import types
import zipfile

import jax
import numpy as np
import pytest

from vit_jax.models.registry import create_model
from vit_jax.models.vit import ViT
from vit_jax.weights import (
  WeightsError,
  load_pretrained,
  read,
  released_shapes,
  to_state_dict,
)
from vit_jax.weights.prefixes import select

MODEL = ViT(
  num_classes=3, patch_size=8, width=8, depth=2, num_heads=2, mlp_dim=8
)
SIZE = (16, 16)


@pytest.fixture(scope='module')
def variables():
  images = np.zeros((1, *SIZE, 3), np.float32)
  return jax.device_get(MODEL.init(jax.random.key(0), images, train=False))


@pytest.fixture(scope='module')
def names(variables):
  return to_state_dict(variables, MODEL, 'timm')


def under(prefix, names, value=None):
  return {prefix + k: x if value is None else value for k, x in names.items()}


OPTIMIZER = {f'optimizer.state.{i}.exp_avg': 0 for i in range(900)}


@pytest.mark.parametrize(
  'prefix,beside',
  [
    ('', {}),
    ('module.', {}),
    ('_orig_mod.module.', {}),
    ('module._orig_mod.', {}),
    ('module.module.', {'n_averaged': 0}),
    ('module.', {'n_averaged': 0}),
    ('model.', {'criterion.centers.weight': 0, 'criterion.norm.weight': 0}),
    ('model.', {'loss.weight': 0, 'model_ema.decay': 0}),
    ('backbone.', {'head.mlp.0.weight': 0, 'head.last_layer.weight': 0}),
    ('net.', {'projector.0.weight': 0}),
    ('encoder.', {'decoder.0.weight': 0}),
    ('model_ema.', OPTIMIZER),
    ('state_dict.module.', OPTIMIZER),
    ('state_dict.model.encoder.', OPTIMIZER),
    ('teacher.backbone.', {'teacher.head.mlp.0.weight': 0}),
    ('_orig_mod.model.module.', {}),
    ('ema_model.', {'initted': 0, 'step': 0}),
    ('model.state_dict.', {'model.epoch': 0}),
    ('state_dict.model._orig_mod.module.backbone.encoder.net.', {}),
    ('0.', {'1.scale': 0}),
    ('_fsdp_wrapped_module.', {}),
  ],
)
def test_the_prefix_is_where_the_names_of_the_model_are(prefix, beside, names):
  result = select(under(prefix, names) | beside)
  assert result.prefix == prefix
  assert result.inside.keys() == names.keys()
  assert result.outside.keys() == beside.keys()


@pytest.mark.parametrize(
  'first,second',
  [
    ('model.', 'model_ema.'),
    ('state_dict.', 'state_dict_ema.'),
    ('teacher.backbone.', 'student.module.backbone.'),
    ('module.', 'ema_model.module.'),
    ('base_encoder.', 'momentum_encoder.'),
    ('online_model.', 'ema_model.'),
    ('params.', 'grad.'),
    ('network.', 'a_optimizer.exp_avg.'),
    ('model.', 'init_model.'),
    ('', 'ema.'),
    ('', 'exp_avg.'),
  ],
)
def test_a_copy_is_taken_only_if_it_is_named(first, second, names):
  tensors = under(second, names, 2) | under(first, names, 1)
  result = select(tensors)
  assert result.prefix == first and set(result.inside.values()) == {1}
  other = select(tensors, prefix=second.split('.')[0])
  assert other.prefix == second and set(other.inside.values()) == {2}
  assert (
    first == ''
    or f'took the {len(names)} tensors under {first!r}' in result.describe()
  )
  assert 'left out: ' in result.describe()


@pytest.mark.parametrize(
  'layer,wrapped',
  [
    (r'blocks\.(\d)\.', r'blocks.\1._orig_mod.'),
    (r'blocks\.(\d)\.', r'blocks.\1._fsdp_wrapped_module._orig_mod.'),
    (r'blocks\.', r'blocks._orig_mod.'),
    (r'(attn|mlp)\.', r'\1._checkpoint_wrapped_module.'),
  ],
)
def test_single_layers_may_be_wrapped(layer, wrapped, names):
  tensors = {re.sub(layer, wrapped, k): x for k, x in names.items()}
  assert tensors.keys() != names.keys()
  for prefix in ('', '_orig_mod.module.'):
    result = select(under(prefix, tensors))
    assert result.prefix == prefix and result.inside.keys() == names.keys()


@pytest.mark.parametrize('above', ['', 'model.'])
def test_a_head_beside_the_model_is_the_models(above, names):
  tensors = {
    above + ('' if name.startswith('head') else 'backbone.') + name: x
    for name, x in names.items()
  }
  result = select(tensors | {f'{above}head.mlp.0.weight': 0})
  assert result.prefix == f'{above}backbone.'
  assert result.inside.keys() == names.keys()
  assert list(result.outside) == [f'{above}head.mlp.0.weight']


def test_a_prefix_that_no_name_has_is_an_error(names):
  with pytest.raises(WeightsError, match="'nett.'.*there are models under 'ne"):
    select(under('net.', names), prefix='nett')


@pytest.mark.parametrize('name', ['r26_vit_s32', 'r_vit_ti16'])
def test_the_stem_of_a_hybrid_is_no_model_of_its_own(name):
  model = create_model(name, depth=1)
  tensors = dict.fromkeys(released_shapes(model, 224, 'timm'), 0)
  assert select(tensors).prefix == ''


def test_names_of_other_models_keep_theirs():
  swin = [
    f'layers.{i}.blocks.0.{name}.weight'
    for i in range(4)
    for name in ('norm1', 'attn.qkv', 'attn.proj', 'mlp.fc1')
  ]
  tensors = dict.fromkeys(['patch_embed.proj.weight', 'norm.weight', *swin], 0)
  assert select(tensors).prefix == ''
  assert select({'model.a': 0, 'model_ema.a': 1}).inside == {'a': 0}


class Tensor:
  """Pickled as a tensor of PyTorch is."""

  def __init__(self, x):
    self.x = np.asarray(x, np.float32)

  def __reduce__(self):
    strides = [s // 4 for s in self.x.strides]
    key = ('storage', self.x)
    args = (key, 0, self.x.shape, tuple(strides), False, None)
    return sys.modules['torch._utils']._rebuild_tensor_v2, args


def save_torch(path, tree, monkeypatch, protocol=2):
  """Writes a checkpoint as torch.save does, with functions of other modules."""
  storages = []

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      if isinstance(obj, tuple) and len(obj) == 2 and obj[0] == 'storage':
        storages.append(obj[1])
        kind = sys.modules['torch'].FloatStorage
        return ('storage', kind, str(len(storages) - 1), 'cpu', obj[1].size)

  file = io.BytesIO()
  with monkeypatch.context() as m:
    for module, name in (
      ('torch', 'FloatStorage'),
      ('torch._utils', '_rebuild_tensor_v2'),
    ):
      made = types.ModuleType(module)
      kind = type(name, (), {'__module__': module})
      setattr(made, name, kind)
      m.setitem(sys.modules, module, made)
    Pickler(file, protocol=protocol).dump(tree)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x/data.pkl', file.getvalue())
    for i, x in enumerate(storages):
      archive.writestr(f'x/data/{i}', x.tobytes())


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_checkpoints_with_values_of_training(
  tmp_path, monkeypatch, names, variables, caplog, protocol
):
  state = collections.defaultdict(dict)
  state[0]['exp_avg'] = Tensor(np.zeros(3))
  tree = {
    'model': collections.OrderedDict((k, Tensor(x)) for k, x in names.items()),
    'model_ema': {f'module.{k}': Tensor(x + 1) for k, x in names.items()},
    'optimizer': {'state': state, 'param_groups': [{'lr': np.float64(0.1)}]},
    'args': argparse.Namespace(
      output=pathlib.PurePosixPath('/runs'), data=pathlib.PureWindowsPath('c:')
    ),
    'counts': collections.Counter('abca'),
    'mean': np.arange(6.0).reshape(2, 3),
    'epoch': np.int64(7),
    'hyper_parameters': types.SimpleNamespace(
      day=datetime.date(2024, 5, 1),
      zone=datetime.UTC,
      last=collections.deque([1.0], maxlen=5),
      names={'a', 'b'},
      frozen=frozenset('ab'),
      steps=range(4),
      number=decimal.Decimal('0.1'),
      root=pathlib.Path('/data'),
    ),
  }
  path = tmp_path / 'checkpoint.pth'
  save_torch(path, tree, monkeypatch, protocol)
  loaded, _ = load_pretrained(MODEL, path, SIZE)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert "under 'model.'" in caplog.text and 'model_ema' in caplog.text
  averaged, _ = load_pretrained(MODEL, path, SIZE, prefix='model_ema')
  head = lambda v: v['params']['head']['kernel']
  np.testing.assert_array_equal(head(averaged), head(variables) + 1)
  np.testing.assert_array_equal(
    read(path, prefix='')[0]['mean'], np.arange(6.0).reshape(2, 3)
  )


@pytest.mark.parametrize(
  'module,name',
  [
    ('torch', 'bfloat16'),
    ('torch', 'uint8'),
    ('torch', 'device'),
    ('pathlib', 'WindowsPath'),
    ('pathlib._local', 'PosixPath'),
  ],
)
def test_values_that_are_allowed_by_their_name(tmp_path, module, name):
  text = lambda s: b'X' + len(s).to_bytes(4, 'little') + s.encode()
  value = f'c{module}\n{name}\n'.encode()
  data = b'\x80\x02}(' + text('v') + value + text('u') + b'Nu.'
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
    archive.writestr('x/data.pkl', data)
  with pytest.raises(WeightsError, match='it holds no tensors'):
    read(tmp_path / 'x.pth')
