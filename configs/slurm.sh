#!/bin/bash
# Trains on two machines with eight GPUs each: sbatch configs/slurm.sh pets.yaml
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
# SIGTERM five minutes before the end: the run saves a checkpoint and can be resumed.
#SBATCH --signal=TERM@300

set -euo pipefail
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Restarted processes find each other only without torch's shared store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" \
  -m finetune train --config "$1"
