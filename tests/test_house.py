"""The house: who may import what, and that importing does nothing."""

import ast
import json
import pathlib

import pytest

from tests.helpers import ROOT, run_python

PACKAGE = pathlib.Path(ROOT, 'vit_jax')

# Packages and modules of vit_jax from the ground up. A module imports from its
# own layer and the ones before it. Models know nothing of data, training or
# files; nothing but an entry point knows of the loop.
LAYERS = (
    'models', 'config', 'flops',
    'losses metrics augment optim sharding distributed',
    'checkpoint', 'weights', 'data', 'step', 'writers', 'info', 'predict',
    'distill', 'evaluate', 'train', 'analysis', 'finetune fewshot',
    'convert export')
# Programs of their own, and what only they or the recipes need.
ENTRY_POINTS = {'main', 'cli', 'commands', 'aot', 'ablate', 'selftrain',
                'recipes'}
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer.split()}

# Who may import a package, by file or folder; everything not named here that
# is not small and pure stays out.
GUESTS = {
    'orbax': {'checkpoint.py'},
    'grain': {'data'},
    'tensorflow_datasets': {'data'},
    'array_record': {'data'},
    'tensorboardX': {'writers.py'},
    'matplotlib': {'analysis', 'commands', 'ablate.py'},
    'tensorflow': {'export.py'},
    'torch': set(),
    'torchvision': set(),
    'timm': set(),
    'transformers': set(),
    'seaborn': set(),
    'pandas': set(),
}
LAZY = ('matplotlib', 'tensorflow', 'tensorflow_datasets', 'tensorboardX')

FILES = sorted(PACKAGE.rglob('*.py'))


def relative(path: pathlib.Path) -> str:
  return str(path.relative_to(PACKAGE))


def imports(path: pathlib.Path):
  """(module, line, function that it is in or '') of every import of a file."""
  found = []

  def visit(node, function):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.Import):
        found.extend((a.name, child.lineno, function) for a in child.names)
      elif isinstance(child, ast.ImportFrom):
        assert not child.level, f'{path}:{child.lineno}: a relative import'
        found.append((child.module, child.lineno, function))
        found.extend((f'{child.module}.{a.name}', child.lineno, function)
                     for a in child.names)
      inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
      visit(child, function or (child.name if inner else ''))

  visit(ast.parse(path.read_text()), '')
  return found


def part(module: str) -> str:
  """'data' of 'vit_jax.data.sources'; '' of what is not a module of ours."""
  pieces = module.split('.')
  if pieces[0] != 'vit_jax' or len(pieces) == 1:
    return ''
  name = pieces[1]
  known = (PACKAGE / name).is_dir() or (PACKAGE / f'{name}.py').exists()
  return name if known else ''


def owner(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_every_module_has_its_place():
  parts = {owner(p) for p in FILES} - {'__init__'}
  placed = set(RANK) | ENTRY_POINTS
  assert parts == placed, (
      f'not placed: {sorted(parts - placed)}; gone: {sorted(placed - parts)}')


@pytest.mark.parametrize(
    'path', [p for p in FILES if owner(p) in RANK], ids=relative)
def test_imports_go_only_downwards(path):
  for module, line, function in imports(path):
    theirs = part(module)
    # A command is an entry point, wherever it stands.
    if not theirs or function in ('main', 'add_arguments'):
      continue
    assert theirs in RANK and RANK[theirs] <= RANK[owner(path)], (
        f'{relative(path)}:{line} imports {module}')


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_packages_are_imported_only_where_they_belong(path):
  allowed = {relative(path), owner(path)}
  for module, line, function in imports(path):
    package = module.split('.')[0]
    where = f'{relative(path)}:{line} imports {module}'
    if package in GUESTS:
      assert GUESTS[package] & allowed, where
    if package in LAZY:
      assert function, f'{where}, not inside a function'


def test_no_module_imports_tests_configs_or_benchmarks():
  for path in FILES:
    for module, line, _ in imports(path):
      assert module.split('.')[0] not in ('tests', 'configs', 'benchmarks'), (
          f'{relative(path)}:{line} imports {module}')


HEAVY = ('tensorflow', 'tensorflow_datasets', 'torch', 'torchvision',
         'matplotlib', 'tensorboardX', 'sklearn', 'pandas')


def loaded_by(code: str) -> dict:
  result = run_python('-c', f'''
import json, sys
{code}
from jax._src import xla_bridge
print(json.dumps({{'modules': sorted({{m.split('.')[0] for m in sys.modules}}),
                  'backends': sorted(xla_bridge._backends)}}))
''')
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_import_vit_jax_does_nothing():
  loaded = loaded_by('import vit_jax')
  assert not set(loaded['modules']) & {*HEAVY, 'orbax', 'grain', 'flax'}
  assert not loaded['backends']


def test_no_module_starts_a_backend_or_loads_what_is_heavy():
  """All of them in one process; sklearn and the like come when asked for."""
  names = ['.'.join(p.with_suffix('').relative_to(ROOT).parts) for p in FILES
           if p.stem not in ('__init__', '__main__')]
  loaded = loaded_by(f'''
import importlib
for name in {names}:
  importlib.import_module(name)
''')
  assert not loaded['backends']
  assert not set(loaded['modules']) & set(HEAVY)


def test_the_public_names_exist():
  import vit_jax
  for name in vit_jax.__all__:
    assert getattr(vit_jax, name)
  with pytest.raises(AttributeError, match="no attribute 'load_pretraind'"):
    vit_jax.load_pretraind
