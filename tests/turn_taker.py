"""Candidates for `tests/test_benchmarks.py`, in processes of their own."""

import time


class _Run:
  def begin(self):
    time.sleep(0.2)

  def __call__(self):
    time.sleep(0.1)


def prepare(settings):
  return _Run(), {'step MB': lambda: settings['megabytes'], '_macs': lambda: 3}


def fail(settings):
  raise ValueError(f'no {settings["megabytes"]} MB')
