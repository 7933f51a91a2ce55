#!/usr/bin/env bash
# Creates a TPU slice, and waits until it is ready.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a ACCELERATOR=v3-32 launch/tpu_create.sh
#
# Variables, besides those of common.sh: SPOT=1 (preemptible and cheaper),
# QUEUED=1 (a queued resource, which waits for capacity), RUNTIME (software
# version; by default that of the accelerator), NETWORK, SUBNETWORK,
# SERVICE_ACCOUNT, LABELS (k=v,...), DATA_DISK (source=...,mode=read-only), WAIT
# (7200 seconds), POLL (20 seconds), DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

case $ACCELERATOR in
  v6e*) runtime=v2-alpha-tpuv6e ;;
  v5p*) runtime=v2-alpha-tpuv5 ;;
  v5lite* | v5e*) runtime=v2-alpha-tpuv5-lite ;;
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  *)
    [[ -n ${RUNTIME:-} ]] ||
      die "no runtime is known for ACCELERATOR=$ACCELERATOR: set RUNTIME to" \
        'one from: gcloud compute tpus versions list'
    ;;
esac
runtime=${RUNTIME:-$runtime}

# Both commands take these flags, but name the runtime version differently.
flags=(--accelerator-type="$ACCELERATOR")
if [[ ${SPOT:-0} == 1 ]]; then flags+=(--spot); fi
if [[ -n ${NETWORK:-} ]]; then flags+=(--network="$NETWORK"); fi
if [[ -n ${SUBNETWORK:-} ]]; then flags+=(--subnetwork="$SUBNETWORK"); fi
if [[ -n ${SERVICE_ACCOUNT:-} ]]; then
  flags+=(--service-account="$SERVICE_ACCOUNT")
fi
if [[ -n ${LABELS:-} ]]; then flags+=(--labels="$LABELS"); fi
if [[ -n ${DATA_DISK:-} ]]; then flags+=(--data-disk="$DATA_DISK"); fi
if [[ $INTERNAL_IP == 1 ]]; then flags+=(--internal-ips); fi

if [[ $QUEUED == 1 ]]; then
  tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --runtime-version="$runtime" "${flags[@]}"
else
  tpus tpu-vm create "$TPU_NAME" --version="$runtime" "${flags[@]}"
fi
[[ $DRY_RUN != 1 ]] || exit 0

deadline=$((SECONDS + ${WAIT:-7200}))
while :; do
  state=$(tpu_state)
  case $state in
    READY) break ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED)
      die "$TPU_NAME is $state: delete it (DELETE=1 launch/tpu_stop.sh) and" \
        'create it again, perhaps in another zone' ;;
  esac
  ((SECONDS < deadline)) ||
    die "$TPU_NAME is still $state after ${WAIT:-7200} s: look again with" \
      'launch/tpu_status.sh, or delete it (DELETE=1 launch/tpu_stop.sh)'
  say "$TPU_NAME is $state"
  sleep "${POLL:-20}"
done
say "$TPU_NAME is READY"
