"""The house: short files and functions; importing it loads nothing heavy."""

import ast
import json
import pathlib

import pytest

from tests.helpers import ROOT, run_python

PACKAGE = pathlib.Path(ROOT, 'vit_jax')

FILES = sorted(PACKAGE.rglob('*.py'))
MAX_FILE = 400
MAX_FUNCTION = 80
# Longer for a reason: the training loop is read from top to bottom, and so is
# the `__call__` of a model.
LONGER = {'train_and_evaluate': 120, '__call__': 100}


def functions(tree: ast.AST):
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node


def test_files_and_functions_are_short():
  too_long = []
  for path in FILES:
    text = path.read_text()
    name = path.relative_to(ROOT)
    lines = len(text.splitlines())
    if lines > MAX_FILE:
      too_long.append(f'{name}: {lines} lines, at most {MAX_FILE}')
    for function in functions(ast.parse(text)):
      allowed = LONGER.get(function.name, MAX_FUNCTION)
      length = function.end_lineno - function.lineno + 1
      if length > allowed:
        too_long.append(
          f'{name}:{function.lineno} {function.name}: {length} lines, at most '
          f'{allowed}'
        )
  assert not too_long, 'split these:\n' + '\n'.join(too_long)


def public_functions(tree: ast.Module):
  """Functions of a module and methods of its classes that are not private."""
  for node in tree.body:
    body = node.body if isinstance(node, ast.ClassDef) else [node]
    if isinstance(node, ast.ClassDef) and node.name.startswith('_'):
      continue
    for function in body:
      if isinstance(function, ast.FunctionDef) and function.name[0] != '_':
        yield function


def test_public_functions_are_annotated():
  missing = []
  for path in FILES:
    for function in public_functions(ast.parse(path.read_text())):
      a = function.args
      bare = [
        x.arg
        for x in [*a.posonlyargs, *a.args, *a.kwonlyargs]
        if x.annotation is None and x.arg not in ('self', 'cls')
      ]
      if function.returns is None:
        bare.append('the result')
      if bare:
        missing.append(
          f'{path.relative_to(ROOT)}:{function.lineno} {function.name}: '
          + ', '.join(bare)
        )
  assert not missing, 'without a type:\n' + '\n'.join(missing)


HEAVY = (
  'tensorflow',
  'tensorflow_datasets',
  'torch',
  'torchvision',
  'matplotlib',
  'tensorboardX',
  'sklearn',
  'pandas',
)


def loaded_by(code: str) -> dict:
  result = run_python(
    '-c',
    f"""
import json, sys
{code}
from jax._src import xla_bridge
print(json.dumps({{'modules': sorted({{m.split('.')[0] for m in sys.modules}}),
                  'backends': sorted(xla_bridge._backends)}}))
""",
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_import_vit_jax_does_nothing():
  loaded = loaded_by('import vit_jax')
  assert not set(loaded['modules']) & {*HEAVY, 'orbax', 'grain', 'flax'}
  assert not loaded['backends']


def test_no_module_starts_a_backend_or_loads_what_is_heavy():
  """Importing all modules in one process starts no backend; others are lazy."""
  names = [
    '.'.join(p.with_suffix('').relative_to(ROOT).parts)
    for p in FILES
    if p.stem not in ('__init__', '__main__')
  ]
  loaded = loaded_by(f"""
import importlib
for name in {names}:
  importlib.import_module(name)
""")
  assert not loaded['backends']
  assert not set(loaded['modules']) & set(HEAVY)


def test_the_public_names_exist():
  import vit_jax

  for name in vit_jax.__all__:
    assert getattr(vit_jax, name)
  assert set(vit_jax.__all__) <= set(dir(vit_jax))
  with pytest.raises(AttributeError, match="no attribute 'load_pretraind'"):
    vit_jax.load_pretraind


def test_type_checkers_see_the_public_names():
  """The imports under TYPE_CHECKING are those that happen at first use."""
  import vit_jax

  tree = ast.parse((PACKAGE / '__init__.py').read_text())
  (block,) = (node for node in tree.body if isinstance(node, ast.If))
  imported = {
    alias.name: node.module
    for node in block.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }
  assert imported == vit_jax._MODULES
  assert sorted(imported) == vit_jax.__all__
  assert (PACKAGE / 'py.typed').exists()


def test_no_module_has_the_name_of_a_public_function():
  """`import vit_jax.X` would replace the function by the module."""
  import vit_jax

  modules = {path.stem for path in PACKAGE.iterdir()}
  assert not modules & set(vit_jax.__all__)


def test_slow_tests_are_tests():
  for line in pathlib.Path(ROOT, 'tests/slow.txt').read_text().splitlines():
    if not line.startswith('#'):
      file, _, name = line.partition('::')
      text = pathlib.Path(ROOT, file).read_text()
      assert f'def {name.partition("[")[0]}(' in text, line
