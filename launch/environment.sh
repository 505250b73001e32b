# shellcheck shell=bash
# Sourced by the training launchers: what every rank gets, unless you export your own.
# HF_HUB_OFFLINE: ranks never download (la4vla.train says so too); stage weights first, or export HF_HUB_OFFLINE=0.
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT: seconds that ranks get to save after a SIGTERM, two or three steps later. torchrun's own
# default is 30, and a torch before 2.12 knows no other: there, make checkpoint.every_steps small.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-290}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/torchrun" ]; then export PATH="$here/.venv/bin:$PATH"; fi

# NPROC, or one rank a GPU; torchrun would end in a traceback where there is none.
ranks_of_a_machine() {
  if [ -z "${NPROC:-}" ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && ! [ -e /dev/kfd ] && ! [ -e /dev/dxg ]; then
    echo "error: $(hostname) has no GPU; say how many ranks to start: NPROC=2 bash launch/..." >&2
    return 2
  fi
  echo "${NPROC:-gpu}"
}
