#!/usr/bin/env bash
# One machine, all its GPUs.
# usage: [NPROC=8] bash launch/train_single_node.sh CONFIG.yaml [key=value ...]
set -euo pipefail
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --standalone --nproc-per-node "${NPROC:-gpu}" -m la4vla.train "$@"
