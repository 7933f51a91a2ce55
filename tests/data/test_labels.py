"""Files of labels: what is understood, and what is refused."""

import json

import pytest

from tests.data.helpers import encode, make_image
from vit_jax.data import pack
from vit_jax.data.labels import read_labels


def labels_of(tmp_path, text, name='labels.csv', encoding='utf-8', **options):
  path = tmp_path / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
  return read_labels(path, **options)


def test_numbers_are_numbers_only_as_a_whole_column(tmp_path):
  read = lambda cells: labels_of(
    tmp_path, ''.join(f'{i}.jpg,{c}\n' for i, c in enumerate(cells))
  )
  numbers = read(['1', '0', '3'])
  assert numbers.entries['2.jpg'] == [3]
  assert 'column 2: class numbers 0 to 3' in numbers.summary
  assert '1 from 0 on have no image' in numbers.summary
  names = read(['01', '1', '007'])
  assert list(names.entries.values()) == [['01'], ['1'], ['007']]
  assert "3 class names, not numbers because of '007'" in names.summary
  assert read(['1', 'cat']).entries['0.jpg'] == ['1']


@pytest.mark.parametrize(
  'text,summary',
  [
    ('file,cat,dog\n0.jpg,1,0\n1.jpg,0,1\n', 'one-hot over 2 columns'),
    ('id,cat,dog\n0,1.0,0.0\n1,0.0,1.0\n', 'one-hot over 2 columns'),
  ],
)
def test_one_hot(tmp_path, text, summary):
  labels = labels_of(tmp_path, text)
  assert summary in labels.summary and not labels.multi_label
  assert list(labels.entries.values()) == [[0], [1]]
  assert labels.class_names == ['cat', 'dog']
  both = labels_of(tmp_path, text + '2.jpg,1,1\n')
  assert both.multi_label and 'several or no classes' in both.summary


def test_one_hot_is_packed_as_single_labels(tmp_path):
  (tmp_path / 'in').mkdir()
  for i in range(3):
    (tmp_path / 'in' / f'{i}.jpg').write_bytes(encode(make_image(i)))
  file = tmp_path / 'labels.csv'
  file.write_text('file,zebra,ape,no\n0.jpg,1,0,0\n1.jpg,0,1,0\n2.jpg,1,0,0\n')
  meta = pack.pack(tmp_path / 'in', tmp_path / 'out', labels_file=file)['train']
  assert meta['class_names'] == ['zebra', 'ape', 'no']  # as the columns stand
  assert not meta['multi_label'] and meta['examples_per_class'] == [2, 1, 0]


@pytest.mark.parametrize(
  'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'latin-1']
)
@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('title', ['', 'file{}label\n'])
def test_encodings_and_delimiters(tmp_path, encoding, delimiter, title):
  rows = [('0.jpg', 'blé'), ('1.jpg', 'riz'), ('2.jpg', 'blé')]
  text = title.format(delimiter) + ''.join(
    f'{delimiter.join(row)}\r\n' for row in rows
  )
  labels = labels_of(tmp_path, text, encoding=encoding)
  assert list(labels.entries) == ['0.jpg', '1.jpg', '2.jpg']
  assert [x for (x,) in labels.entries.values()] == ['blé', 'riz', 'blé']
  assert 'column 2: 2 class names' in labels.summary


def test_several_labels_in_one_or_several_columns(tmp_path):
  for text in ('0.jpg,a;b\n1.jpg,b\n', '0.jpg,a,b\n1.jpg,b\n'):
    labels = labels_of(tmp_path, text)
    assert labels.multi_label
    assert labels.entries == {'0.jpg': ['a', 'b'], '1.jpg': ['b']}


@pytest.mark.parametrize(
  'value',
  [
    {'0.jpg': 'cat', '1.jpg': 'dog'},
    [{'file': '0.jpg', 'label': 'cat'}, {'file': '1.jpg', 'label': 'dog'}],
    {'0.jpg': {'label': 'cat', 'w': 3}, '1.jpg': {'label': 'dog', 'w': 4}},
  ],
)
def test_json(tmp_path, value):
  labels = labels_of(tmp_path, json.dumps(value), 'labels.json')
  assert labels.entries == {'0.jpg': ['cat'], '1.jpg': ['dog']}
  assert not labels.multi_label
  if isinstance(value, list):
    lines = '\n'.join(map(json.dumps, value))
    assert labels_of(tmp_path, lines, 'l.jsonl').entries == labels.entries


def test_declared_columns(tmp_path):
  text = 'nr,photo,width,species\n0,x.jpg,32,rose\n1,y.jpg,64,oak\n'
  read = labels_of(tmp_path, text)
  assert read.entries == {'x.jpg': ['rose'], 'y.jpg': ['oak']}
  assert 'not used: nr, width' in read.summary
  wide = labels_of(tmp_path, text, label_column='width', kind='names')
  assert wide.entries['x.jpg'] == ['32']
  wide = labels_of(tmp_path, text, file_column='2', label_column='3')
  assert wide.entries['y.jpg'] == [64]
  with pytest.raises(ValueError, match='column 2 has the files and cannot'):
    labels_of(tmp_path, text, label_column='photo')
  for name in ('size', '²', '5', '0'):
    with pytest.raises(ValueError, match=f"no column '{name}'; there are nr"):
      labels_of(tmp_path, text, label_column=name)


@pytest.mark.parametrize(
  'text,entries,summary',
  [
    # Labels that a data frame wrote as floats, because one was missing once.
    ('file,label\nx.png,1.0\ny.png,10.0\n', [1, 10], 'class numbers 1 to 10'),
    ('x.png,1\ny.png,cat\n', ['1', 'cat'], "not numbers because of 'cat'"),
    ('x.png,Cat\ny.png,cat\n', ['Cat', 'cat'], 'differ only in case'),
    ('"x,1.png";a\n"y,2.png";b\n', ['a', 'b'], 'by semicolons'),
    ('sep=;\nfile;label\nx.png;a\ny.png;b\n', ['a', 'b'], 'by semicolons'),
    ('file,label\nx.png,"a\nb"\ny.png,c\n', ['a\nb', 'c'], '2 class names'),
    ('file,label,\nx.png,a,\ny.png,b,\n', ['a', 'b'], 'not used: untitled'),
    ('x.png,\u20ac\ny.png,b\n'.encode('cp1252'), ['\u20ac', 'b'], 'Windows'),
    ('x.png,é\ny.png,b\n'.encode('utf-32'), ['é', 'b'], 'UTF-32'),
    (b'file,label\rx.png,a\ry.png,b\r', ['a', 'b'], '2 class names'),
    # A class whose name has blanks, where blanks separate the columns.
    ('x.png a dog\ny.png cat\n', ['a dog', 'cat'], '2 class names'),
    ('file label\nx.png a dog\ny.png cat\n', ['a dog', 'cat'], '2 class'),
    ('x 1.png 3\ny.png 4\n', [3, 4], 'class numbers 3 to 4'),
    # Comments, and the titles that numpy writes as one.
    ('# labels\nx.png,a\ny.png,b\n', ['a', 'b'], 'by commas'),
    ('# file,w,label\nx.png,8,a\ny.png,9,b\n', ['a', 'b'], 'not used: w'),
    # Titles that no list has, of files without a suffix.
    ('Bild,Art\nx,1\ny,2\n', [1, 2], 'class numbers 1 to 2'),
    ('x.png,1.0\ny.png,2\n', [1, 2], 'class numbers 1 to 2'),
    ('x.png,a;a\ny.png,b\n', ['a', 'b'], '2 class names'),
    ('x.png,cat\ny.png,cat\u200b\n', ['cat', 'cat\u200b'], 'only in case'),
    ('x.png,a|b\ny.png,c\n', ['a|b', 'c'], "'a|b' may be several labels"),
    ('x.png;a,b\ny.png;b\n', ['a,b', 'b'], "'a,b' may be several labels"),
    ('x.png,[1 2]\ny.png,b\n', ['[1 2]', 'b'], 'may be several labels'),
    # A list of 0 and 1 is a column for each class, as in a table.
    ('{"x.png": [0, 1], "y.png": [1, 0]}', [1, 0], 'one-hot over 2 columns'),
    ('{"x.png": [true, false], "y.png": [false, true]}', [0, 1], 'one-hot'),
    ('x.png 0 1\ny.png 1 0\n', [1, 0], 'one-hot over 2 columns'),
  ],
)
def test_odd_tables(tmp_path, text, entries, summary):
  labels = labels_of(tmp_path, text)
  assert [x for (x,) in labels.entries.values()] == entries
  assert summary in labels.summary


def test_addresses_stand_for_the_files_that_were_downloaded(tmp_path):
  text = 'url,label\nhttps://h/p/x%201.png?w=3#a,a\nhttps://h/y.png,b\n'
  labels = labels_of(tmp_path, text)
  assert [k.split('/')[-1] for k in labels.entries] == ['x 1.png', 'y.png']


@pytest.mark.parametrize(
  'text,message',
  [
    ('', 'is empty'),
    ('file,label\n', 'has no labels'),
    ('file,label\nx.png,a,b\ny.png,b\n', 'line 2 has more cells than'),
    ('file,label\nx.png,a\ny.png,NaN\n', 'for a missing one.*names'),
    ('x.png,1\ny.png,nan\n', 'for a missing one'),
    ('file,label,label\nx.png,a,b\n', "2 columns are called 'label'"),
    ('file,cat,cat\nx.png,0,1\ny.png,1,0\n', "2 columns are called 'cat'"),
    ('file,label,split\nx.png,a,train\ny.png,b,test\n', 'would be mixed'),
    ('file,label,is_valid\nx.png,a,True\ny.png,b,False\n', 'would be mixed'),
    ('file,label,split\nx.png,a,train\ny.png,b,dev\n', 'would be mixed'),
    ('file,label\nx.png,a\ny.png,?\n', 'for a missing one'),
    ('file,label\nx.png,"a\ny.png,b\n', 'A quote is not closed'),
    ('file,w,cat,dog\nx.png,8,1,0\n', 'name all that have 0 and 1'),
    ('cat\ndog\n', 'it has one column: it needs that of the files'),
    ('label\ncat\ndog\n', 'it has one column'),
    (b'PK\3\4' + bytes(9), 'an Excel file or an archive: save it as CSV'),
    ('{"x.png": NaN, "y.png": 1}', 'the label nan is neither'),
    ('x.png,a\0\n', 'NUL characters'),
    ('{"x.png": "a", "x.png": "b"}', "'x.png' occurs twice, with"),
    ('file,a,b\n0.jpg,x,y\n', 'which of the columns file, a, b'),
    ('0.jpg,1\n0.jpg,2\n', "lines 1 and 2 give '0.jpg' different labels"),
    ('0.jpg,1\n1.jpg,\n', "line 2 gives '1.jpg' no label"),
    ('0.jpg,-1\n1.jpg,2\n', 'class number -1 is not in'),
    ('0.jpg,1000000000000\n', 'class number 1000000000000 is not in'),
    ('[1, 2]', 'must be an object'),
    ('[' * 100_000, 'nested too deeply'),
    ('{"a": 1}\n' + '{"a":' * 100_000, 'is not JSON'),
    ('{"0.jpg": 0.5}', 'the label 0.5 is neither'),
    ('{"0.jpg": true}', 'the label True is neither'),
    ('{"0.jpg": "1", "1.jpg": 1}', 'as a number and as a name'),
    ('{"0.jpg": [["a"]]}', 'is neither'),
    ('{"images": [{"id": 1}], "annotations": []}', 'is neither'),
  ],
)
def test_refusals_name_the_place(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    labels_of(tmp_path, text)


def test_one_entry_for_two_images_is_refused(tmp_path, caplog):
  for name in ('a/1.jpg', 'b/1.jpg'):
    (tmp_path / 'in' / name).parent.mkdir(parents=True)
    (tmp_path / 'in' / name).write_bytes(encode(make_image(0)))
  file = tmp_path / 'labels.csv'
  file.write_text('1.jpg,x\n')
  with pytest.raises(ValueError, match="one entry, '1.jpg', for several"):
    pack.pack(tmp_path / 'in', tmp_path / 'out', labels_file=file)
  file.write_text('in/a/1.jpg,x\na/1.jpg,x\nb\\1.jpg,y\nc.jpg,z\n')
  meta = pack.pack(tmp_path / 'in', tmp_path / 'out', labels_file=file)
  assert meta['train']['class_names'] == ['x', 'y']
  assert '2 of 4 entries of the labels file name no image' in caplog.text
