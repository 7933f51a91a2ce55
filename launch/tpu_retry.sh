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
# repeat, or after RETRIES (20) restarts. When gcloud itself fails, nothing is
# known about the slice: it is asked again after POLL seconds, then twice as
# long, up to 10 minutes, and this is no restart; the same holds while there is
# no capacity or quota. After OUTAGE (86400) seconds of it the script gives up.
# Variables, besides those of tpu_create.sh, tpu_setup.sh and tpu_run.sh: POLL
# (60 seconds), LOST (5 failed connections before the slice is deleted),
# DRY_RUN=1 (prints one round).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'
here=$ROOT/launch

now() { date -u +%FT%TZ; }

# Prints the state of the job: running, done, failed, stopped (preempted or
# killed, so that it can be resumed), idle (never started), unreachable, or
# unknown, if not the workers but gcloud failed.
job() {
  local lines
  if ! lines=$(worker_states 2>"$ERRORS"); then
    cat "$ERRORS" >&2
    case $(error_kind) in
      login | denied | quota) echo unknown ;;
      *) echo unreachable ;;
    esac
    return
  fi
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
  say "$(now) restart $restarts: $*"
}

# Waits before gcloud is asked again, each time twice as long.
pause=0 failing_since=
back_off() {
  [[ -n $failing_since ]] || failing_since=$SECONDS
  ((SECONDS - failing_since < ${OUTAGE:-86400})) ||
    die "gave up after ${OUTAGE:-86400} s (OUTAGE): $*"
  local first=${POLL:-60}
  pause=$(awk -v now="$pause" -v first="$first" 'BEGIN {
    next_one = now > 0 ? 2 * now : first
    print (next_one < 600 ? next_one : 600) }')
  say "$(now) $*; again in $pause s"
  sleep "$pause"
}
recovered() { pause=0 failing_since=; }

set_up_and_start() {
  "$here/tpu_setup.sh" && FOLLOW=0 "$here/tpu_run.sh" "$@"
}

lost=0
while :; do
  if ! state=$(tpu_state); then
    back_off "gcloud failed ($(error_kind)), the state of $TPU_NAME is unknown"
    continue
  fi
  if [[ $state != ABSENT ]]; then recovered; fi
  case $state in
    READY)
      verdict=$(job)
      say "$(now) $TPU_NAME $state, training $verdict"
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
      code=0
      "$here/tpu_create.sh" || code=$?
      if [[ $DRY_RUN == 1 ]]; then
        set_up_and_start "$@"
        exit 0
      fi
      case $code in
        0) recovered ;;
        4) back_off "$TPU_NAME cannot be created yet" ;;
        *)
          # The slice may exist and not be ready: then it is looked at again.
          if state=$(tpu_state) && [[ $state == ABSENT ]]; then
            die "$TPU_NAME cannot be created: see above"
          fi
          again 'creating failed'
          ;;
      esac
      continue
      ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      again "$TPU_NAME is $state: deleting it"
      until delete_tpu; do
        back_off "$TPU_NAME could not be deleted ($(error_kind))"
      done
      recovered
      continue
      ;;
    *) say "$(now) $TPU_NAME $state" ;; # being made or repaired
  esac
  sleep "${POLL:-60}"
done
