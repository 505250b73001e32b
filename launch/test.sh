#!/usr/bin/env bash
# Everything that must pass before a change lands: format, lint, types, shell scripts, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh dev
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1

ruff check .
ruff format --check .
pyright
shellcheck -x launch/*.sh
pytest -m "" "$@"  # the `thorough` ones, too
