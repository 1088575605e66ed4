#!/usr/bin/env bash
# Makes .venv with the package and its development tools; a second call changes nothing.
# EXTRAS chooses extras beside dev: EXTRAS=cuda bash launch/run.sh ...
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "launch: expected Python 3.11 or newer, got $("$python" --version); set PYTHON=/path/to/python3.12" >&2
  exit 1
fi
stamp=.venv/installed-$(cat pyproject.toml <(echo "${EXTRAS:-}") | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev${EXTRAS:+,$EXTRAS}]"
  touch "$stamp"
fi
