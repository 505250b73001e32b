#!/usr/bin/env bash
# SLURM: one task a node, torchrun starts the ranks. Two minutes before its end the job is told and saves; submitted
# again (or requeued after a preemption) it goes on from there.
# usage, from the checkout: sbatch --nodes 2 --gpus-per-node 8 launch/train_slurm.sh CONFIG.yaml [key=value ...]
#SBATCH --job-name=la4vla
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NNODES="$SLURM_NNODES" HEAD="$head:29500" RUN_ID="$SLURM_JOB_ID" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun bash launch/train_multi_node.sh "$@"
