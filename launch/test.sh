#!/usr/bin/env bash
# Installs the package into .venv if needed, checks style and types, and runs the tests.
#
#   bash launch/test.sh
#   bash launch/test.sh -m ''              with the slow tests
#   TEST_PROCESSES=8 bash launch/test.sh   more processes than two
#
# All arguments go to pytest.
set -euo pipefail
case ${1:-} in
  --help | -h)
    sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
    exit
    ;;
esac
cd "$(dirname "$0")/.."
bash launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-cache
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses="${TEST_PROCESSES:-2}" --dist=loadfile "$@"
