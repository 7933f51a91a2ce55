# Shared functions and settings of the launch scripts, which source this file.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-0}  # 1: print the commands instead of running them

# Settings of the tpu_*.sh scripts.
TPU_NAME=${TPU_NAME:-}
ZONE=${ZONE:-}
PROJECT=${PROJECT:-}              # default: gcloud's project
ACCELERATOR=${ACCELERATOR:-v3-32} # a name of accelerators.txt: v4-32, v5e-64
SLICES=${SLICES:-1}               # more than 1: multislice, needs QUEUED=1
QUEUED=${QUEUED:-0}               # 1: a queued resource instead of a tpu-vm
INTERNAL_IP=${INTERNAL_IP:-0}     # 1: use ssh with internal addresses

# What gcloud last wrote to its standard error.
ERRORS=$(mktemp "${TMPDIR:-/tmp}/vit_jax_gcloud.XXXXXX")
trap 'rm -f "$ERRORS"' EXIT

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

# accelerator NAME: prints the line of accelerators.txt of a slice, whatever its
# name (v5e-16, v5litepod-16, v5e:4x4); fails for an unknown one.
accelerator() {
  local name aliases rest
  while read -r name aliases rest; do
    [[ $name == '#' || ,$aliases, != *,"$1",* ]] ||
      { echo "$name $aliases $rest"; return; }
  done <"$ROOT/launch/accelerators.txt"
  return 1
}

# names_like NAME: prints the names of the slices of the same chip, or of all.
names_like() {
  local chip=${1%%[-:]*} names
  names=$(awk -v chip="$chip" '$1 != "#" && ("," $2) ~ ("," chip "[-:]") \
    { split($2, x, ","); printf " %s", x[length(x) - 1] }' \
    "$ROOT/launch/accelerators.txt")
  [[ -n $names ]] || names=$(awk '$1 != "#" { printf " %s", $1 }' \
    "$ROOT/launch/accelerators.txt")
  echo "${names# }"
}

# ask COMMAND ARG...: runs `tpus` and keeps its errors, which are shown as well.
# It fails if the command fails, or does not answer within GCLOUD_TIMEOUT.
ask() {
  local code=0
  tpus "$@" 2>"$ERRORS" || code=$?
  cat "$ERRORS" >&2
  if ((code == 124)); then
    echo "gcloud gave no answer within ${GCLOUD_TIMEOUT:-1800} s" |
      tee "$ERRORS" >&2
  fi
  return "$code"
}

# Prints what kind of error gcloud last reported: capacity, quota, exists,
# missing, login (sign in again), denied or invalid (a repetition would fail
# again), or outage (anything else).
error_kind() {
  local text
  text=$(tr '[:upper:]' '[:lower:]' <"$ERRORS")
  case $text in
    *'no more capacity'* | *'not enough resources'* | *stockout* | \
      *'no available capacity'*) echo capacity ;;
    *quota* | *resource_exhausted* | *'rate limit'*) echo quota ;;
    *already_exists* | *'already exists'*) echo exists ;;
    *unauthenticated* | *invalid_grant* | *reauth* | *'auth login'* | \
      *'active account'*) echo login ;;
    *permission_denied* | *'permission denied'* | \
      *'does not have permission'* | *'not been used in project'*)
      echo denied ;;
    *invalid_argument* | *'invalid value'* | *'unrecognized arguments'* | \
      *'invalid choice'*) echo invalid ;;
    *not_found* | *'not found'*) echo missing ;;
    *) echo outage ;;
  esac
}

# tpus VERB...: runs `gcloud compute tpus` with the project and the zone.
tpus() {
  local command=(gcloud)
  if [[ $SLICES != 1 && $2 =~ ^(ssh|scp)$ ]]; then command+=(alpha); fi
  command+=(compute tpus "$@" --zone="$ZONE")
  if [[ -n $PROJECT ]]; then command+=("--project=$PROJECT"); fi
  if [[ $DRY_RUN != 1 && $2 =~ ^(list|create|delete)$ ]]; then
    timeout "${GCLOUD_TIMEOUT:-1800}" "${command[@]}"
  else
    run "${command[@]}"
  fi
}

# With several slices, ssh and scp go through the queued resource.
through() {
  if [[ $SLICES == 1 ]]; then echo tpu-vm; else echo queued-resources; fi
}

# on_workers WHICH COMMAND: runs a shell command on worker WHICH or 'all'.
on_workers() {
  local flags=(--worker="$1" --ssh-flag='-o ServerAliveInterval=30')
  if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ip); fi
  if [[ $SLICES != 1 && $1 == all ]]; then flags+=(--node=all); fi
  tpus "$(through)" ssh "$TPU_NAME" "${flags[@]}" --command="$2"
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

# Copies the committed code to every worker, into a folder that is named after
# the commit, and lets ~/vit_jax be a link to it. A running job goes on with the
# folder that it was started in.
sync_code() {
  local archive=/tmp/vit_jax_$TPU_NAME.tar.gz flags=(--worker=all) version
  if [[ -n $(git -C "$ROOT" status --porcelain --untracked-files=no) ]]; then
    say 'warning: uncommitted changes are not sent to the workers'
  fi
  version=$(git -C "$ROOT" rev-parse --short=12 HEAD)
  if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ip); fi
  if [[ $SLICES != 1 ]]; then flags+=(--node=all); fi
  run git -C "$ROOT" archive --format=tar.gz --prefix="$version/" \
    --output="$archive" HEAD
  tpus "$(through)" scp "$archive" "$TPU_NAME:vit_jax_$version.tar.gz" \
    "${flags[@]}"
  # Earlier versions of these scripts made a folder ~/vit_jax.
  on_workers all "set -e
new=vit_jax_code/$version
if [ ! -d \$new ]; then
  mkdir -p vit_jax_code/.new
  rm -rf vit_jax_code/.new/$version
  tar -xzf vit_jax_$version.tar.gz -C vit_jax_code/.new
  mv vit_jax_code/.new/$version \$new
fi
rm -f vit_jax_$version.tar.gz
if [ -d vit_jax ] && [ ! -L vit_jax ]; then
  if bash vit_jax/launch/worker.sh status | grep -q ' running '; then
    echo 'error: a job runs in ~/vit_jax: stop it first (tpu_stop.sh)' >&2
    exit 1
  fi
  mv vit_jax vit_jax_code/earlier
fi
ln -sfn \$new vit_jax.new && mv -fT vit_jax.new vit_jax"
}

# Prints the state of the TPU (READY, CREATING, PREEMPTED, ...), or ABSENT. For
# a queued resource that is not ACTIVE, prints the state of the resource
# (WAITING_FOR_RESOURCES, SUSPENDED, ...). It fails if gcloud fails: then the
# state is not known.
tpu_state() {
  local state states node="$TPU_NAME"
  if [[ $DRY_RUN == 1 ]]; then
    tpus tpu-vm list --filter="name~/$TPU_NAME\$" --format='value(state)' >&2
    echo ABSENT
    return
  fi
  if [[ $QUEUED == 1 ]]; then
    state=$(ask queued-resources list --filter="name~/$TPU_NAME\$" \
      --format='value(state.state)') || return 1
    known_state "$state" || return 1
    [[ $state == ACTIVE ]] || { echo "${state:-ABSENT}"; return; }
  fi
  if [[ $SLICES != 1 ]]; then node="$TPU_NAME-[0-9]+"; fi
  states=$(ask tpu-vm list --filter="name~/$node\$" \
    --format='value(state)') || return 1
  # Of several slices, the state of one that is not ready counts.
  state=$(grep -vx READY <<<"$states" | head -n 1) || true
  if [[ -z $state && -n $states ]]; then state=READY; fi
  known_state "$state" || return 1
  echo "${state:-ABSENT}"
}

# known_state TEXT: fails unless a text can be a state, or is empty.
known_state() {
  [[ $1 =~ ^[A-Z_]*$ ]] || {
    echo "gcloud gave '${1:0:80}' as the state of $TPU_NAME" |
      tee "$ERRORS" >&2
    return 1
  }
}

# Deletes the TPU; one that is not there is deleted already.
delete_tpu() {
  local code=0
  if [[ $QUEUED == 1 ]]; then
    # A preempted resource stays SUSPENDED and keeps its name and quota until it
    # is deleted.
    ask queued-resources delete "$TPU_NAME" --force --quiet || code=$?
  else
    ask tpu-vm delete "$TPU_NAME" --quiet || code=$?
  fi
  if ((code == 0)) || [[ $(error_kind) == missing ]]; then return 0; fi
  return "$code"
}

need_tpu() {
  need TPU_NAME 'the name of the TPU' vit-jax
  need ZONE 'the zone of the TPU' europe-west4-a
  [[ $SLICES == 1 || $QUEUED == 1 ]] ||
    die "SLICES=$SLICES needs QUEUED=1: several slices are one queued resource"
}
