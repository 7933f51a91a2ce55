#!/usr/bin/env bash
# Sends the committed code to every worker, starts training there detached,
# and follows worker 0's log (leaving it does not stop the training).
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_run.sh \
#     --config=configs/vit_b16_i21k.py --workdir=gs://BUCKET/vit_b16_i21k
#
# The arguments go to vit_jax.main; the workdir must be one that all workers
# share. Variables: see common.sh; FOLLOW=0 returns at once; RUN_ENV (e.g.
# 'LIBTPU_INIT_ARGS=--xla_x=1 B=2'); DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'

sync_code
on_workers all \
  "env ${RUN_ENV:-} bash vit_jax/launch/worker.sh start $(quote "$@")"
if [[ ${FOLLOW:-1} == 1 ]]; then
  FOLLOW=1 "$ROOT/launch/tpu_logs.sh"
fi
