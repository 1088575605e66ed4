#!/usr/bin/env bash
# Installs the package and its development tools into .venv. A second call changes nothing.
#
#   bash launch/setup.sh
#   EXTRAS=cuda bash launch/setup.sh                 more extras of pyproject.toml: cuda,torch
#   PYTHON=/path/to/python3.12 bash launch/setup.sh  another interpreter, 3.11 or newer
set -euo pipefail
case ${1:-} in
  --help | -h)
    sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
    exit
    ;;
  ?*)
    echo "setup.sh: unknown argument $1: expected none; see --help" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup.sh: expected Python 3.11 or newer, got $("$python" --version); set PYTHON=/path/to/python3.12" >&2
  exit 1
fi
stamp=.venv/installed-$(cat pyproject.toml <(echo "${EXTRAS:-}") | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev${EXTRAS:+,$EXTRAS}]"
  touch "$stamp"
fi
