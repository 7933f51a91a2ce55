# Shared functions and settings of the launch scripts, which source this file.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-0}  # 1: print the commands instead of running them

# Settings of the tpu_*.sh scripts.
TPU_NAME=${TPU_NAME:-}
ZONE=${ZONE:-}
PROJECT=${PROJECT:-}              # default: gcloud's project
ACCELERATOR=${ACCELERATOR:-v3-32} # v2-8 ... v3-2048, v4-32, v5litepod-64, ...
QUEUED=${QUEUED:-0}               # 1: a queued resource instead of a tpu-vm
INTERNAL_IP=${INTERNAL_IP:-0}     # 1: use ssh with internal addresses

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '%s\n' "$*" >&2; }

# need NAME WHAT EXAMPLE: stops if the variable NAME is empty.
need() {
  [[ -n ${!1:-} ]] || die "$1 is not set: $2, e.g. $1=$3"
}

# quote ARG...: prints the arguments as one shell command line.
quote() {
  local arg line=
  for arg in "$@"; do
    [[ $arg =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || arg=${arg@Q}
    line+="${line:+ }$arg"
  done
  printf '%s\n' "$line"
}

# job_token: prints a random token, by which the processes of a job know each
# other.
job_token() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# run COMMAND ARG...: runs a command, or prints it with DRY_RUN=1.
run() {
  if [[ $DRY_RUN == 1 ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# tpus VERB...: runs `gcloud compute tpus` with the project and the zone.
tpus() {
  run gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"}
}

# on_workers WHICH COMMAND: runs a shell command on worker WHICH or 'all'.
on_workers() {
  local flags=(--worker="$1" --ssh-flag='-o ServerAliveInterval=30')
  if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ip); fi
  tpus tpu-vm ssh "$TPU_NAME" "${flags[@]}" --command="$2"
}

# worker WHICH VERB ARG...: runs launch/worker.sh on worker WHICH or 'all'.
worker() {
  local which=$1
  shift
  on_workers "$which" "bash vit_jax/launch/worker.sh $(quote "$@")"
}

# Prints a line for each worker: 'HOST running PID', 'HOST exited CODE' or
# 'HOST idle'.
worker_states() {
  # shellcheck disable=SC2016
  on_workers all 'if [ -e vit_jax/launch/worker.sh ]; then
bash vit_jax/launch/worker.sh status; else echo "$(hostname) idle"; fi'
}

# Copies the committed code to ~/vit_jax on every worker.
sync_code() {
  local archive=/tmp/vit_jax_$TPU_NAME.tar.gz flags=(--worker=all)
  if [[ -n $(git -C "$ROOT" status --porcelain --untracked-files=no) ]]; then
    say 'warning: uncommitted changes are not sent to the workers'
  fi
  if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ip); fi
  run git -C "$ROOT" archive --format=tar.gz --prefix=vit_jax/ \
    --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$TPU_NAME:vit_jax.tar.gz" "${flags[@]}"
  on_workers all 'rm -rf vit_jax && tar -xzf vit_jax.tar.gz'
}

# Prints the state of the TPU (READY, CREATING, PREEMPTED, ...), or ABSENT. For
# a queued resource that is not ACTIVE, prints the state of the resource
# (WAITING_FOR_RESOURCES, SUSPENDED, ...).
tpu_state() {
  local list state
  if [[ $DRY_RUN == 1 ]]; then
    tpus tpu-vm list --filter="name~/$TPU_NAME\$" --format='value(state)' >&2
    echo ABSENT
    return
  fi
  if [[ $QUEUED == 1 ]]; then
    list=$(tpus queued-resources list --filter="name~/$TPU_NAME\$" \
      --format='value(state.state)')
    [[ $list == ACTIVE ]] || { echo "${list:-ABSENT}"; return; }
  fi
  state=$(tpus tpu-vm list --filter="name~/$TPU_NAME\$" \
    --format='value(state)')
  echo "${state:-ABSENT}"
}

delete_tpu() {
  if [[ $QUEUED == 1 ]]; then
    # A preempted resource stays SUSPENDED and keeps its name and quota until it
    # is deleted.
    tpus queued-resources delete "$TPU_NAME" --force --quiet
  else
    tpus tpu-vm delete "$TPU_NAME" --quiet
  fi
}

need_tpu() {
  need TPU_NAME 'the name of the TPU' vit-jax
  need ZONE 'the zone of the TPU' europe-west4-a
}
