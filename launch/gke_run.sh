#!/usr/bin/env bash
# Runs training as a JobSet on a GKE cluster with TPU node pools (v4 and newer;
# for v3, which xpk does not know, use the tpu_*.sh scripts).
#
#   JOB_NAME=vit-l16 IMAGE=REGISTRY/vit_jax:TAG ACCELERATOR=v5e-32 SPOT=1 \
#   launch/gke_run.sh \
#     --config=configs/vit_l16_i21k.py --workdir=gs://BUCKET/vit_l16_i21k
#
# launch/Dockerfile makes the image. kubectl must point at a cluster that has
# JobSet. ACCELERATOR is a name of accelerators.txt, or set TOPOLOGY (of one
# slice, in chips), GKE_ACCELERATOR (tpu-v4-podslice, tpu-v5-lite-podslice,
# tpu-v5p-slice or tpu-v6e-slice) and CHIPS_PER_HOST (4). Other variables, with
# their defaults: SLICES (1), SPOT=1 (nodes of spot capacity), SERVICE_ACCOUNT
# (default), RETRIES (20), STOP_ON_ERROR (1: exit code 1 ends the job, 0: it
# also restarts), NAMESPACE (default), DRY_RUN=1 (prints the manifest and the
# command).
#
# Exit code 3, preempted after saving, restarts all pods, and they resume; so
# does the loss of a node. Exit code 1 is an error that a restart would repeat.
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
with_accelerator=${ACCELERATOR:-}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ -n $with_accelerator ]]; then
  line=$(accelerator "$ACCELERATOR") ||
    die "ACCELERATOR=$ACCELERATOR is no slice that is known: one of" \
      "$(names_like "$ACCELERATOR")"
  read -r _ _ TOPOLOGY _ CHIPS_PER_HOST _ GKE_ACCELERATOR <<<"$line"
  [[ $GKE_ACCELERATOR != - ]] ||
    die "GKE has no $ACCELERATOR: use the tpu_*.sh scripts"
fi
need JOB_NAME 'the name of the JobSet' vit-l16
need IMAGE 'the container image' REGISTRY/vit_jax:TAG
need TOPOLOGY 'the chips of a slice (or set ACCELERATOR)' 4x8
need GKE_ACCELERATOR 'the node label (or set ACCELERATOR)' \
  tpu-v5-lite-podslice
[[ $# -gt 0 ]] || die 'no flags for vit_jax.main: --config=... --workdir=...'

[[ $TOPOLOGY =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
  die "TOPOLOGY=$TOPOLOGY is not a grid of chips such as 4x8 or 4x4x4"
awk -v label="$GKE_ACCELERATOR" -v grid="$TOPOLOGY" '
  $7 == label { labels[$3] = 1; known = known " " $3 }
  END { if (!(grid in labels)) {
    print "error: TOPOLOGY=" grid " is no slice of " label \
      (known == "" ? ", which is unknown" : "; known:" known)
    exit 1 } }' "$ROOT/launch/accelerators.txt" >&2
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
token=${VIT_JAX_JOB_TOKEN:-$(job_token)}
fill TOKEN "${token//\'/\'\'}"
fill ARGS "[$args]"

# without NAME: takes the lines out that belong to a feature that is not used,
# and leaves out the marks of the others.
without() { manifest=$(sed "/# BEGIN $1/,/# END $1/d" <<<"$manifest"); }
if [[ ${SPOT:-0} != 1 ]]; then without SPOT; fi
if [[ ${STOP_ON_ERROR:-1} != 1 ]]; then without STOP_ON_ERROR; fi
manifest=$(grep -vE '# (BEGIN|END) [A-Z_]+$' <<<"$manifest")

if [[ $DRY_RUN == 1 ]]; then printf '%s\n' "$manifest"; fi
run kubectl apply --namespace="${NAMESPACE:-default}" --filename=- \
  <<<"$manifest"
