#!/usr/bin/env bash
# Creates a TPU slice, and waits until it is ready.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a ACCELERATOR=v3-32 launch/tpu_create.sh
#
# Variables, besides those of common.sh: SPOT=1 (preemptible and cheaper),
# QUEUED=1 (a queued resource, which waits for capacity), VALID_UNTIL (with
# QUEUED: how long it waits, such as 6h), RESERVED=1 (capacity that is reserved
# for the project) or RESERVATION (the name of one, with QUEUED), RUNTIME
# (software version; by default that of the accelerator), NETWORK, SUBNETWORK,
# SERVICE_ACCOUNT, LABELS (k=v,...), DATA_DISK (source=...,mode=read-only), WAIT
# (7200 seconds), POLL (20 seconds), DRY_RUN=1.
#
# The exit code is 0 when the slice is ready, 4 if creating it may succeed later
# (no capacity, quota, outage), 1 otherwise.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

if line=$(accelerator "$ACCELERATOR"); then
  read -r name _ _ _ _ runtime _ <<<"$line"
else
  [[ -n ${RUNTIME:-} ]] ||
    die "ACCELERATOR=$ACCELERATOR is no slice that is known: one of" \
      "$(names_like "$ACCELERATOR"); or set RUNTIME to one from 'gcloud" \
      "compute tpus versions list', to pass the name on as it stands"
  name=$ACCELERATOR runtime=
fi
runtime=${RUNTIME:-$runtime}
if [[ $QUEUED != 1 && -n ${VALID_UNTIL:-}${RESERVATION:-} ]]; then
  die 'VALID_UNTIL and RESERVATION need QUEUED=1'
fi
if [[ ${SPOT:-0} == 1 && -n ${RESERVED:-}${RESERVATION:-} ]]; then
  die 'SPOT=1 and a reservation exclude each other'
fi

# Both commands take these flags, but name the runtime version differently.
flags=(--accelerator-type="$name")
if [[ ${SPOT:-0} == 1 ]]; then flags+=(--spot); fi
if [[ ${RESERVED:-0} == 1 ]]; then flags+=(--reserved); fi
if [[ -n ${NETWORK:-} ]]; then flags+=(--network="$NETWORK"); fi
if [[ -n ${SUBNETWORK:-} ]]; then flags+=(--subnetwork="$SUBNETWORK"); fi
if [[ -n ${SERVICE_ACCOUNT:-} ]]; then
  flags+=(--service-account="$SERVICE_ACCOUNT")
fi
if [[ -n ${LABELS:-} ]]; then flags+=(--labels="$LABELS"); fi
if [[ -n ${DATA_DISK:-} ]]; then flags+=(--data-disk="$DATA_DISK"); fi
if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ips); fi

create() {
  if [[ $QUEUED != 1 ]]; then
    ask tpu-vm create "$TPU_NAME" --version="$runtime" "${flags[@]}"
    return
  fi
  local nodes=(--node-id="$TPU_NAME")
  if [[ $SLICES != 1 ]]; then
    nodes=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
  fi
  if [[ -n ${VALID_UNTIL:-} ]]; then
    flags+=(--valid-until-duration="$VALID_UNTIL")
  fi
  if [[ -n ${RESERVATION:-} ]]; then
    flags+=(--reserved --reservation="$RESERVATION")
  fi
  ask queued-resources create "$TPU_NAME" "${nodes[@]}" \
    --runtime-version="$runtime" "${flags[@]}"
}

later() {
  say "error: $*"
  exit 4
}

if [[ $DRY_RUN == 1 ]]; then
  create
  exit 0
fi
if ! create; then
  where="${PROJECT:-the project} in $ZONE"
  case $(error_kind) in
    exists) say "$TPU_NAME exists already: waiting until it is ready" ;;
    capacity) later "there is no capacity for $name in $ZONE now" ;;
    quota)
      later "the quota of $where does not allow another $name: free some, ask" \
        'for more (console: IAM, quotas), or take another zone' ;;
    login) later 'gcloud is not signed in: gcloud auth login' ;;
    denied) die "this account may not create TPUs for $where: see above" ;;
    invalid | missing)
      die "gcloud refuses these settings: see above. $name may not be offered" \
        "in $ZONE: gcloud compute tpus accelerator-types list --zone=$ZONE" ;;
    *) later 'gcloud failed: see above' ;;
  esac
fi

deadline=$((SECONDS + ${WAIT:-7200}))
state=unknown
while :; do
  if state=$(tpu_state); then
    case $state in
      READY) break ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED)
        die "$TPU_NAME is $state: delete it (DELETE=1 launch/tpu_stop.sh) and" \
          'create it again, perhaps in another zone' ;;
    esac
  else
    state="in an unknown state, because gcloud failed ($(error_kind))"
  fi
  ((SECONDS < deadline)) ||
    die "$TPU_NAME is still $state after ${WAIT:-7200} s: look again with" \
      'launch/tpu_status.sh, or delete it (DELETE=1 launch/tpu_stop.sh)'
  say "$TPU_NAME is $state"
  sleep "${POLL:-20}"
done
say "$TPU_NAME is READY"
