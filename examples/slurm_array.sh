#!/usr/bin/env bash
#SBATCH --job-name=featurize
#SBATCH --array=0-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#
# Features by a SLURM array: every task is one worker with one GPU, starts when it gets one, and needs
# no other. From the folder of your job:
#
#     JOB=jobs.py:digits STORE=/scratch/run.zarr sbatch slurm_array.sh
#
# Tasks that are requeued, run out of time or fail are submitted again by the same line: blocks that
# were committed are not done again, and those of a lost task are done by the others.
set -euo pipefail

JOB="${JOB:-trakstore.cli.demo:digits}" # file.py:name or package.module:name
STORE="${STORE:-run.zarr}"              # seen by all nodes: a shared folder, or s3://bucket/run.zarr

# the rank and the number of workers are the array's: SLURM_ARRAY_TASK_ID and _COUNT
trakstore featurize "$JOB" --store "$STORE"
