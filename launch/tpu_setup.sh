#!/usr/bin/env bash
# Installs vit_jax on every worker of a slice and checks versions and devices.
#
#   TPU_NAME=vit-jax ZONE=europe-west4-a launch/tpu_setup.sh
#
# Python 3.11 or newer is installed with uv, or else from the deadsnakes
# archive. Variables, besides those of common.sh: PYTHON_VERSION (3.11),
# DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_tpu

# The first connection copies the ssh key to the workers, one after another.
on_workers all true
sync_code
on_workers all "PYTHON_VERSION=${PYTHON_VERSION:-3.11} \
bash vit_jax/launch/worker.sh setup"
worker all check
