#!/usr/bin/env bash
# Runs training in several processes on this machine, as on a pod.
#
#   PROCESSES=2 DEVICES=4 launch/local.sh \
#     --config=configs/X.py:smoke --workdir=/tmp/x
#
# Variables, with their defaults: PROCESSES (2), DEVICES (virtual CPU devices of
# a process, 1), PORT (a free port), LOGS (directory; process I writes to
# LOGS/process_I.txt instead of the terminal, except process 0), PYTHON
# (python), GRACE (20 seconds), DRY_RUN=1. The script passes TERM and INT on.
# When a process fails, the others get TERM and, after GRACE seconds, KILL, and
# the script exits with the code of the first process that failed.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'
processes=${PROCESSES:-2}
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$processes
export VIT_JAX_JOB_TOKEN=${VIT_JAX_JOB_TOKEN:-$(job_token)}
XLA_FLAGS="${XLA_FLAGS:-} \
--xla_force_host_platform_device_count=${DEVICES:-1}"
export XLA_FLAGS

groups=()
signal() {
  local group
  for group in ${groups[@]+"${groups[@]}"}; do
    kill "-$1" -- "-$group" 2>/dev/null || true
  done
}
trap 'signal TERM' TERM INT
trap 'signal KILL; rm -f "$ERRORS"' EXIT

for ((i = 0; i < processes; i++)); do
  if [[ $DRY_RUN == 1 ]]; then
    quote env "JAX_PLATFORMS=$JAX_PLATFORMS" \
      "JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS" \
      "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i" \
      "XLA_FLAGS=${XLA_FLAGS# }" "$python" -m vit_jax.main "$@"
    continue
  fi
  # Each process has its own process group, so that its children end with it.
  export JAX_PROCESS_ID=$i
  if [[ -n ${LOGS:-} && $i != 0 ]]; then
    mkdir -p "$LOGS"
    setsid "$python" -m vit_jax.main "$@" >>"$LOGS/process_$i.txt" 2>&1 &
  else
    setsid "$python" -m vit_jax.main "$@" &
  fi
  groups+=($!)
done

code=0
deadline=
left=("${groups[@]}")
while ((${#left[@]} > 0)); do
  alive=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    if ((status != 0 && code == 0)); then
      code=$status
      deadline=$((SECONDS + ${GRACE:-20}))
      say "a process ended with exit code $code; stopping the others"
      signal TERM
    fi
  done
  left=(${alive[@]+"${alive[@]}"})
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then signal KILL; fi
  sleep 0.2
done
exit "$code"
