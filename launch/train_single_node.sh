#!/usr/bin/env bash
# One machine, all its GPUs.
# usage: [NPROC=8] bash launch/train_single_node.sh CONFIG.yaml [key=value ...]
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
exec torchrun --standalone --nproc-per-node "${NPROC:-gpu}" -m la4vla.train "$@"
