#!/usr/bin/env bash
# Shows the state of the slice and of the training process on each worker.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_status.sh
#
# Variables: those of common.sh, DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

state=$(tpu_state) ||
  die "gcloud failed ($(error_kind)): the state of $TPU_NAME is unknown"
echo "$TPU_NAME $state"
if [[ $state == READY || $DRY_RUN == 1 ]]; then
  worker_states
fi
