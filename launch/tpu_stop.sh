#!/usr/bin/env bash
# Stops training on every worker; DELETE=1 also deletes the slice.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a DELETE=1 launch/tpu_stop.sh
#
# Training gets TERM, saves a checkpoint and exits with code 3; after GRACE
# (120) seconds it is killed. A slice costs money until it is deleted.
# Variables, besides those of common.sh: DELETE=1, GRACE, DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

if ! state=$(tpu_state); then
  die "gcloud failed ($(error_kind)): it is not known whether $TPU_NAME runs," \
    'so it may still cost money'
fi
if [[ $DRY_RUN == 1 || $state == READY ]]; then
  # A slice that was never set up has nothing to stop.
  on_workers all "if [ -e vit_jax/launch/worker.sh ]; then
bash vit_jax/launch/worker.sh stop ${GRACE:-120}; fi"
fi
if [[ ${DELETE:-0} == 1 ]]; then
  delete_tpu
fi
