#!/usr/bin/env bash
# Submits training to SLURM: NODES x GPUS processes, one per GPU.
#
#   NODES=2 GPUS=8 launch/slurm_run.sh \
#     --config=configs/deit_i1k.py:b16 --workdir=/shared/deit_b16
#
# Variables: NODES (1), GPUS per node (8), PYTHON (the virtual environment's,
# default python), SBATCH_FLAGS (e.g. '--partition=gpu --account=x'),
# RETRIES (20), DRY_RUN=1. The environment has vit_jax with the extra `cuda`.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'
nodes=${NODES:-1}
gpus=${GPUS:-8}
read -ra more <<<"${SBATCH_FLAGS:-}"

run sbatch --nodes="$nodes" --ntasks="$((nodes * gpus))" \
  --ntasks-per-node="$gpus" --chdir="$ROOT" \
  --export="ALL,PYTHON=${PYTHON:-python},RETRIES=${RETRIES:-20}" \
  ${more[@]+"${more[@]}"} "$ROOT/launch/slurm.sbatch" "$@"
