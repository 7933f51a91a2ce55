"""Candidates for `tests/test_benchmarks.py`, in processes of their own."""

import time


class _Run:
  def begin(self):
    time.sleep(0.2)

  def __call__(self):
    time.sleep(0.1)


def prepare(settings):
  return _Run(), {'step MB': lambda: settings['megabytes'], '_macs': lambda: 3}


class Clock:
  """Time that moves only in runs."""

  seconds, runs = 0.0, 0


clock = Clock()


def cold_at_first(settings):
  """Runs that take `cold` seconds in the first 60 ms of a turn, then `warm`."""

  class Run:
    begun = 0.0

    def begin(self):
      self.begun = clock.seconds

    def __call__(self):
      is_cold = clock.seconds - self.begun < 0.06
      clock.seconds += settings['cold' if is_cold else 'warm']
      clock.runs += 1

  return Run()


def fail(settings):
  raise ValueError(f'no {settings["megabytes"]} MB')
