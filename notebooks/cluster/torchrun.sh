#!/usr/bin/env bash
# One training over several machines, started by hand: run this on each of them, in the repository.
#
#   NODES=2 GPUS=8 HEAD=node0 bash notebooks/cluster/torchrun.sh '{"profile": "llama2-7b", "method": "full"}'
#
# HEAD is the name or address of one of the machines, the same on all. Each must see the same files at the same place
# (repository, environment, models, runs), or have its own copy of model and data; the results are written on HEAD.
set -euo pipefail

: "${HEAD:?set HEAD to the name of one of the machines}"
settings=${1:?give the settings as JSON, such as '{"profile": "llama2-7b", "method": "full"}'}

exec "${VENV:-.venv}/bin/torchrun" \
  --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${JOB:-fine-tuning}" \
  notebooks/cluster/train.py "$settings" --evaluate
