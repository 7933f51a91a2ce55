"""The launch scripts with a fake gcloud, kubectl and sbatch.

The fakes record their calls. The fake gcloud keeps the state of a TPU in a
file. Its workers are directories, in which `ssh --command` runs the command
with a fake `python` instead of the training. The tests thus run worker.sh
(start, status, stop), and do not only compare what is printed.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml

from vit_jax.aot import chips

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), LAUNCH / 'slurm.sbatch']

GCLOUD = r"""
import os, pathlib, subprocess, sys
fake = pathlib.Path(os.environ['FAKE'])
args = sys.argv[1:]
with open(fake / 'calls', 'a') as f:
  f.write('gcloud ' + ' '.join(args) + '\n')
state = fake / 'state'
failures = fake / f'fail_{args[3]}'
if failures.exists():  # what the next calls of this verb answer
  first, *rest = failures.read_text().split('\n')
  failures.write_text('\n'.join(rest)) if rest else failures.unlink()
  if first == 'HANG':
    import time
    time.sleep(60)
  if first.startswith('SAY '):
    sys.exit(print(first[4:]))
  if first:
    sys.exit(first)
flags = dict(a[2:].split('=', 1) for a in args if a[:2] == '--' and '=' in a)
verb = args[3]
if verb == 'create':
  if state.exists():
    sys.exit('ALREADY_EXISTS')
  state.write_text('READY')
  for i in range(2):  # workers: new machines
    (fake / f'worker_{i}' / 'vit_jax_venv/bin').mkdir(parents=True)
    python = fake / f'worker_{i}' / 'vit_jax_venv/bin/python'
    python.symlink_to(fake / 'python')
elif verb == 'delete':
  state.unlink()
  for i in range(2):
    home = fake / f'worker_{i}'
    home.rename(fake / f'gone_{len(list(fake.glob("gone_*")))}')
elif verb == 'list':
  now = state.read_text() if state.exists() else ''
  if args[2] == 'queued-resources':
    now = {'READY': 'ACTIVE', 'PREEMPTED': 'SUSPENDED'}.get(now, now)
  print(now)
elif verb in ('ssh', 'scp'):
  if state.read_text() != 'READY':
    sys.exit('connection refused')
  which = range(2) if flags['worker'] == 'all' else [int(flags['worker'])]
  for i in which:
    home = fake / f'worker_{i}'
    if verb == 'scp':
      target = args[5].split(':')[1]
      (home / target).write_bytes(pathlib.Path(args[4]).read_bytes())
    else:
      env = dict(os.environ, HOME=str(home), WORKER=str(i))
      code = subprocess.call(['bash', '-c', flags['command']], cwd=home,
                             env=env)
      if code:
        sys.exit(code)
"""

# A fake of pip, of the check and of the training by `-m vit_jax.main`.
PYTHON = r"""#!/usr/bin/env bash
echo "python $WORKER $*" >>"$FAKE/calls"
[[ $2 == vit_jax.main ]] || exit 0
trap 'echo saved; exit 3' TERM
run=$(($(cat "$FAKE/runs_$WORKER" 2>/dev/null || echo 0) + 1))
echo "$run" >"$FAKE/runs_$WORKER"
echo "step 1 of run $run, token ${VIT_JAX_JOB_TOKEN:-none}"
plan=($PLAN)
case ${plan[$((run - 1))]} in
  preempt) sleep 0.3; echo PREEMPTED >"$FAKE/state.new"
           mv "$FAKE/state.new" "$FAKE/state"; kill -KILL 0 ;;
  saved) exit 3 ;;
  fail) echo 'ValueError: bad value'; exit 1 ;;
  forever) for _ in $(seq 100); do sleep 0.1; done ;;
  done) exit 0 ;;
esac
"""


@pytest.fixture
def fake(tmp_path):
  """A directory of fake commands first on PATH; returns a runner."""
  bin_dir = tmp_path / 'bin'
  bin_dir.mkdir()
  # A real `git archive` of a small tree stands for the repository.
  repo = tmp_path / 'repo'
  shutil.copytree(LAUNCH, repo / 'launch')
  git = ['git', '-c', 'user.name=t', '-c', 'user.email=t@t', '-C', str(repo)]
  for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'x']):
    subprocess.run([*git, *command], check=True)

  def command(name, text):
    path = bin_dir / name
    path.write_text(text)
    path.chmod(0o755)

  command('gcloud', f'#!{sys.executable}\n{GCLOUD}')
  record = '#!/usr/bin/env bash\necho "{0} $*" >>"$FAKE/calls"\n'
  command('kubectl', record.format('kubectl') + 'cat >"$FAKE/manifest"\n')
  command('sbatch', record.format('sbatch'))
  command('scontrol', record.format('scontrol'))
  command('srun', record.format('srun') + 'exit "${SRUN_CODE:-0}"\n')
  (tmp_path / 'python').write_text(PYTHON)
  (tmp_path / 'python').chmod(0o755)

  env = {
    'PATH': f'{bin_dir}:{os.environ["PATH"]}',
    'HOME': str(tmp_path),
    'FAKE': str(tmp_path),
    'TPU_NAME': 'slice',
    'ZONE': 'europe-west4-a',
    'POLL': '0.2',
    'GRACE': '5',
    'PLAN': 'done',
  }

  def run(script, *args, check=True, **more):
    result = subprocess.run(
      ['bash', str(repo / 'launch' / script), *args],
      env={**env, **more},
      capture_output=True,
      text=True,
      timeout=60,
    )
    if check:
      assert result.returncode == 0, result.stdout + result.stderr
    return result

  def calls():
    path = tmp_path / 'calls'
    return path.read_text().splitlines() if path.exists() else []

  def fail(verb, *messages):
    """What gcloud answers the next calls of a verb; '' is what it should."""
    (tmp_path / f'fail_{verb}').write_text('\n'.join(messages))

  run.calls, run.dir, run.env, run.repo = calls, tmp_path, env, repo
  run.fail, run.git = fail, git
  return run


def verbs(calls):
  """The gcloud verbs in order, without the polling."""
  used = [line.split()[4] for line in calls if line.startswith('gcloud')]
  return [verb for verb in used if verb in ('create', 'delete', 'scp')]


def test_shellcheck():
  shellcheck = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=os.path.dirname(sys.executable)
  )
  if shellcheck is None:
    pytest.skip('shellcheck is not installed (extra dev)')
  subprocess.run([shellcheck, *map(str, SCRIPTS)], check=True)


def test_the_python_of_the_worker_imports_what_exists():
  text = (LAUNCH / 'worker.sh').read_text()
  imports = re.findall(r'(?m)^from (vit_jax\S*) import (\w+)$', text)
  assert imports
  for package, module in imports:
    assert importlib.util.find_spec(f'{package}.{module}')


@pytest.mark.parametrize('script', [s.name for s in SCRIPTS])
def test_header_says_what_it_is(script):
  text = (LAUNCH / script).read_text()
  assert text.startswith(('#!/usr/bin/env bash\n', '# Shared'))
  assert max(map(len, text.splitlines())) <= 80
  if script not in ('common.sh', 'worker.sh', 'slurm.sbatch'):
    assert 'DRY_RUN=1' in text.split('source ')[0]


@pytest.mark.parametrize(
  'settings, expected',
  [
    (
      {'ACCELERATOR': 'v3-32', 'SPOT': '1'},
      'gcloud compute tpus tpu-vm create slice --version=tpu-ubuntu2204-base '
      '--accelerator-type=v3-32 --spot --zone=europe-west4-a',
    ),
    (
      {'ACCELERATOR': 'v5litepod-64', 'QUEUED': '1', 'PROJECT': 'p'},
      'gcloud compute tpus queued-resources create slice --node-id=slice '
      '--runtime-version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-64 '
      '--zone=europe-west4-a --project=p',
    ),
    (
      {
        'ACCELERATOR': 'v6e-8',
        'RUNTIME': 'mine',
        'NETWORK': 'n',
        'INTERNAL_IP': '1',
      },
      'gcloud compute tpus tpu-vm create slice --version=mine '
      '--accelerator-type=v6e-8 --network=n --internal-ips '
      '--zone=europe-west4-a',
    ),
  ],
)
def test_create_dry_run(fake, settings, expected):
  out = fake('tpu_create.sh', DRY_RUN='1', **settings).stdout
  assert out.splitlines() == [expected]
  assert not fake.calls()


def test_dry_runs_run_nothing(fake):
  flags = ['--config=configs/x.py', '--workdir=gs://b/a dir', "--note=it's"]
  for script in (
    'tpu_setup.sh',
    'tpu_run.sh',
    'tpu_logs.sh',
    'tpu_status.sh',
    'tpu_stop.sh',
    'tpu_retry.sh',
  ):
    out = fake(script, *flags, DRY_RUN='1', DELETE='1').stdout
    assert 'gcloud compute tpus tpu-vm' in out
    # The printed commands are valid shell.
    subprocess.run(['bash', '-n'], input=out, text=True, check=True)
  assert not fake.calls()


def test_settings_are_checked(fake):
  result = fake('tpu_create.sh', check=False, ZONE='')
  assert result.returncode == 1
  assert 'ZONE is not set' in result.stderr
  result = fake('tpu_create.sh', check=False, ACCELERATOR='v9-8')
  assert result.returncode == 1
  assert 'set RUNTIME' in result.stderr
  assert 'no flags' in fake('tpu_run.sh', check=False).stderr


def test_run_status_stop(fake):
  """Create, set up, start on all workers, see it run, stop it: exit 3."""
  fake('tpu_create.sh')
  fake('tpu_setup.sh')
  setup = [c for c in fake.calls() if c.startswith('python')]
  assert sum('-m pip install --quiet -e' in c for c in setup) == 2
  assert 'jax.default_backend' in (fake.dir / 'calls').read_text()
  fake(
    'tpu_run.sh', '--config=c.py', '--workdir=a b', FOLLOW='0', PLAN='forever'
  )
  out = fake('tpu_status.sh').stdout
  assert 'slice READY' in out and out.count(' running ') == 2
  # A second start is refused while the first runs.
  again = fake('tpu_run.sh', '--config=c.py', FOLLOW='0', check=False)
  assert again.returncode != 0 and 'already running' in again.stderr
  started = [c for c in fake.calls() if '-m vit_jax.main' in c]
  assert sorted(started) == [
    f'python {i} -m vit_jax.main --config=c.py --workdir=a b' for i in range(2)
  ]
  out = fake('tpu_stop.sh').stdout
  assert out.count('exited 3') == 2
  logs = [fake('tpu_logs.sh', WORKER=w).stdout for w in '01']
  assert all('saved' in log for log in logs)
  tokens = {re.search('token ([0-9a-f]{32})$', log, re.M)[1] for log in logs}
  assert len(tokens) == 1  # drawn once, for both workers
  fake('tpu_stop.sh', DELETE='1')
  assert 'ABSENT' in fake('tpu_status.sh').stdout


@pytest.mark.parametrize('queued', ['0', '1'])
def test_retry_recreates_after_a_preemption(fake, queued):
  flags = ('--config=c.py', '--workdir=gs://b/w')
  result = fake(
    'tpu_retry.sh',
    *flags,
    SPOT='1',
    QUEUED=queued,
    PLAN='preempt saved done',
    LOST='99',
  )
  assert verbs(fake.calls()) == [
    'create',
    'scp',
    'scp',  # set up, run
    'delete',
    'create',
    'scp',
    'scp',  # preempted: a new slice
    'scp',  # exit 3: started again on the same slice
  ]
  assert 'restart 2' in result.stderr and 'restart 3' not in result.stderr
  if queued == '1':
    assert any(
      'queued-resources delete slice --force --quiet' in c for c in fake.calls()
    )
  starts = [c for c in fake.calls() if '-m vit_jax.main' in c]
  assert len(starts) == 6  # the same flags each time: training resumes
  assert {c.split(' ', 2)[2] for c in starts} == {
    '-m vit_jax.main --config=c.py --workdir=gs://b/w'
  }


def test_retry_stops_at_an_error(fake):
  result = fake('tpu_retry.sh', '--config=c.py', PLAN='fail', check=False)
  assert result.returncode == 1
  assert 'ValueError: bad value' in result.stderr
  assert verbs(fake.calls()) == ['create', 'scp', 'scp']


OUTAGES = (
  'ERROR: (gcloud.compute.tpus.tpu-vm.list) HttpError 503: try again',
  'ERROR: gcloud crashed (TransportError): network is unreachable',
  'ERROR: (gcloud) UNAUTHENTICATED: Request had invalid credentials',
  'HANG',
  'SAY Updates are available for some Google Cloud CLI components.',
)


@pytest.mark.slow
@pytest.mark.parametrize('message', OUTAGES)
def test_a_failing_gcloud_does_not_mean_that_the_slice_is_absent(fake, message):
  fake('tpu_create.sh')
  fake('tpu_run.sh', '--config=c.py', FOLLOW='0', PLAN='forever')
  before = verbs(fake.calls())
  fake.fail('list', message, message, message)
  fails = {'check': False, 'GCLOUD_TIMEOUT': '3'}
  for script in ('tpu_status.sh', 'tpu_stop.sh'):
    result = fake(script, **fails)
    assert result.returncode == 1 and 'gcloud failed' in result.stderr
  result = fake(
    'tpu_retry.sh', '--config=c.py', OUTAGE='0', RETRIES='0', **fails
  )
  assert result.returncode == 1 and 'gave up after 0 s' in result.stderr
  assert 'the state of slice is unknown' in result.stderr
  assert 'restart' not in result.stderr
  assert verbs(fake.calls()) == before  # nothing was created or deleted
  fake('tpu_stop.sh')


@pytest.mark.slow
def test_no_restart_is_lost_while_gcloud_quota_or_capacity_are_missing(fake):
  fake.fail('list', OUTAGES[0], '', OUTAGES[1])
  fake.fail(
    'create',
    'ERROR: {"code": 8, "message": "There is no more capacity in the zone"}',
    "ERROR: RESOURCE_EXHAUSTED: Quota 'TPUV3sPreemptiblePerProject' exhausted",
    'ERROR: HttpError 500: Internal error',
  )
  result = fake('tpu_retry.sh', '--config=c.py', RETRIES='0', POLL='0.05')
  assert 'there is no capacity for v3-32 in europe-west4-a' in result.stderr
  assert 'the quota of the project in europe-west4-a' in result.stderr
  waits = re.findall(r'again in ([\d.]+) s', result.stderr)
  assert len(waits) == 5 and float(waits[-1]) > float(waits[0])
  assert verbs(fake.calls()) == ['create'] * 4 + ['scp', 'scp']


@pytest.mark.slow
@pytest.mark.parametrize(
  'message, said',
  [
    ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", 'may not cre'),
    ('INVALID_ARGUMENT: acceleratorType is not supported', 'refuses these'),
  ],
)
def test_an_error_that_would_come_again_ends_at_once(fake, message, said):
  fake.fail('create', message)
  result = fake('tpu_retry.sh', '--config=c.py', check=False)
  assert result.returncode == 1
  assert said in result.stderr and 'restart' not in result.stderr


@pytest.mark.slow
def test_a_slice_that_is_there_already_is_waited_for(fake):
  fake('tpu_create.sh')
  fake('tpu_create.sh')  # ALREADY_EXISTS
  fake.fail('delete', OUTAGES[0])
  result = fake('tpu_stop.sh', check=False, DELETE='1')
  assert result.returncode != 0
  fake('tpu_stop.sh', DELETE='1')
  fake.fail('delete', 'ERROR: NOT_FOUND: Resource was not found')
  fake('tpu_stop.sh', DELETE='1')


def test_a_running_job_keeps_its_code(fake):
  fake('tpu_create.sh')
  fake('tpu_run.sh', '--config=c.py', FOLLOW='0', PLAN='forever')
  home = fake.dir / 'worker_0'
  first = (home / 'vit_jax').resolve()
  assert first.parent == home / 'vit_jax_code'
  (fake.repo / 'new.py').write_text('')
  for command in (['add', '.'], ['commit', '-qm', 'y']):
    subprocess.run([*fake.git, *command], check=True)
  again = fake('tpu_run.sh', '--config=c.py', FOLLOW='0', check=False)
  assert 'already running' in again.stderr
  assert (first / 'launch' / 'worker.sh').exists()
  assert not (first / 'new.py').exists()
  assert (home / 'vit_jax' / 'new.py').exists()
  assert fake('tpu_stop.sh').stdout.count('exited 3') == 2


def test_the_table_of_slices_is_that_of_aot():
  assert (LAUNCH / 'accelerators.txt').read_text() == chips.table()
  for x in chips.SLICES:
    for name in x.aliases:
      assert chips.parse_topology(name) == (x.chip, x.grid)
  names = [x.name for x in chips.SLICES]
  assert len(set(names)) == len(names)
  assert {'v2-8', 'v3-2048', 'v4-32', 'v5litepod-16', 'v5p-8', 'v6e-256'} <= {
    *names
  }
  assert chips.parse_topology('v5p-128') == ('v5p', '4x4x4')
  with pytest.raises(ValueError, match='v5e-16'):
    chips.parse_topology('v5e-17')


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({'ACCELERATOR': 'v5e-16'}, '--accelerator-type=v5litepod-16 '),
    ({'ACCELERATOR': 'v4:2x2x4'}, '--accelerator-type=v4-32 '),
    ({'ACCELERATOR': 'v6e-8'}, '--version=v2-alpha-tpuv6e '),
    ({'ACCELERATOR': 'v5p-8'}, '--version=v2-alpha-tpuv5 '),
    ({'RESERVED': '1'}, '--accelerator-type=v3-32 --reserved '),
    (
      {
        'QUEUED': '1',
        'SPOT': '1',
        'VALID_UNTIL': '6h',
        'NETWORK': 'n',
        'SUBNETWORK': 's',
        'SERVICE_ACCOUNT': 'a',
      },
      '--spot --network=n --subnetwork=s --service-account=a '
      '--valid-until-duration=6h ',
    ),
    (
      {'QUEUED': '1', 'RESERVATION': 'r'},
      '--accelerator-type=v3-32 --reserved --reservation=r ',
    ),
    (
      {'QUEUED': '1', 'SLICES': '2', 'ACCELERATOR': 'v5e-64'},
      'slice --node-count=2 --node-prefix=slice ',
    ),
  ],
)
def test_settings_of_slices(fake, settings, expected):
  out = fake('tpu_create.sh', DRY_RUN='1', **settings).stdout
  assert expected in out


@pytest.mark.parametrize(
  'settings, said',
  [
    ({'ACCELERATOR': 'v5e-17'}, 'v5e-16 v5e-32'),
    ({'VALID_UNTIL': '6h'}, 'need QUEUED=1'),
    ({'SLICES': '2'}, 'needs QUEUED=1'),
    ({'SPOT': '1', 'RESERVED': '1'}, 'exclude each other'),
  ],
)
def test_settings_that_do_not_fit(fake, settings, said):
  result = fake('tpu_create.sh', DRY_RUN='1', check=False, **settings)
  assert result.returncode == 1 and said in result.stderr


def test_several_slices_are_reached_through_their_resource(fake):
  out = fake(
    'tpu_run.sh', '--config=c.py', DRY_RUN='1', QUEUED='1', SLICES='2'
  ).stdout
  assert 'gcloud alpha compute tpus queued-resources scp ' in out
  assert 'gcloud alpha compute tpus queued-resources ssh slice ' in out
  assert '--worker=all --node=all' in out.replace(
    "'--ssh-flag=-o ServerAliveInterval=30' ", ''
  )


def test_gke_spot_and_exit_codes(fake):
  settings = {'JOB_NAME': 'v', 'IMAGE': 'i', 'ACCELERATOR': 'v5e-32'}
  fake('gke_run.sh', '--config=c.py', SPOT='1', **settings)
  job = yaml.safe_load((fake.dir / 'manifest').read_text())['spec']
  slices = job['replicatedJobs'][0]['template']['spec']
  pod = slices['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x8',
    'cloud.google.com/gke-spot': 'true',
  }
  assert slices['parallelism'] == 8
  assert 'cloud.google.com/gke-spot' in {t['key'] for t in pod['tolerations']}
  count, fail = slices['podFailurePolicy']['rules']
  assert count['onPodConditions'] == [{'type': 'DisruptionTarget'}]
  assert fail['action'] == 'FailJob'
  assert fail['onExitCodes']['values'] == [1]
  assert fail['onExitCodes']['containerName'] == pod['containers'][0]['name']
  rule = job['failurePolicy']['rules'][0]
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  fake('gke_run.sh', '--config=c.py', STOP_ON_ERROR='0', **settings)
  text = (fake.dir / 'manifest').read_text()
  assert 'odFailurePolicy' not in text and 'spot' not in text
  yaml.safe_load(text)
  bad = {**settings, 'ACCELERATOR': '', 'TOPOLOGY': '5x5'}
  result = fake(
    'gke_run.sh', 'x', check=False, GKE_ACCELERATOR='tpu-v6e-slice', **bad
  )
  assert result.returncode == 1 and 'known: 1x1 2x2' in result.stderr


def test_the_image_has_what_it_copies():
  text = (LAUNCH / 'Dockerfile').read_text()
  copied = re.findall(r'(?m)^COPY (.+) \S+$', text)
  for name in ' '.join(copied).split():
    assert (ROOT / name).exists(), name
  assert 'ENTRYPOINT ["python", "-m", "vit_jax.main"]' in text


def test_retry_is_bounded(fake):
  result = fake(
    'tpu_retry.sh',
    '--config=c.py',
    RETRIES='2',
    check=False,
    PLAN='saved saved saved saved',
  )
  assert result.returncode == 1
  assert 'gave up after 2 restarts' in result.stderr


def test_gke(fake):
  settings = dict(
    JOB_NAME='vit',
    IMAGE='r/vit_jax:1',
    TOPOLOGY='4x8',
    GKE_ACCELERATOR='tpu-v5-lite-podslice',
    VIT_JAX_JOB_TOKEN="it's",
  )
  flags = ('--config=c.py', "--note=it's & 'so'")
  fake('gke_run.sh', *flags, **settings)
  job = yaml.safe_load((fake.dir / 'manifest').read_text())
  assert job['kind'] == 'JobSet'
  slices = job['spec']['replicatedJobs'][0]
  pods = slices['template']['spec']
  assert (slices['replicas'], pods['parallelism'], pods['completions']) == (
    1,
    8,
    8,
  )
  container = pods['template']['spec']['containers'][0]
  assert container['args'] == list(flags)
  assert {'name': 'VIT_JAX_JOB_TOKEN', 'value': "it's"} in container['env']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert fake.calls() == ['kubectl apply --namespace=default --filename=-']
  out = fake('gke_run.sh', *flags, DRY_RUN='1', **settings).stdout
  assert out == (fake.dir / 'manifest').read_text() + (
    'kubectl apply --namespace=default --filename=-\n'
  )
  bad = fake(
    'gke_run.sh', *flags, check=False, **{**settings, 'TOPOLOGY': 'v5e-32'}
  )
  assert bad.returncode == 1 and 'TOPOLOGY=v5e-32' in bad.stderr


def test_slurm(fake):
  fake(
    'slurm_run.sh',
    '--config=c.py',
    NODES='2',
    GPUS='4',
    PYTHON='py',
    SBATCH_FLAGS='--partition=gpu --account=x',
  )
  assert fake.calls() == [
    f'sbatch --nodes=2 --ntasks=8 --ntasks-per-node=4 --chdir={fake.repo} '
    '--export=ALL,PYTHON=py,RETRIES=20 --partition=gpu --account=x '
    f'{fake.repo}/launch/slurm.sbatch --config=c.py'
  ]


@pytest.mark.parametrize(
  'code, restarts, requeued',
  [('0', '0', False), ('1', '0', False), ('3', '0', True), ('3', '9', False)],
)
def test_slurm_requeues_after_a_preemption(fake, code, restarts, requeued):
  result = fake(
    'slurm.sbatch',
    '--config=c.py',
    SRUN_CODE=code,
    RETRIES='9',
    SLURM_JOB_ID='7',
    SLURM_RESTART_COUNT=restarts,
    check=False,
  )
  assert result.returncode == int(code)
  assert fake.calls()[0] == (
    'srun --kill-on-bad-exit=1 --label python -m vit_jax.main --config=c.py'
  )
  assert ('scontrol requeue 7' in fake.calls()) == requeued


LOCAL = textwrap.dedent(r"""
    #!/usr/bin/env bash
    [[ $1 != -c ]] || { echo 1234; exit; }
    echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
    trap 'exit 3' TERM
    [[ $JAX_PROCESS_ID != 1 || $3 != fail ]] || exit 5
    [[ $3 == quick ]] || for _ in $(seq 100); do sleep 0.1; done
""").lstrip()


@pytest.fixture
def local_python(fake):
  path = fake.dir / 'local_python'
  path.write_text(LOCAL)
  path.chmod(0o755)
  return str(path)


def test_local(fake, local_python):
  out = fake('local.sh', 'quick', PYTHON=local_python, PROCESSES='3').stdout
  assert sorted(out.splitlines()) == [
    f'{i} of 3 at 127.0.0.1:1234' for i in range(3)
  ]
  dry = fake(
    'local.sh', '--config=c.py', PYTHON=local_python, DRY_RUN='1', DEVICES='4'
  ).stdout.splitlines()
  assert len(dry) == 2
  assert re.search(
    r'JAX_PROCESS_ID=1 .*device_count=4.* -m vit_jax.main '
    '--config=c.py$',
    dry[1],
  )


def test_local_stops_all_when_one_fails(fake, local_python):
  start = time.monotonic()
  result = fake(
    'local.sh',
    'fail',
    PYTHON=local_python,
    check=False,
    LOGS=str(fake.dir / 'logs'),
  )
  assert result.returncode == 5
  assert time.monotonic() - start < 8
  assert '1 of 2' in (fake.dir / 'logs/process_1.txt').read_text()


def test_local_passes_a_preemption_on(fake, local_python):
  process = subprocess.Popen(
    ['bash', str(fake.repo / 'launch/local.sh'), 'forever'],
    env={**fake.env, 'PYTHON': local_python},
    stdout=subprocess.PIPE,
    text=True,
  )
  for _ in range(2):
    process.stdout.readline()  # both run
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=8) == 3
