#!/usr/bin/env bash
# SLURM: one task a node, torchrun starts the ranks. Five minutes before its end the job is told and saves; submitted
# again (or requeued after a preemption) it goes on from there. Where one node fails, all end.
# usage, from the checkout: sbatch --nodes 2 --gpus-per-node 8 launch/train_slurm.sh CONFIG.yaml [key=value ...]
#SBATCH --job-name=la4vla
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of its own, or a second job with the same head node would join the first one's.
export NNODES="$SLURM_NNODES" HEAD="$head:$((20000 + SLURM_JOB_ID % 20000))" RUN_ID="$SLURM_JOB_ID" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --kill-on-bad-exit=1 bash launch/train_multi_node.sh "$@"
