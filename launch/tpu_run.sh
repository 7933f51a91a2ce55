#!/usr/bin/env bash
# Copies the committed code to every worker, starts training in the background,
# and shows the log of worker 0. Ending this script does not stop the training.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_run.sh \
#     --config=configs/vit_b16_i21k.py --workdir=gs://BUCKET/vit_b16_i21k
#
# The arguments are those of vit_jax.main. All workers must share the workdir.
# The workers get a random token, by which the processes of the job know each
# other. Variables, besides those of common.sh: FOLLOW=0 (does not show the
# log), RUN_ENV (environment of the training, such as
# 'LIBTPU_INIT_ARGS=--xla_x=1 B=2'), DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'

sync_code
token=$(quote "${VIT_JAX_JOB_TOKEN:-$(job_token)}")
environment="VIT_JAX_JOB_TOKEN=$token ${RUN_ENV:-}"
on_workers all \
  "env $environment bash vit_jax/launch/worker.sh start $(quote "$@")"
if [[ ${FOLLOW:-1} == 1 ]]; then
  FOLLOW=1 "$ROOT/launch/tpu_logs.sh"
fi
