"""The log of a run beside what its terminal shows."""

import io
import sys

from vit_jax.parallel.logs import log_to


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_lines_of_its_width_and_the_log_whole_ones(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '40')
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stdout', terminal)
  line = 'step 100/600  epoch 4.55  loss 1.4947  top-1 59.4%'
  with log_to(tmp_path):
    print(f'{line}\nshort')
  shown = terminal.getvalue().splitlines()
  assert shown == [line[:38].rstrip(), f'  {line[38:].strip()}', 'short']
  log = (tmp_path / 'log.txt').read_text().splitlines()
  assert log == [line, 'short']
