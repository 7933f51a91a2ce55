"""Single records of ArrayRecord files, as they are read from a bucket."""

from array_record.python import array_record_module
import pytest

from vit_jax.data.shard_reader import RemoteShard, ShardError


def write(path, records, options='group_size:1,uncompressed'):
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()
  return path


@pytest.mark.parametrize(
  'sizes',
  [[1], [0, 5, 0], range(300), [65_536] * 3, [70_000, 1, 200_000], [5046] * 40],
  ids=['one', 'empty', 'many', 'blocks', 'large', 'equal'],
)
def test_records_are_those_that_were_written(tmp_path, sizes):
  """Also where a record or its header runs through the header of a block."""
  records = [bytes([i % 251]) * n for i, n in enumerate(sizes)]
  shard = RemoteShard(write(tmp_path / 'x.array_record', records))
  assert list(shard) == records


def test_a_record_is_read_alone(tmp_path, monkeypatch):
  records = [bytes([i]) * 5000 for i in range(200)]
  shard = RemoteShard(write(tmp_path / 'x.array_record', records))
  from vit_jax import files

  ranges, read_range = [], files.read_range

  def read(path, start, stop):
    ranges.append(stop - start)
    return read_range(path, start, stop)

  monkeypatch.setattr(files, 'read_range', read)
  assert shard[117] == records[117]
  assert len(ranges) == 1 and ranges[0] < 5100


@pytest.mark.parametrize(
  'options, reason',
  [
    ('group_size:10,uncompressed', 'groups of several records'),
    ('group_size:1,zstd', 'is compressed'),
    (None, 'too short|is compressed|not that of ArrayRecord|past its end'),
  ],
)
def test_other_files_are_refused(tmp_path, options, reason):
  path = tmp_path / 'x.array_record'
  if options:
    write(path, [b'x' * 100] * 30, options)
    with pytest.raises(ShardError, match=reason):
      RemoteShard(path)
    return
  for data in (b'', b'x' * 100, b'x' * 200_000, b'\0' * 131_072):
    path.write_bytes(data)
    with pytest.raises(ShardError, match=reason):
      RemoteShard(path)
