#!/bin/bash
#SBATCH --job-name=nanochat-hf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# Runs one training script on all GPUs of several nodes. In the root of the repository, which is at the same path on all
# nodes, after `make setup`. The output folder may be shared, or on each node's own disk:
#     sbatch training/slurm.sh training/pretrain.py --config training/recipes/d26.yaml \
#         --tokenizer runs/d26/tokenizer --output_dir runs/d26/base
# The same command continues a job that ended early, from its newest checkpoint. Options of sbatch win over the lines
# above: sbatch --nodes=4 --time=08:00:00 training/slurm.sh … LAUNCH_OPTIONS adds options to the line of accelerate:
#     export LAUNCH_OPTIONS="--config_file training/accelerate_fsdp.yaml --parallelism_config_dp_replicate_size 2"
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
export HEAD_NODE LAUNCH_OPTIONS GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Single quotes: each node fills in its own SLURM_NODEID.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file accelerate_config.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port 29500 ${LAUNCH_OPTIONS:-} "$@"' launch "$@"
