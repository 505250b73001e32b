#!/usr/bin/env bash
# Several machines: run the same line on each of them, in any order.
# usage: NNODES=2 HEAD=host:29500 [NPROC=8] [RUN_ID=name] bash launch/train_multi_node.sh CONFIG.yaml [key=value ...]
# HEAD is one of the machines, reachable from all. Network interfaces are chosen by NCCL and gloo unless you
# export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (both: numbers of the host go over gloo).
set -euo pipefail
: "${NNODES:?how many machines}" "${HEAD:?host:port of one of them}"
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
ranks=$(ranks_of_a_machine)
exec torchrun --nnodes "$NNODES" --nproc-per-node "$ranks" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${RUN_ID:-la4vla}" -m la4vla.train "$@"
