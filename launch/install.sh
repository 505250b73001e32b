#!/usr/bin/env bash
# Make .venv and install la4vla into it.   usage: bash launch/install.sh [extras, default: metaworld]
# Also sees to what pip cannot bring: Python's venv module, the GL libraries that render without a screen, and for LIBERO a
# compiler and what its OpenCV links to. Through apt where this user may, otherwise it prints the one line to run.
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

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  echo "error: \`$python\` is not Python 3.11, 3.12 or 3.13; set PYTHON to one that is." >&2
  exit 2
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt "Python's venv module is missing" python3-venv

simulates=false builds=false tests=false
case ",$extras," in *,metaworld,* | *,libero,* | *,dev,*) simulates=true ;; esac
case ",$extras," in *,libero,* | *,dev,*) builds=true ;; esac
case ",$extras," in *,dev,*) tests=true ;; esac

if $builds; then # two of LIBERO's dependencies have no wheels, and are written for cmake 2.8
  for tool in cmake make g++; do
    command -v "$tool" >/dev/null || { apt "LIBERO's dependencies are compiled" cmake make g++ && break; }
  done
  export CMAKE_POLICY_VERSION_MINIMUM=3.5
fi

stamp=".venv/installed-$extras"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
  .venv/bin/pip install --quiet --upgrade pip
  # setuptools warns at length about editable installs in general
  PYTHONWARNINGS=ignore .venv/bin/pip install --quiet --editable ".[$extras]"
  touch "$stamp"
fi

if $builds && ! .venv/bin/python -c 'import cv2' 2>/dev/null; then # LIBERO brings the OpenCV that has windows
  apt "OpenCV does not load" libgl1 libglib2.0-0
  .venv/bin/python -c 'import cv2'
fi

if $simulates && ! .venv/bin/python -m la4vla.sim.render 2>/dev/null; then
  apt "nothing renders without a screen" libegl1 libgl1-mesa-dri
  .venv/bin/python -m la4vla.sim.render
fi

if $tests && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  (apt "the review page is tested in a browser" chromium) || echo "note: without a browser its tests are skipped" >&2
fi
