"""Files of class names: what is understood, and what is refused."""

import json

import pytest

from vit_jax.data.class_files import read_class_names

NAMES = ['café', 'tench, Tinca tinca', 'dog']


def read(tmp_path, content, encoding='utf-8'):
  path = tmp_path / 'names.txt'
  data = content if isinstance(content, bytes) else content.encode(encoding)
  path.write_bytes(data)
  return read_class_names(path)


@pytest.mark.parametrize(
  'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'latin-1', 'cp1252']
)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\n\n'])
def test_a_name_a_line_in_every_encoding(tmp_path, encoding, end):
  text = ''.join(f'{name} {end}' for name in NAMES)
  assert read(tmp_path, text, encoding) == NAMES


@pytest.mark.parametrize(
  'content',
  [
    json.dumps(NAMES),
    json.dumps([['n1', name] for name in NAMES]),
    json.dumps({str(i): name for i, name in enumerate(NAMES)}),
    json.dumps({str(i): ['n1', name] for i, name in enumerate(NAMES)}),
    json.dumps({name: 2 - i for i, name in enumerate(NAMES[::-1])}),
    json.dumps({name: i for i, name in enumerate(NAMES)}),
    '{' + ',\n '.join(f'{i}: {x!r}' for i, x in enumerate(NAMES)) + '}',
    '{\n' + ''.join(f'{i}: "{x}",\n' for i, x in enumerate(NAMES)) + '}\n',
    ''.join(f'{i}\t{x}\n' for i, x in enumerate(NAMES)),
    'id,name\n' + ''.join(f'{i},"{x}"\n' for i, x in enumerate(NAMES)),
    ''.join(f'{i} {x}\n' for i, x in enumerate(NAMES)),
    ''.join(f'{i},{NAMES[i]}\n' for i in (2, 0, 1)),
  ],
)
def test_numbered_names_get_their_order(tmp_path, content):
  assert read(tmp_path, content) == NAMES


def test_numbers_that_belong_to_the_names_stay(tmp_path):
  lines = ['3 of hearts', '7 of clubs', '1,000 coins']
  assert read(tmp_path, '\n'.join(lines)) == lines
  synsets = ['n01440764 tench', 'n01443537 goldfish']
  assert read(tmp_path, '\n'.join(synsets)) == synsets


@pytest.mark.parametrize(
  'content,message',
  [
    ('', 'no class names'),
    ('1,cat\n2,dog\n', 'numbered 1 to 2, and there are 2 names: number them'),
    ('0,cat\n0,dog\n', 'numbered 0 to 0, and there are 2'),
    ('{"0": "cat", "2": "dog"}', 'numbered 0 to 2'),
    ('{"cat": "dog"}', 'its keys are not the numbers'),
    ('[null]', 'None is no class name'),
    ('["cat"', 'is not JSON'),
    (b'PK\3\4', 'an Excel file'),
  ],
)
def test_refusals(tmp_path, content, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, content)
