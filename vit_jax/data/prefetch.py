"""Prepares the next batches in a thread, so that they are on the device."""

from collections.abc import Callable, Iterator
import queue
import threading
import time
from typing import Any


def prefetch(
  iterator: Iterator, put: Callable[[Any], Any] = lambda x: x, size: int = 2
) -> 'Prefetch':
  """Runs `put(next(iterator))` up to `size` items ahead in a thread.

  Args:
    iterator: yields the items. If it has `close()`, closing the result closes
      it too.
    put: moves an item to the device; called in the thread.
    size: number of items kept ready; 0 works without a thread.
  """
  return Prefetch(iterator, put, size)


class Prefetch:
  """The iterator that `prefetch` returns.

  An exception that the iterator or `put` raises for an item is raised by `next`
  when that item is due.

  Attributes:
    waited: seconds that `next` spent waiting; near zero when input keeps up.
  """

  _END, _ERROR, _ITEM = range(3)

  def __init__(self, iterator: Iterator, put: Callable, size: int):
    self._iterator, self._put = iter(iterator), put
    self._source = iterator
    self._stop = threading.Event()
    # How the sequence ended: (_END or _ERROR, the exception).
    self._last: tuple | None = None
    self.waited = 0.0
    self._thread = None
    if size > 0:
      self._queue = queue.Queue(size)
      self._thread = threading.Thread(
        target=self._run, name='prefetch', daemon=True
      )
      self._thread.start()

  def __iter__(self):
    return self

  def _produce(self) -> tuple[int, Any]:
    try:
      return self._ITEM, self._put(next(self._iterator))
    except StopIteration:
      return self._END, None
    except BaseException as e:  # `__next__` raises it in the caller's thread
      return self._ERROR, e

  def _run(self):
    kind = self._ITEM
    while kind == self._ITEM and not self._stop.is_set():
      kind, value = self._produce()
      while not self._stop.is_set():
        try:
          self._queue.put((kind, value), timeout=0.1)
          break
        except queue.Full:
          continue

  def __next__(self):
    if self._stop.is_set():
      raise StopIteration
    if self._last is None:
      start = time.perf_counter()
      kind, value = self._queue.get() if self._thread else self._produce()
      self.waited += time.perf_counter() - start
      if kind == self._ITEM:
        return value
      self._last = kind, value
    if self._last[0] == self._ERROR:
      raise self._last[1]
    raise StopIteration

  def close(self) -> None:
    """Stops the thread, drops the prepared items and closes the iterator."""
    self._stop.set()
    if self._thread:
      self._thread.join()
      while not self._queue.empty():
        self._queue.get_nowait()
    close = getattr(self._source, 'close', None)
    if close:
      close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()
