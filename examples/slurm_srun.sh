#!/usr/bin/env bash
#SBATCH --job-name=featurize
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#
# Features by srun: 16 workers on 4 nodes, each with the GPU of its number on its node. From the
# folder of your job:
#
#     JOB=jobs.py:digits STORE=/scratch/run.zarr sbatch slurm_srun.sh
set -euo pipefail

JOB="${JOB:-trakstore.cli.demo:digits}" # file.py:name or package.module:name
STORE="${STORE:-run.zarr}"              # seen by all nodes: a shared folder, or s3://bucket/run.zarr

# workers tell their rank from SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, and never wait for each
# other: a worker that dies need not take the rest with it, and info tells what is missing
status=0
srun --kill-on-bad-exit=0 trakstore featurize "$JOB" --store "$STORE" || status=$?
trakstore info "$STORE"
exit "$status"
