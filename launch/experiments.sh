#!/usr/bin/env bash
# The comparison: DAWM and its rivals with five seeds, on Hopper and Walker2d medium, then a report.
#
#   bash launch/experiments.sh                     the quick variant, into runs/comparison
#   bash launch/experiments.sh FOLDER              elsewhere
#   VARIANT=medium bash launch/experiments.sh      the full protocol, for a GPU
#   TASKS="hopper walker2d halfcheetah", SEEDS=10
#   DATASET=dawm/TASK/medium-v0                    other data of each task; TASK is its name
#
# Every setting is configs/common.py's, the same for all tasks, fixed before any evaluation. Runs
# that are done are skipped and stopped ones go on. Models that two methods train alike (the same
# data, settings and root seed) are trained once and copied.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
folder=${1:-runs/comparison}
variant=${VARIANT:-medium,quick}

train() { # NAME FLAGS...: one run of the current task
  local workdir=$folder/$task-$1
  shift
  if [ ! -e "$workdir/results.json" ]; then
    .venv/bin/python -m dawm_jax.main --config="configs/$task.py:$variant" \
      ${DATASET:+--config.dataset="${DATASET//TASK/$task}"} \
      --config.num_seeds="${SEEDS:-5}" --workdir="$workdir" "$@"
  fi
}

borrow() { # TO FROM STAGES...: another run's trained models, unless it has its own
  local to=$folder/$task-$1/checkpoints from=$folder/$task-$2/checkpoints
  shift 2
  mkdir -p "$to"
  for stage in "$@"; do
    [ -e "$to/$stage" ] || cp -r "$from/$stage" "$to/$stage"
  done
}

for task in ${TASKS:-hopper walker2d}; do
  train dawm-td3_bc
  borrow dawm-iql dawm-td3_bc world_model inverse_dynamics
  train dawm-iql --config.agent=iql

  for agent in td3_bc iql; do
    borrow dawm-generated-$agent dawm-td3_bc world_model inverse_dynamics
    train dawm-generated-$agent --config.agent=$agent --config.training.real_fraction=0.0

    borrow dwm-$agent dawm-td3_bc world_model
    train dwm-$agent --config.method=dwm --config.agent=$agent
  done

  train joint-td3_bc --config.method=joint
  borrow joint-iql joint-td3_bc world_model
  train joint-iql --config.method=joint --config.agent=iql

  train one_step-td3_bc --config.method=one_step
  borrow one_step-iql one_step-td3_bc world_model policy
  train one_step-iql --config.method=one_step --config.agent=iql

  borrow decision_diffuser dawm-td3_bc inverse_dynamics
  train decision_diffuser --config.method=decision_diffuser

  for agent in td3_bc iql bc; do
    train real-$agent --config.agent=$agent --config.training.real_fraction=1.0
  done
  for share in 0.1 0.25 0.5; do
    train real-bc-$share --config.agent=bc --config.training.real_fraction=1.0 \
      --config.top_fraction=$share
  done
done
.venv/bin/python -m dawm_jax.report "$folder" --out="$folder/report"
