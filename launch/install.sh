#!/usr/bin/env bash
# Make .venv and install la4vla into it.   usage: bash launch/install.sh [extras, default: metaworld]
# With the simulator extra it also sees to the GL libraries that render without a screen: through apt where this user
# may, otherwise it prints the one line to run.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-metaworld}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old; set PYTHON to a Python 3.11 or newer." >&2
  exit 2
}

stamp=".venv/installed-$extras"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  [ -d .venv ] || "$python" -m venv .venv
  .venv/bin/pip install --quiet --upgrade pip
  .venv/bin/pip install --quiet --editable ".[$extras]"
  touch "$stamp"
fi

gl_packages="libegl1 libgl1-mesa-dri libosmesa6"
if ! .venv/bin/python -m la4vla.sim.render >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $gl_packages >/dev/null
  else
    echo "error: no way to render without a screen; run: sudo apt-get install $gl_packages" >&2
    exit 2
  fi
fi
.venv/bin/python -m la4vla.sim.render
