#!/usr/bin/env bash
# Installs the package into .venv if needed (see launch/setup.sh), then trains.
#
#   bash launch/run.sh --config=configs/hopper.py:quick
#
# All arguments go to dawm_jax.main. After the installation its flags are printed by
#   .venv/bin/python -m dawm_jax.main --help
set -euo pipefail
case ${1:-} in
  --help | -h)
    sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
    exit
    ;;
  '')
    echo "run.sh: expected flags of dawm_jax.main, e.g. --config=configs/hopper.py:quick; see --help" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
bash launch/setup.sh
exec .venv/bin/python -m dawm_jax.main "$@"
