#!/usr/bin/env bash
# Installs if needed, then trains: bash launch/run.sh --config=configs/hopper.py:quick
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
exec .venv/bin/python -m dawm_jax.main "$@"
