#!/usr/bin/env bash
# Sets up and runs training on one worker of a TPU VM; the tpu_*.sh scripts call
# it over ssh.
#
#   worker.sh setup             installs Python, an environment and vit_jax
#   worker.sh check             prints versions, checks that JAX sees the slice
#   worker.sh start FLAG...     starts python -m vit_jax.main FLAG..., detached
#   worker.sh status            prints 'HOST running PID', 'HOST exited CODE'...
#   worker.sh logs LINES        prints the last lines of the log
#   worker.sh stop SECONDS      sends TERM (training saves a checkpoint), then
#                               KILL after SECONDS
#
# Variables, with their defaults: VENV (~/vit_jax_venv), RUN (~/vit_jax_run; it
# has the files pid, log and exit), PYTHON_VERSION (3.11), EXTRA (tpu),
# PLATFORMS (tpu,cpu).
set -euo pipefail

VENV=${VENV:-$HOME/vit_jax_venv}
RUN=${RUN:-$HOME/vit_jax_run}
PYTHON_VERSION=${PYTHON_VERSION:-3.11}
EXTRA=${EXTRA:-tpu}
# The folder of one version, not the link to it: a running job keeps its code.
CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Makes the virtual environment. The TPU images have Python 3.10, for which pip
# would install an old JAX.
find_python() {
  if command -v "python$PYTHON_VERSION" >/dev/null &&
    "python$PYTHON_VERSION" -c 'import ensurepip' 2>/dev/null; then
    "python$PYTHON_VERSION" -m venv "$VENV"
  elif python3 -m pip install --user --quiet uv; then
    python3 -m uv venv --seed --python "$PYTHON_VERSION" "$VENV"
  else
    sudo add-apt-repository -y ppa:deadsnakes/ppa
    sudo apt-get install -y "python$PYTHON_VERSION-venv"
    "python$PYTHON_VERSION" -m venv "$VENV"
  fi
}

setup() {
  [[ -x $VENV/bin/python ]] || find_python
  "$VENV/bin/python" -c 'import sys
if sys.version_info < (3, 11):
  sys.exit(f"error: Python {sys.version} in the virtual environment; "
           "3.11 or newer is needed: remove the environment and set it up "
           "again with PYTHON_VERSION=3.11")'
  local versions=()
  if [[ -f $CODE/requirements.txt ]]; then
    versions=(-c "$CODE/requirements.txt")
  fi
  # Without a C compiler, the package is installed all the same, and resizes
  # images more slowly.
  command -v cc >/dev/null || sudo apt-get install -qq -y gcc libc6-dev ||
    echo 'warning: no C compiler, so images are resized more slowly' >&2
  "$VENV/bin/python" -m pip install --quiet --upgrade pip
  "$VENV/bin/python" -m pip install --quiet -e "${CODE}[$EXTRA]" \
    "${versions[@]}"
}

# Runs on all workers at the same time, because JAX sees a slice only as a
# whole.
check() {
  JAX_PLATFORMS=${PLATFORMS:-tpu,cpu} timeout 300 "$VENV/bin/python" -c '
import sys
import jax, jaxlib, flax
from vit_jax.parallel import processes
processes.initialize(timeout=240)
backend = jax.default_backend()
print(f"process {jax.process_index()}/{jax.process_count()}: Python "
      f"{sys.version.split()[0]}, jax {jax.__version__}, jaxlib "
      f"{jaxlib.__version__}, flax {flax.__version__}, backend {backend}, "
      f"{jax.local_device_count()} of {jax.device_count()} devices")
if backend != sys.argv[1]:
  sys.exit(f"error: the backend is {backend}, not {sys.argv[1]}: the "
           "accelerator is in use, or jax was installed without its extra")
' "${BACKEND:-tpu}"
}

# Prints the process group of the running job, or nothing.
running() {
  local pid
  pid=$(cat "$RUN/pid" 2>/dev/null) || return 0
  [[ -f $RUN/exit ]] || { kill -0 -- "-$pid" 2>/dev/null && echo "$pid"; } ||
    true
}

start() {
  local pid
  pid=$(running)
  if [[ -n $pid ]]; then
    echo "error: already running as $pid: stop it first (tpu_stop.sh)" >&2
    exit 1
  fi
  rm -f /tmp/libtpu_lockfile "$RUN/exit" # a crashed job leaves them
  mkdir -p "$RUN"
  cd "$CODE"
  # JAX fails if a named platform does not start, instead of using the CPU.
  export JAX_PLATFORMS=${PLATFORMS:-tpu,cpu}
  # shellcheck disable=SC2016
  setsid nohup bash -c '
    run=$1; shift
    code=0
    "$@" || code=$?
    echo "$code" >"$run/exit"
  ' bash "$RUN" "$VENV/bin/python" -m vit_jax.main "$@" \
    >>"$RUN/log" 2>&1 </dev/null &
  echo $! >"$RUN/pid"
  echo "$(hostname) started $!"
}

status() {
  local pid
  pid=$(running)
  if [[ -n $pid ]]; then
    echo "$(hostname) running $pid"
  elif [[ -f $RUN/exit ]]; then
    echo "$(hostname) exited $(cat "$RUN/exit")"
  elif [[ -f $RUN/pid ]]; then
    echo "$(hostname) killed"
  else
    echo "$(hostname) idle"
  fi
}

stop() {
  local pid seconds=${1:-120}
  pid=$(running)
  if [[ -n $pid ]]; then
    # Only the training process gets TERM, so that its shell writes the exit
    # code.
    pkill -TERM -P "$pid" || true
    while ((seconds-- > 0)) && [[ -n $(running) ]]; do sleep 1; done
    if [[ -n $(running) ]]; then kill -KILL -- "-$pid"; fi
  fi
  status
}

verb=${1:-}
case $verb in
  setup | check | start | status | stop) "${@}" ;;
  logs) tail -n "${2:-50}" "$RUN/log" ;;
  *)
    echo "error: verb '$verb'; allowed: setup check start status logs stop" >&2
    exit 1
    ;;
esac
