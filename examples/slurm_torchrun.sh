#!/usr/bin/env bash
#SBATCH --job-name=featurize
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#
# Features by torchrun on several nodes: one agent a node, which starts a worker for each GPU. If one
# dies, torchrun starts all of them again, up to three times. From the folder of your job:
#
#     JOB=jobs.py:digits STORE=/scratch/run.zarr sbatch slurm_torchrun.sh
#
# Without SLURM, run the torchrun line on every node, with HOST set to the name of the first.
set -euo pipefail

JOB="${JOB:-trakstore.cli.demo:digits}" # file.py:name or package.module:name
STORE="${STORE:-run.zarr}"              # seen by all nodes: a shared folder, or s3://bucket/run.zarr
WORKERS="${WORKERS:-4}"                 # of each node: its GPUs
HOST="${HOST:-$(hostname)}"             # this script runs on the first node
PORT="${PORT:-29500}"

# only the agents talk to each other, at HOST; the workers share nothing but the store
srun torchrun --nnodes "${SLURM_NNODES:-1}" --nproc-per-node "$WORKERS" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$HOST:$PORT" --rdzv-id "${SLURM_JOB_ID:-0}" \
  -m trakstore featurize "$JOB" --store "$STORE"
trakstore info "$STORE"
