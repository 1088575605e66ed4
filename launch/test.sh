#!/usr/bin/env bash
# Installs if needed, then checks style and types and runs the tests.
# Arguments go to pytest: bash launch/test.sh -m ''   also runs the slow ones.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses="${TEST_PROCESSES:-2}" --dist=loadfile "$@"
