#!/usr/bin/env bash
# Trains DAWM and the baselines on Hopper and Walker2d medium, five seeds each, and writes a report.
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
# are trained once and copied (--models_from).
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
if ! [[ $seeds =~ ^[1-9][0-9]{0,4}$ ]]; then
  echo "experiments.sh: SEEDS: expected a number of agents, at least 1, got $seeds" >&2
  exit 2
fi
for task in ${TASKS:-hopper walker2d}; do
  if [ ! -f "configs/$task.py" ]; then
    echo "experiments.sh: TASKS: expected tasks with a file in configs/, got $task" >&2
    exit 2
  fi
done
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

# Before the installation, as in a first --dry_run, any Python can look for finished runs.
python=.venv/bin/python
[ -x "$python" ] || python=python3

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
  if ! "$python" launch/_done.py "$workdir"; then
    run .venv/bin/python -m dawm_jax.main --config="configs/$task.py:$variant" \
      ${dataset:+--config.dataset="${dataset//TASK/$task}"} \
      --config.num_seeds="$seeds" --workdir="$workdir" "$@"
  fi
}

# The models of another run of the task, for `train`.
of() { echo "--models_from=$folder/$task-$1"; }

for task in ${TASKS:-hopper walker2d}; do
  train dawm-td3_bc
  train dawm-iql "$(of dawm-td3_bc)" --config.agent=iql
  for agent in td3_bc iql; do
    train "dawm-generated-$agent" "$(of dawm-td3_bc)" \
      --config.agent="$agent" --config.training.real_fraction=0.0
    train "dwm-$agent" "$(of dawm-td3_bc)" --config.method=dwm --config.agent="$agent"
    train "dwm-published-$agent" "$(of dawm-td3_bc)" \
      --config.method=dwm --config.agent="$agent" --config.training.real_fraction=0.0
  done

  train joint-td3_bc --config.method=joint
  train joint-iql "$(of joint-td3_bc)" --config.method=joint --config.agent=iql
  train joint-generated-td3_bc "$(of joint-td3_bc)" \
    --config.method=joint --config.training.real_fraction=0.0

  train one_step_cloned-td3_bc --config.method=one_step_cloned
  train one_step_cloned-iql "$(of one_step_cloned-td3_bc)" \
    --config.method=one_step_cloned --config.agent=iql
  for agent in td3_bc iql; do
    train "one_step-$agent" "$(of one_step_cloned-td3_bc)" \
      --config.method=one_step --config.agent="$agent"
    train "one_step-published-$agent" "$(of one_step_cloned-td3_bc)" \
      --config.method=one_step --config.agent="$agent" --config.training.real_fraction=0.0
  done

  train decision_diffuser "$(of dawm-td3_bc)" --config.method=decision_diffuser

  for agent in td3_bc iql bc; do
    train "real-$agent" --config.agent="$agent" --config.training.real_fraction=1.0
  done
  train real-bc-0.1 --config.agent=bc --config.training.real_fraction=1.0 --config.top_fraction=0.1
done
run .venv/bin/python -m dawm_jax.report "$folder" --out="$folder/report"
