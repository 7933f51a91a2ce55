#!/usr/bin/env bash
# Submits training to SLURM: NODES x GPUS processes, one per GPU.
#
#   NODES=2 GPUS=8 launch/slurm_run.sh \
#     --config=configs/deit_i1k.py:b16 --workdir=/shared/deit_b16
#
# Variables, with their defaults: NODES (1), GPUS (of a node, 8), PYTHON (of an
# environment with `pip install 'vit_jax[cuda]'`, python), SBATCH_FLAGS (such as
# '--partition=gpu --account=x'), RETRIES (20), DRY_RUN=1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'
nodes=${NODES:-1}
gpus=${GPUS:-8}
read -ra more <<<"${SBATCH_FLAGS:-}"

run sbatch --nodes="$nodes" --ntasks="$((nodes * gpus))" \
  --ntasks-per-node="$gpus" --chdir="$ROOT" \
  --export="ALL,PYTHON=${PYTHON:-python},RETRIES=${RETRIES:-20}" \
  ${more[@]+"${more[@]}"} "$ROOT/launch/slurm.sbatch" "$@"
