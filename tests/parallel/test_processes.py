"""Several processes on one machine: start, barriers, broadcasts, common end."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from vit_jax.parallel import processes
from vit_jax.parallel.watchdog import session

ROOT = pathlib.Path(__file__).parents[2]
PRELUDE = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from vit_jax.parallel import processes as d
from vit_jax.parallel.watchdog import session
I = int(os.environ['JAX_PROCESS_ID'])
def start(**kwargs):
  d.initialize(timeout=float(os.environ.get('WAIT', 60)), **kwargs)
class Preempted(Exception): pass
"""


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Job:
  """Starts processes of one script; `finish` gives exit codes and outputs."""

  def __init__(self, tmp_path, count, code, start=None, **env):
    port, self.dir = free_port(), tmp_path
    script = tmp_path / 'script.py'
    script.write_text(PRELUDE + textwrap.dedent(code))
    self.processes = {}
    for i in range(count) if start is None else start:
      with open(tmp_path / f'out_{i}', 'w') as out:
        self.processes[i] = subprocess.Popen(
          [sys.executable, str(script)],
          stdout=out,
          stderr=subprocess.STDOUT,
          cwd=ROOT,
          env={
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
            'PYTHONPATH': str(ROOT),
            'WORKDIR': str(tmp_path / 'run'),
            'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
            'JAX_NUM_PROCESSES': str(count),
            'JAX_PROCESS_ID': str(i),
            **env,
          },
        )

  def wait_for(self, i, text, timeout=60):
    deadline = time.monotonic() + timeout
    while text not in self.output(i):
      assert time.monotonic() < deadline, self.output(i)
      time.sleep(0.1)

  def output(self, i):
    own = self.dir / f'run/logs/process_{i}.txt'
    return (self.dir / f'out_{i}').read_text() + (
      own.read_text() if own.exists() else ''
    )

  def finish(self, timeout=60):
    try:
      deadline = time.monotonic() + timeout
      codes = [
        p.wait(max(1, deadline - time.monotonic()))
        for p in self.processes.values()
      ]
    finally:
      for p in self.processes.values():
        p.kill()
    return codes, [self.output(i) for i in self.processes]


def test_plain_machine_stays_alone():
  processes.initialize()
  assert processes.detect() is None
  assert processes.is_first() and jax.process_count() == 1
  assert processes.broadcast_from_first({'a': 1}) == {'a': 1}
  processes.barrier('nothing')
  processes.tick(3)


def test_detects_slurm(monkeypatch):
  for key, value in dict(
    SLURM_JOB_ID='12',
    SLURM_STEP_NODELIST='node[03-04]',
    SLURM_NTASKS='16',
    SLURM_PROCID='9',
    SLURM_LOCALID='1',
    SLURM_STEP_NUM_NODES='2',
  ).items():
    monkeypatch.setenv(key, value)
  address, count, process = processes.detect()
  assert re.fullmatch(r'node03:\d+', address)
  assert (count, process) == (16, 9)
  monkeypatch.setenv('SLURM_NTASKS', '1')  # a job of one process needs nothing
  assert processes.detect() is None


@pytest.mark.parametrize(
  'args, says',
  [
    (('h:1', 2, None), 'give all three'),
    ((None, 2, 1), 'give all three'),
    (('h:1', 2, 2), 'process_id=2'),
    (('h', 2, 0), 'not host:port'),
  ],
)
def test_settings_are_checked(args, says):
  with pytest.raises(ValueError, match=says):
    processes.initialize(*args)


def test_log_of_one_process(tmp_path, capsys):
  with session(tmp_path / 'run'):
    print('hello')
  with session(tmp_path / 'run'):
    print('again')
  print('outside')
  assert (tmp_path / 'run/log.txt').read_text() == 'hello\nagain\n'
  assert capsys.readouterr().out == 'hello\nagain\noutside\n'


def test_two_processes_work_together(tmp_path):
  codes, (zero, one) = Job(
    tmp_path,
    2,
    """
      start()
      assert jax.process_count() == 2 and jax.device_count() == 4
      assert d.is_first() == (I == 0)
      assert d.broadcast_from_first([I, 'x']) == [0, 'x']
      with session(os.environ['WORKDIR'], orderly=(Preempted,)):
        d.barrier('here')
        d.tick(1)
        mesh = jax.make_mesh((4,), ('data',))
        sharding = jax.NamedSharding(mesh, jax.P('data'))
        x = jax.make_array_from_process_local_data(
            sharding, np.arange(2.0) + 2 * I)
        print('total', float(jax.jit(jnp.sum)(x)), 'in', I)
      print('after')
      try:
        with session(os.environ['WORKDIR'], orderly=(Preempted,)):
          raise Preempted('agreed')
      except Preempted:
        sys.exit(3)
      """,
  ).finish()
  assert codes == [3, 3], zero + one
  assert 'total 6.0 in 0' in zero and 'total 6.0 in 1' in one
  assert 'in 0' in (tmp_path / 'run/log.txt').read_text()
  assert 'in 1' in (tmp_path / 'run/logs/process_1.txt').read_text()
  assert 'in 1' not in zero
  assert not list((tmp_path / 'run').glob('.shared*'))


def test_a_missing_process_is_named(tmp_path):
  job = Job(tmp_path, 3, 'start()', start=[0, 1], WAIT='4')
  codes, outputs = job.finish(timeout=40)
  assert codes == [1, 1]
  for output in outputs:
    assert 'TimeoutError: process 2 of 3 did not start within 4 s' in output


def test_a_missing_coordinator_is_named(tmp_path):
  job = Job(tmp_path, 2, 'start()', start=[1], WAIT='2')
  codes, (output,) = job.finish(timeout=30)
  assert codes == [1]
  assert 'process 0 did not answer at 127.0.0.1' in output


def test_processes_that_disagree(tmp_path):
  job = Job(
    tmp_path,
    2,
    """
      d.initialize(num_processes=2 + I, timeout=20)
      """,
  )
  codes, (zero, one) = job.finish()
  assert codes == [1, 1]
  assert 'says it is one of 3, process 0' in zero and 'expects 2' in one


def test_barrier_names_who_is_missing(tmp_path):
  codes, (zero, one) = Job(
    tmp_path,
    2,
    """
      start()
      if I == 1:
        time.sleep(2.5)
        os._exit(0)
      try:
        d.barrier('the checkpoint', timeout=1)
      except TimeoutError as e:
        print('caught', e, flush=True)
      time.sleep(3)
      os._exit(0)
      """,
  ).finish()
  assert codes == [0, 0], zero + one
  assert re.search(
    r"caught process 1 \(\S+\) did not reach 'the checkpoint' "
    'within 1 s',
    zero,
  )


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
  codes, outputs = Job(
    tmp_path,
    2,
    """
      start()
      try:
        with session(os.environ['WORKDIR'] + str(I)):
          print('not reached')
      except ValueError as e:
        print('refused:', e)
        sys.exit(1)
      """,
  ).finish()
  assert codes == [1, 1]
  for output in outputs:
    assert re.search(
      r'refused: workdir .* is not shared: process 1 \(\S+\)', output
    ), output
    assert 'not reached' not in output


# Ways in which one process can end while the other waits in a collective.
ENDINGS = {
  'raises': (
    "raise ValueError('a bad image')",
    0,
    r'process 1 \(\S+\) failed: ValueError: a bad image',
  ),
  'raises_in_0': (
    "raise ValueError('a bad image')",
    1,
    r'process 0 \(\S+\) failed: ValueError: a bad image',
  ),
  'killed': (
    'os.kill(os.getpid(), 9)',
    0,
    r'process 1 \(\S+\) is gone: no heartbeat for 3 s',
  ),
  'killed_0': (
    'os.kill(os.getpid(), 9)',
    1,
    r'process 0 \(\S+\), the coordinator, is gone|'
    r'UNAVAILABLE|coordination service',
  ),
  'stopped': (
    'os.kill(os.getpid(), 19)',
    0,
    r'process 1 \(\S+\) is gone: no heartbeat for 3 s',
  ),
  'stuck': (
    'time.sleep(100)',
    0,
    r'no progress for 4 s: process 1 \(\S+\) stands at step 7, '
    'the first at step 9',
  ),
}


@pytest.mark.parametrize(
  'ending',
  [
    pytest.param(
      e,
      marks=[pytest.mark.slow]
      if e in ('raises_in_0', 'killed_0', 'stopped')
      else [],
    )
    for e in ENDINGS
  ],
)
def test_the_end_of_one_is_the_end_of_all(tmp_path, ending):
  what, survivor, says = ENDINGS[ending]
  start = time.monotonic()
  job = Job(
    tmp_path,
    2,
    f"""
      start(lost_after=3, stuck_after=4)
      with session(os.environ['WORKDIR']):
        print('ready', flush=True)
        d.barrier('start')
        d.tick(7)
        time.sleep(0.5)
        if I != {survivor}:
          {what}
        d.tick(9)
        x = jax.make_array_from_process_local_data(
            jax.NamedSharding(jax.make_mesh((4,), ('data',)), jax.P('data')),
            np.ones(2))
        print(float(jax.jit(jnp.sum)(x)))
      """,
  )
  code = job.processes[survivor].wait(timeout=50)
  for p in job.processes.values():
    if ending == 'stopped':
      p.send_signal(signal.SIGKILL)
  codes, outputs = job.finish(timeout=20)
  assert code == 1 or (ending == 'killed_0' and code != 0)
  assert 0 not in codes
  assert re.search(says, outputs[survivor]), outputs[survivor]
  assert time.monotonic() - start < 45
