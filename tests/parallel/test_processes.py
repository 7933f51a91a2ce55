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
from vit_jax.parallel.session import session

ROOT = pathlib.Path(__file__).parents[2]
PRELUDE = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from vit_jax.parallel import processes as d
from vit_jax.parallel.session import session
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
    (('h:1', 2, None), 'give process_id=... too'),
    ((None, 2, 1), 'give coordinator=... too'),
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


def test_barrier_names_who_is_missing(tmp_path):
  codes, (zero, one) = Job(
    tmp_path,
    2,
    """
      start()
      if I == 1:
        time.sleep(2.5)
        sys.exit(0)
      try:
        d.barrier('the checkpoint', timeout=1)
      except TimeoutError as e:
        print('caught', e, flush=True)
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
    assert re.search(r'workdir .* is not shared: process 1 \(\S+\)', output), (
      output
    )
    assert 'not reached' not in output


# Ways in which one process can end while the others wait in a collective: its
# code, its number, and what the logs of the others say.
ENDINGS = {
  'raises': (
    "raise ValueError('a bad image')",
    1,
    r'process 1 \(\S+\) failed: ValueError: a bad image',
  ),
  'raises_in_0': (
    "raise ValueError('a bad image')",
    0,
    r'process 0 \(\S+\) failed: ValueError: a bad image',
  ),
  'out_of_memory': (
    "raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GB')",
    1,
    r'process 1 \(\S+\) failed: JaxRuntimeError: RESOURCE_EXHAUSTED: 9 GB',
  ),
  'killed': (
    'os.kill(os.getpid(), 9)',
    1,
    r'process 1 \(\S+\) is gone: its connection closed',
  ),
  'killed_0': (
    'os.kill(os.getpid(), 9)',
    0,
    r'process 0 \(\S+\) is gone: its connection closed',
  ),
  'exits': (
    'sys.exit(0)',
    1,
    r'process 1 \(\S+\) failed: SystemExit: 0',
  ),
  'exits_at_once': (
    'os._exit(0)',
    0,
    r'process 0 \(\S+\) is gone: its connection closed',
  ),
  'stopped': (
    'os.kill(os.getpid(), 19)',
    1,
    r'process 1 \(\S+\) is gone: no heartbeat for 3 s',
  ),
  'stopped_0': (
    'os.kill(os.getpid(), 19)',
    0,
    r'process 0 \(\S+\) is gone: no heartbeat for 3 s',
  ),
  'stuck': (
    'time.sleep(100)',
    1,
    r'no progress for 4 s: process 1 \(\S+\) stands at step 7, '
    'the first at step 9',
  ),
}


def end_of_one(tmp_path, ending, count):
  """Runs a job in which one process ends; its exit codes and outputs."""
  what, who, _ = ENDINGS[ending]
  job = Job(
    tmp_path,
    count,
    f"""
      start(lost_after=3, stuck_after=4)
      with session(os.environ['WORKDIR']):
        print('ready', flush=True)
        d.barrier('start')
        d.tick(7)
        time.sleep(0.5)
        if I == {who}:
          {what}
        d.tick(9)
        x = jax.make_array_from_process_local_data(
            jax.NamedSharding(
                jax.make_mesh((2 * {count},), ('data',)), jax.P('data')),
            np.ones(2))
        print(float(jax.jit(jnp.sum)(x)))
      """,
  )
  try:
    for i, p in job.processes.items():
      if i != who:
        p.wait(timeout=90)
    if ending.startswith('stopped'):  # it learns that the others have gone
      job.processes[who].send_signal(signal.SIGCONT)
    return job.finish(timeout=30)
  finally:
    for p in job.processes.values():
      p.kill()


@pytest.mark.parametrize(
  'ending',
  [
    pytest.param(
      e, marks=[] if e in ('raises', 'killed_0') else [pytest.mark.slow]
    )
    for e in ENDINGS
  ],
)
def test_the_end_of_one_is_the_end_of_all(tmp_path, ending):
  """Exit code 1, and the log of the other process names the first."""
  _, who, says = ENDINGS[ending]
  codes, outputs = end_of_one(tmp_path, ending, 2)
  assert codes[1 - who] == 1, outputs[1 - who]
  assert re.search(says, outputs[1 - who]), outputs[1 - who]
  assert 'Check failure stack trace' not in outputs[1 - who]
  expected = {'killed': -9, 'killed_0': -9, 'exits_at_once': 0}
  assert codes[who] == expected.get(ending, 1), outputs[who]


@pytest.mark.slow
@pytest.mark.parametrize('ending', ['killed', 'killed_0', 'raises_in_0'])
def test_all_of_four_name_the_first_that_ends(tmp_path, ending):
  _, who, says = ENDINGS[ending]
  codes, outputs = end_of_one(tmp_path, ending, 4)
  for i in range(4):
    if i != who:
      assert codes[i] == 1, outputs[i]
      assert re.search(says, outputs[i]), outputs[i]
      assert 'Check failure stack trace' not in outputs[i]


# What a process does just before SIGTERM ends it.
MOMENTS = {
  'process 0, when the first one has come': (0, 'rendezvous', '_examine'),
  'process 1, when it has come': (1, 'rendezvous', 'connect'),
  'process 0, when JAX starts': (0, 'jax.distributed', 'initialize'),
  'process 1, when JAX starts': (1, 'jax.distributed', 'initialize'),
}


@pytest.mark.slow
@pytest.mark.parametrize('moment', MOMENTS)
def test_sigterm_during_the_joint_start(tmp_path, moment):
  who, module, function = MOMENTS[moment]
  codes, outputs = Job(
    tmp_path,
    2,
    f"""
      from vit_jax.parallel import rendezvous
      if I == {who}:
        real = {module}.{function}
        def until_it_ends(*args, **kwargs):
          if {module} is rendezvous:
            real(*args, **kwargs)
          os.kill(os.getpid(), 15)
          time.sleep(60)
        {module}.{function} = until_it_ends
      start()
      time.sleep(60)
      """,
  ).finish(timeout=100)
  assert codes[who] == -15
  output = outputs[1 - who]
  assert codes[1 - who] == 1, output
  says = rf'process {who} .*(ended while the job started|is gone)'
  assert re.search(says, output), output
  assert 'Check failure stack trace' not in output
