"""The record of a packed example."""

import pytest

from vit_jax.data import records


def test_records():
  for labels in ([], [3], [0, 21842, 7]):
    record = records.encode_record(b'\xff\xd8 data', labels, 'ü/x.jpg')
    assert records.decode_record(record) == (
      b'\xff\xd8 data',
      labels,
      'ü/x.jpg',
    )
  with pytest.raises(ValueError, match='not a record'):
    records.decode_record(b'\x07\x00\x00\x00\x00\x00')
  with pytest.raises(ValueError, match='cut short'):
    records.decode_record(records.encode_record(b'', [1, 2], 'x')[:8])
