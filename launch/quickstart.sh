#!/usr/bin/env bash
# The main job on a laptop: MetaWorld demonstrations -> language-action clips -> mixpt pretraining -> finetuning ->
# success on held-out initial states -> runs/quickstart/report.html. Two CPU cores and 10 minutes after the
# installation. Every part resumes: run it again after an interruption and it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh metaworld
# On the CPU, GPUs or not: two processes on every machine, and numbers that compare.
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=

SECONDS=0
run=runs/quickstart
part() { printf '\n[%s] %s\n' "$1" "$2"; }

part 1/5 "Record demonstrations and cut them into clips"
python -m la4vla.construct configs/quickstart/construct.yaml

part 2/5 "Pretrain on clips with and without vision"
torchrun --standalone --nproc-per-node 2 -m la4vla.train configs/quickstart/pretrain.yaml

part 3/5 "Finetune on whole demonstrations"
torchrun --standalone --nproc-per-node 2 -m la4vla.train configs/quickstart/finetune.yaml

part 4/5 "Evaluate on held-out initial states, trained and untrained"
la4vla eval metaworld --checkpoint $run/finetune --protocol metaworld/quickstart-v1 --out $run/eval/trained --videos 1
la4vla eval metaworld --checkpoint $run/finetune --untrained --protocol metaworld/quickstart-v1 --out $run/eval/untrained

# `python docs/results/make.py runs/quickstart` takes the report over into README: table, image and numbers of one run.
part 5/5 "Report"
la4vla eval report $run
printf '\ndone in %d min %02d s; open %s/report.html\n' $((SECONDS / 60)) $((SECONDS % 60)) "$run"
