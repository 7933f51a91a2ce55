#!/usr/bin/env bash
# Shows the log of a worker, or of all.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_logs.sh
#
# Variables: see common.sh; WORKER (0; a number or 'all'), LINES_SHOWN (50),
# FOLLOW=1 keeps following; DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

if [[ ${FOLLOW:-0} == 1 ]]; then
  on_workers "${WORKER:-0}" \
    "tail -n ${LINES_SHOWN:-50} -F vit_jax_run/log"
else
  worker "${WORKER:-0}" logs "${LINES_SHOWN:-50}"
fi
