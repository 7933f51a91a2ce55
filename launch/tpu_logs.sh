#!/usr/bin/env bash
# Shows the log of one worker, or of all workers.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_logs.sh
#
# Variables, besides those of common.sh: WORKER (a number or 'all', default 0),
# LINES_SHOWN (50), FOLLOW=1 (shows new lines as they come), DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

if [[ ${FOLLOW:-0} == 1 ]]; then
  on_workers "${WORKER:-0}" \
    "tail -n ${LINES_SHOWN:-50} -F vit_jax_run/log"
else
  worker "${WORKER:-0}" logs "${LINES_SHOWN:-50}"
fi
