#!/usr/bin/env bash
# A Cloud TPU slice, from its queued resource to its results:
#   bash launch/tpu.sh create NAME                  ask for it and wait until it is there
#   bash launch/tpu.sh run NAME --config=... ...    send this source and train on all its hosts
#   bash launch/tpu.sh fetch NAME FOLDER            copy the runs into FOLDER
#   bash launch/tpu.sh delete NAME
# `run` can be repeated: it resumes. A spot slice that was taken away is deleted and created anew.
# The hosts keep the runs in TPU_RUNS; those of a slice of several hosts must share that folder,
# a mounted bucket for example. --dry_run as the first argument prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
TPU_ZONE=${TPU_ZONE:-us-east5-b}
TPU_TYPE=${TPU_TYPE:-v6e-8}
TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv6e} # v5e: v2-alpha-tpuv5-lite, v5p: v2-alpha-tpuv5
TPU_PRICE=${TPU_PRICE:---spot}              # empty: on demand
TPU_RUNS=${TPU_RUNS:-/var/dawm_jax/runs}

dry=
if [ "${1:-}" = --dry_run ]; then
  dry=yes
  shift
fi
if [ $# -lt 2 ]; then
  echo "launch: expected create, run, fetch or delete, and a name; see the head of $0" >&2
  exit 2
fi
action=$1 name=$2
shift 2

do_() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}
tpus() {
  do_ gcloud compute tpus "$@" --zone="$TPU_ZONE"
}

case $action in
  create)
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$TPU_TYPE" \
      --runtime-version="$TPU_RUNTIME" ${TPU_PRICE:+"$TPU_PRICE"}
    while state=$(tpus queued-resources describe "$name" --format='value(state.state)'); do
      echo "$state"
      case $state in
        ACTIVE | gcloud*) break ;;
        FAILED | SUSPENDED)
          echo "launch: the slice was not granted; delete $name and create it again" >&2
          exit 1
          ;;
      esac
      sleep "${TPU_POLL_SECONDS:-30}"
    done
    ;;
  run)
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    git archive --format=tar.gz --output="$source/dawm_jax.tar.gz" HEAD
    tpus tpu-vm scp "$source/dawm_jax.tar.gz" "$name:" --worker=all
    # The hosts' own Python is older than this package's; the image has its own.
    tpus tpu-vm ssh "$name" --worker=all --command="set -e
mkdir -p dawm_jax && tar -xzf dawm_jax.tar.gz -C dawm_jax
sudo docker build --quiet --tag=dawm_jax --file=dawm_jax/launch/Dockerfile.tpu dawm_jax
sudo docker run --rm --privileged --net=host --stop-timeout=100 --volume=$TPU_RUNS:/dawm_jax/runs \
dawm_jax $(printf '%q ' "$@")"
    ;;
  fetch)
    do_ mkdir -p "$1"
    tpus tpu-vm scp "$name:$TPU_RUNS" "$1" --recurse --worker=0
    ;;
  delete)
    tpus queued-resources delete "$name" --force --quiet
    ;;
  *)
    echo "launch: unknown action $action: expected create, run, fetch or delete" >&2
    exit 2
    ;;
esac
