"""A short soak."""

import re

import pytest

from tests.helpers import run_python


@pytest.mark.slow
def test_injured_runs_end_as_undisturbed_ones():
  done = run_python(
    '-m', 'tests.faults', '--scenarios', '3', '--seed', '3', timeout=900
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(r'trained to their end +3\n', done.stdout)
  assert re.search(r'lost or doubled +0\n', done.stdout)
  assert re.search(r'problems +0\n', done.stdout)
