#!/usr/bin/env bash
# Trains on a Cloud TPU slice, with the gcloud command:
#
#   bash launch/tpu.sh create NAME                  asks for a slice and waits until it is there
#   bash launch/tpu.sh run NAME --config=... ...    sends this source and trains on all its hosts
#   bash launch/tpu.sh fetch NAME FOLDER            copies the runs into FOLDER
#   bash launch/tpu.sh delete NAME
#   bash launch/tpu.sh --dry_run ACTION NAME ...    prints the commands
#
# The committed source is sent. A second `run` resumes. A spot slice that was taken away is deleted
# and created anew.
#
# Variables:
#   TPU_TYPE=v6e-8, TPU_ZONE=us-east5-b, TPU_RUNTIME=v2-alpha-tpuv6e
#   TPU_PRICE=--spot         empty: on demand
#   TPU_RUNS=/var/dawm_jax/runs    folder of the runs on the hosts; the hosts of one slice must
#                                  share it, for example as a mounted bucket
set -euo pipefail
TPU_ZONE=${TPU_ZONE:-us-east5-b}
TPU_TYPE=${TPU_TYPE:-v6e-8}
TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv6e} # v5e: v2-alpha-tpuv5-lite, v5p: v2-alpha-tpuv5
TPU_PRICE=${TPU_PRICE---spot}
TPU_RUNS=${TPU_RUNS:-/var/dawm_jax/runs}

fail() { # CODE MESSAGE
  echo "tpu.sh: $2" >&2
  exit "$1"
}

dry_run=
case ${1:-} in
  --help | -h)
    sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
    exit
    ;;
  --dry_run)
    dry_run=yes
    shift
    ;;
esac
if [ $# -lt 2 ]; then
  fail 2 "expected an action (create, run, fetch, delete) and a name; see --help"
fi
action=$1 name=$2
shift 2
case $action in
  create | delete) [ $# = 0 ] || fail 2 "unknown argument $1: $action takes a name only" ;;
  fetch) [ $# = 1 ] || fail 2 "expected a name and a folder, got $((1 + $#)) arguments" ;;
  run) [ $# -gt 0 ] || fail 2 "expected flags of dawm_jax.main, e.g. --config=configs/hopper.py" ;;
  *) fail 2 "unknown action $action: expected create, run, fetch or delete" ;;
esac
case $name in
  -*) fail 2 "unknown argument $name: expected the slice's name" ;;
esac
cd "$(dirname "$0")/.."

tpus() { # ARGUMENTS...: of gcloud compute tpus
  local command=(gcloud compute tpus "$@" --zone="$TPU_ZONE")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

wait_until_active() {
  local state
  while true; do
    state=$(tpus queued-resources describe "$name" --format='value(state.state)') ||
      fail 1 "the state of $name is unknown: gcloud failed; see its message"
    echo "$state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED)
        fail 1 "the slice was not granted ($state); delete $name and create it again"
        ;;
    esac
    sleep "${TPU_POLL_SECONDS:-30}"
  done
}

case $action in
  create)
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$TPU_TYPE" \
      --runtime-version="$TPU_RUNTIME" ${TPU_PRICE:+"$TPU_PRICE"}
    [ -n "$dry_run" ] || wait_until_active
    ;;
  run)
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    git archive --format=tar.gz --output="$source/dawm_jax.tar.gz" HEAD
    tpus tpu-vm scp "$source/dawm_jax.tar.gz" "$name:" --worker=all
    # The image has its own Python: that of the hosts is older than 3.11. The hosts' shell reads
    # this command, hence %q.
    volume=$(printf '%q' "--volume=$TPU_RUNS:/dawm_jax/runs")
    arguments=$(printf '%q ' "$@")
    tpus tpu-vm ssh "$name" --worker=all --command="set -e
mkdir -p dawm_jax && tar -xzf dawm_jax.tar.gz -C dawm_jax
sudo docker build --quiet --tag=dawm_jax --file=dawm_jax/launch/Dockerfile.tpu dawm_jax
sudo docker run --rm --privileged --net=host --stop-timeout=100 $volume dawm_jax $arguments"
    ;;
  fetch)
    [ -n "$dry_run" ] || mkdir -p "$1"
    tpus tpu-vm scp "$name:$TPU_RUNS" "$1" --recurse --worker=0
    ;;
  delete)
    tpus queued-resources delete "$name" --force --quiet
    ;;
esac
