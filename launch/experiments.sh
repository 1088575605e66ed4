#!/usr/bin/env bash
# Trains DAWM and its rivals on Hopper and Walker2d medium, five seeds each, and writes a report.
#
#   bash launch/experiments.sh FOLDER              the short variant, about nine hours on one CPU core
#   bash launch/experiments.sh FOLDER --dry_run    prints the commands
#
# Variables:
#   VARIANT=medium bash launch/experiments.sh ...  the full protocol, for a GPU (medium,quick)
#   TASKS="hopper walker2d halfcheetah"            tasks (hopper walker2d)
#   SEEDS=10                                       agents per run (5)
#   DATASET=dawm/TASK/medium-v1                    dataset of each task; TASK stands for its name
#
# The runs are in FOLDER/VARIANT. The command skips finished runs and resumes stopped ones; it
# refuses a folder whose runs have other seeds or datasets. Models that two methods train alike
# are trained once and copied.
set -euo pipefail
root='' dry_run=''
for argument in "$@"; do
  case $argument in
    --help | -h)
      sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
      exit
      ;;
    --dry_run) dry_run=yes ;;
    -*)
      echo "experiments.sh: unknown argument $argument: expected FOLDER or --dry_run" >&2
      exit 2
      ;;
    *)
      if [ -n "$root" ]; then
        echo "experiments.sh: unexpected argument $argument: the folder is $root" >&2
        exit 2
      fi
      root=$argument
      ;;
  esac
done
if [ -z "$root" ]; then
  echo "experiments.sh: expected a folder for the runs, e.g. runs/comparison; see --help" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
variant=${VARIANT:-medium,quick}
seeds=${SEEDS:-5}
dataset=${DATASET:-}
folder=$root/${variant//[^[:alnum:]]/-}
settings="variant=$variant seeds=$seeds dataset=$dataset"

if [ -e "$folder/settings.txt" ] && [ "$(cat "$folder/settings.txt")" != "$settings" ]; then
  echo "experiments.sh: $folder holds runs with $(cat "$folder/settings.txt"), not $settings: choose another folder" >&2
  exit 1
fi
if [ -z "$dry_run" ]; then
  bash launch/setup.sh
  mkdir -p "$folder"
  echo "$settings" >"$folder/settings.txt"
fi

run() { # COMMAND...
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

train() { # NAME FLAGS...: one run of the current task
  local workdir=$folder/$task-$1
  shift
  if [ ! -e "$workdir/results.json" ]; then
    run .venv/bin/python -m dawm_jax.main --config="configs/$task.py:$variant" \
      ${dataset:+--config.dataset="${dataset//TASK/$task}"} \
      --config.num_seeds="$seeds" --workdir="$workdir" "$@"
  fi
}

borrow() { # TO FROM STAGES...: copies trained models from another run of the task
  local to=$folder/$task-$1/checkpoints from=$folder/$task-$2/checkpoints stage
  shift 2
  for stage in "$@"; do
    if [ ! -e "$to/$stage" ] && [ -z "$dry_run" ]; then
      mkdir -p "$to"
      rm -rf "$to/.$stage.part"
      cp -r "$from/$stage" "$to/.$stage.part"
      mv "$to/.$stage.part" "$to/$stage"
    fi
  done
}

for task in ${TASKS:-hopper walker2d}; do
  train dawm-td3_bc
  borrow dawm-iql dawm-td3_bc world_model inverse_dynamics
  train dawm-iql --config.agent=iql

  for agent in td3_bc iql; do
    borrow "dawm-generated-$agent" dawm-td3_bc world_model inverse_dynamics
    train "dawm-generated-$agent" --config.agent="$agent" --config.training.real_fraction=0.0

    borrow "dwm-$agent" dawm-td3_bc world_model
    train "dwm-$agent" --config.method=dwm --config.agent="$agent"
  done

  train joint-td3_bc --config.method=joint
  borrow joint-iql joint-td3_bc world_model
  train joint-iql --config.method=joint --config.agent=iql
  borrow joint-generated-td3_bc joint-td3_bc world_model
  train joint-generated-td3_bc --config.method=joint --config.training.real_fraction=0.0

  train one_step-td3_bc --config.method=one_step
  borrow one_step-iql one_step-td3_bc world_model policy
  train one_step-iql --config.method=one_step --config.agent=iql

  borrow decision_diffuser dawm-td3_bc inverse_dynamics
  train decision_diffuser --config.method=decision_diffuser

  for agent in td3_bc iql bc; do
    train "real-$agent" --config.agent="$agent" --config.training.real_fraction=1.0
  done
  train real-bc-0.1 --config.agent=bc --config.training.real_fraction=1.0 --config.top_fraction=0.1
done
run .venv/bin/python -m dawm_jax.report "$folder" --out="$folder/report"
