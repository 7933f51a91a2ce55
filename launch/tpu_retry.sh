#!/usr/bin/env bash
# Trains to the end on a slice that may be preempted. It creates the slice, sets
# it up, starts training and watches it. After a preemption it deletes the
# slice, creates it again and resumes from the newest checkpoint in the workdir.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a ACCELERATOR=v3-32 SPOT=1 \
#     launch/tpu_retry.sh --config=configs/X.py --workdir=gs://BUCKET/X
#
# Run it on a machine that stays up, such as a small VM with tmux. It may be
# stopped and started again at any time. It exits with code 0 when training is
# done, and with 1 when training has failed with an error that a restart would
# repeat, or after RETRIES (20) restarts. Variables, besides those of
# tpu_create.sh, tpu_setup.sh and tpu_run.sh: POLL (60 seconds), LOST (5 failed
# connections before the slice is deleted), DRY_RUN=1 (prints one round).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'
here=$ROOT/launch

# Prints the state of the job: running, done, failed, stopped (preempted or
# killed, so that it can be resumed), idle (never started) or unreachable.
job() {
  local lines
  lines=$(worker_states) || { echo unreachable; return; }
  if grep -q ' running ' <<<"$lines"; then
    echo running
  elif ! grep -qv ' exited 0$' <<<"$lines"; then
    echo 'done'
  elif grep -qE ' (killed|exited (3|13[0-9]|14[0-9]))$' <<<"$lines"; then
    echo stopped # errors of other workers follow from it
  elif grep -q ' exited ' <<<"$lines"; then
    echo failed
  else
    echo idle
  fi
}

restarts=0
again() {
  ((++restarts <= ${RETRIES:-20})) ||
    die "gave up after ${RETRIES:-20} restarts (RETRIES)"
  say "$(date -u +%FT%TZ) restart $restarts: $*"
}

set_up_and_start() {
  "$here/tpu_setup.sh" && FOLLOW=0 "$here/tpu_run.sh" "$@"
}

lost=0
while :; do
  state=$(tpu_state)
  case $state in
    READY)
      verdict=$(job)
      say "$(date -u +%FT%TZ) $TPU_NAME $state, training $verdict"
      case $verdict in
        'done') exit 0 ;;
        failed)
          "$here/tpu_logs.sh" >&2 || true
          die 'training failed: see the log above; the slice is still there' \
            '(DELETE=1 launch/tpu_stop.sh)'
          ;;
        idle) set_up_and_start "$@" || again 'the set-up failed' ;;
        stopped)
          again 'training was stopped'
          GRACE=${GRACE:-30} "$here/tpu_stop.sh" || true
          FOLLOW=0 "$here/tpu_run.sh" "$@" || true
          ;;
        unreachable)
          if ((++lost >= ${LOST:-5})); then
            again "unreachable $lost times: deleting $TPU_NAME"
            delete_tpu || true
            lost=0
          fi
          ;;
      esac
      [[ $verdict == unreachable ]] || lost=0
      ;;
    ABSENT)
      "$here/tpu_create.sh" || again 'creating failed'
      if [[ $DRY_RUN == 1 ]]; then
        set_up_and_start "$@"
        exit 0
      fi
      continue
      ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      again "$TPU_NAME is $state: deleting it"
      delete_tpu
      continue
      ;;
    *) say "$(date -u +%FT%TZ) $TPU_NAME $state" ;; # being made or repaired
  esac
  sleep "${POLL:-60}"
done
