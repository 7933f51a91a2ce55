"""Batches that a thread prepares ahead of time."""

import pytest

from vit_jax.data.prefetch import prefetch


@pytest.mark.parametrize('size', [0, 1, 3])
def test_prefetch(size):
  with prefetch(range(7), lambda x: x * 2, size) as ahead:
    assert list(ahead) == [0, 2, 4, 6, 8, 10, 12]
    assert list(ahead) == []


@pytest.mark.parametrize('size', [0, 2])
def test_an_error_is_raised_when_its_item_is_due(size):
  def broken():
    yield 1
    raise OSError('the disk is gone')

  ahead = prefetch(broken(), size=size)
  assert next(ahead) == 1
  for _ in range(2):  # every later call raises again
    with pytest.raises(OSError, match='the disk is gone'):
      next(ahead)
  ahead.close()
  refused = prefetch([1], lambda x: 1 / 0, size)
  with pytest.raises(ZeroDivisionError):
    next(refused)
  refused.close()


def test_prefetch_closes_while_full():
  class Endless:
    made, closed = 0, False

    def __iter__(self):
      return self

    def __next__(self):
      self.made += 1
      return self.made

    def close(self):
      self.closed = True

  endless = Endless()
  ahead = prefetch(endless, size=2)
  assert next(ahead) == 1
  ahead.close()
  assert endless.closed and endless.made <= 6
  assert not ahead._thread.is_alive()
  with pytest.raises(StopIteration):
    next(ahead)
