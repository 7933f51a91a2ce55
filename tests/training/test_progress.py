"""Speed, MFU, ETA and the live line, on a clock that the test moves."""

import io

import pytest

from vit_jax.training.progress import LiveLine, Progress, progress_bar


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def test_speed_mfu_and_eta(clock):
  progress = Progress(
    100,
    0,
    32,
    flops_per_image=1e9,
    peak_flops=1e12,
    devices=4,
    clock=clock,
  )
  assert progress.img_per_sec is None
  clock.now += 5  # 10 steps in 5 s
  speed = progress.update(10)
  assert speed['img_per_sec'] == pytest.approx(64)
  assert speed['img_per_sec_per_device'] == pytest.approx(16)
  # 64 images x 1 GFLOP a second of 4 x 1,000 GFLOP/s.
  assert speed['mfu'] == pytest.approx(0.016)
  assert speed['eta_seconds'] == pytest.approx(45)
  values = {'loss': 1.25, 'lr': 3e-4, 'train_top1': 0.25}
  line = progress.line(10, 0.5, values, speed)
  assert line == (
    'step 10/100  epoch 0.50  loss 1.2500  top-1 25.0%  lr 0.0003  64 img/s  '
    '16/device  MFU 1.6%  ETA 45s'
  )
  bar = progress.bar(30, line, 1.5)
  assert bar.startswith('[###-------] 30/100  epoch 1.50  loss 1.2500  top-1')
  assert 'top-1 25.0%  ETA 35s  lr' in bar and 'ETA 45s' not in bar
  assert bar.endswith('0.5 s/step')


def test_the_wait_for_input_is_a_share_of_the_time(clock):
  progress = Progress(100, 0, 8, clock=clock)
  for waited, share in ((1.0, 0.25), (1.5, 0.125), (9.0, 1.0)):
    clock.now += 4
    step = progress._last_step + 1
    speed = progress.update(step, waited)
    assert speed['input_wait'] == pytest.approx(share)
  line = progress.line(3, 1.0, {'loss': 1, 'lr': 0}, speed)
  assert line.endswith('input 100%')


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_live_line_is_on_terminals_only(monkeypatch):
  monkeypatch.setenv('COLUMNS', '20')
  shown = []
  for stream in (Terminal(), io.StringIO()):
    line = LiveLine(stream, period=0.0)
    line.show(lambda: 'x' * 50)
    line.clear()
    line.clear()
    shown.append(stream.getvalue())
  assert shown == ['\r' + 'x' * 19 + '\x1b[K' + '\r\x1b[K', '']
  stream = Terminal()
  LiveLine(stream).show(lambda: 'step 1/2  ETA 3s  loss 0.1')
  assert stream.getvalue() == '\rstep 1/2  ETA 3s\x1b[K'


def test_what_is_unknown_is_left_out(clock):
  progress = Progress(20, 0, 8, clock=clock)
  clock.now += 1
  speed = progress.update(4)
  assert 'mfu' not in speed
  line = progress.line(20, 1.0, {'loss': 1, 'lr': 0}, speed)
  assert 'MFU' not in line and 'ETA' not in line and '/device' not in line


def test_pauses_and_compilation_do_not_count(clock):
  progress = Progress(100, 40, 10, clock=clock)
  clock.now += 60  # the first step is compiled
  progress.start(41)
  clock.now += 2
  with progress.paused():
    clock.now += 30
  clock.now += 2
  assert progress.update(45)['img_per_sec'] == pytest.approx(10)
  clock.now += 1  # the pause before does not count again
  assert progress.update(46)['img_per_sec'] == pytest.approx(10)
  assert progress.img_per_sec == pytest.approx(10)


def test_eta_follows_the_speed_slowly(clock):
  progress = Progress(30, 0, 1, clock=clock)
  clock.now += 10
  progress.update(10)  # 1 step a second
  clock.now += 5
  speed = progress.update(20)  # 2 steps a second
  assert speed['img_per_sec'] == pytest.approx(2)
  assert speed['eta_seconds'] == pytest.approx(10 / 1.3)
  assert progress.img_per_sec == pytest.approx(20 / 15)


def test_no_step_since_the_last_update(clock):
  progress = Progress(30, 0, 1, clock=clock)
  progress.start(1)
  speed = progress.update(1)
  assert speed == {}
  line = progress.line(1, 0.1, {'loss': 1, 'lr': 0.1}, speed)
  assert line == 'step 1/30  epoch 0.10  loss 1.0000  lr 0.1'


def test_progress_bar_gives_the_items():
  assert list(progress_bar(iter('abc'), 3, 'letters')) == ['a', 'b', 'c']
