# shellcheck shell=bash
# Sourced by the training launchers: what every rank gets, unless you export your own.
# HF_HUB_OFFLINE: ranks never download; stage weights first, or export HF_HUB_OFFLINE=0 to let them.
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT: seconds that ranks get to save after a SIGTERM, two or three steps later. torchrun's own
# default is 30, and a torch before 2.12 knows no other: there, make checkpoint.every_steps small.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-290}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/torchrun" ]; then export PATH="$here/.venv/bin:$PATH"; fi
