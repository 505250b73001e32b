# shellcheck shell=bash
# Sourced by the training launchers: what every rank gets, unless you export your own.
# HF_HUB_OFFLINE: ranks never download; stage weights first, or export HF_HUB_OFFLINE=0 to let them.
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT: seconds that ranks get to save after a SIGTERM (torchrun's own default is 30).
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/torchrun" ]; then export PATH="$here/.venv/bin:$PATH"; fi
