"""A few damaged inputs of all readers."""

import re

import pytest

from tests.helpers import run_python


@pytest.mark.slow
def test_damaged_inputs_are_read_as_before_or_refused():
  done = run_python(
    '-m', 'tests.faults.mutate', '--inputs', '150', '--seed', '7', timeout=900
  )
  assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
  assert re.search(r'(?m)^all +150 ', done.stdout)
  assert re.search(r'(?m)^faults 0$', done.stdout)
