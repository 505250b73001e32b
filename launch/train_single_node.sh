#!/usr/bin/env bash
# One machine, all its GPUs.
# usage: [NPROC=8] bash launch/train_single_node.sh CONFIG.yaml [key=value ...]
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
ranks=$(ranks_of_a_machine)
exec torchrun --standalone --nproc-per-node "$ranks" -m la4vla.train "$@"
