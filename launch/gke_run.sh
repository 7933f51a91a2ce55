#!/usr/bin/env bash
# Runs training as a JobSet on a GKE cluster with TPU node pools (v4 and newer;
# for v3, which xpk does not know, use the tpu_*.sh scripts).
#
#   JOB_NAME=vit-l16 IMAGE=REGISTRY/vit_jax:TAG TOPOLOGY=4x8 \
#   GKE_ACCELERATOR=tpu-v5-lite-podslice launch/gke_run.sh \
#     --config=configs/vit_l16_i21k.py --workdir=gs://BUCKET/vit_l16_i21k
#
# The image needs this repository, installed with `pip install '.[tpu]'`, and
# configs/ in its working directory. kubectl must point at a cluster that has
# JobSet. Variables, with their defaults: TOPOLOGY (of one slice, in chips),
# SLICES (1), CHIPS_PER_HOST (4), GKE_ACCELERATOR (tpu-v4-podslice,
# tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice), SERVICE_ACCOUNT
# (default), RETRIES (20), NAMESPACE (default), DRY_RUN=1 (prints the manifest
# and the command).
#
#   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=JOB_NAME --all-containers
#   kubectl get jobset JOB_NAME
#   kubectl delete jobset JOB_NAME
#
# With xpk, which makes the cluster and builds the image from this directory:
#   xpk cluster create --cluster=C --tpu-type=v5litepod-32 --num-slices=1 --spot
#   xpk workload create --cluster=C --workload=vit-l16 --tpu-type=v5litepod-32 \
#     --base-docker-image=IMAGE --script-dir=. --max-restarts=20 \
#     --command='python -m vit_jax.main --config=... --workdir=gs://...'
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need JOB_NAME 'the name of the JobSet' vit-l16
need IMAGE 'the container image' REGISTRY/vit_jax:TAG
need TOPOLOGY 'the chips of a slice' 4x8
need GKE_ACCELERATOR 'the node label' tpu-v5-lite-podslice
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'

[[ $TOPOLOGY =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
  die "TOPOLOGY=$TOPOLOGY is not a grid of chips such as 4x8 or 4x4x4"
chips=$((${TOPOLOGY//x/*}))
per_host=${CHIPS_PER_HOST:-4}
((chips % per_host == 0)) ||
  die "TOPOLOGY=$TOPOLOGY has $chips chips, not a multiple of" \
    "CHIPS_PER_HOST=$per_host"

# A YAML flow list of single-quoted strings.
args=
for arg in "$@"; do
  args+="${args:+, }'${arg//\'/\'\'}'"
done

manifest=$(<"$ROOT/launch/gke_jobset.yaml")
fill() { manifest=${manifest//"@$1@"/"$2"}; }
fill JOB_NAME "$JOB_NAME"
fill RETRIES "${RETRIES:-20}"
fill SLICES "${SLICES:-1}"
fill HOSTS "$((chips / per_host))"
fill SERVICE_ACCOUNT "${SERVICE_ACCOUNT:-default}"
fill GKE_ACCELERATOR "$GKE_ACCELERATOR"
fill TOPOLOGY "$TOPOLOGY"
fill IMAGE "$IMAGE"
fill CHIPS_PER_HOST "$per_host"
fill ARGS "[$args]"

if [[ $DRY_RUN == 1 ]]; then printf '%s\n' "$manifest"; fi
run kubectl apply --namespace="${NAMESPACE:-default}" --filename=- \
  <<<"$manifest"
