#!/usr/bin/env bash
# Make .venv and install la4vla into it.   usage: bash launch/install.sh [extras, default: metaworld]
# Also sees to what pip cannot bring: Python's venv module and the GL libraries that render without a screen. Through
# apt where this user may, otherwise it prints the one line to run.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-metaworld}"
python="${PYTHON:-python3}"

apt() { # what for, packages ...
  local reason="$1"
  shift
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: $reason; run: sudo apt-get install $*" >&2
    exit 2
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: \`$python\` is not Python 3.11 or newer; set PYTHON to one that is." >&2
  exit 2
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt "Python's venv module is missing" python3-venv

stamp=".venv/installed-$extras"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
  .venv/bin/pip install --quiet --upgrade pip
  # setuptools warns at length about editable installs in general
  PYTHONWARNINGS=ignore .venv/bin/pip install --quiet --editable ".[$extras]"
  touch "$stamp"
fi

if ! .venv/bin/python -m la4vla.sim.render 2>/dev/null; then
  apt "nothing renders without a screen" libegl1 libgl1-mesa-dri
  .venv/bin/python -m la4vla.sim.render
fi

case ",$extras," in
  *,dev,*) command -v chromium google-chrome >/dev/null || apt "the review page is tested in a browser" chromium ;;
esac
