#!/usr/bin/env bash
#SBATCH --job-name=score
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=02:00:00
#
# Scores and lists on a Dask cluster made by hand: the scheduler and the client on the first node, one
# worker on each. Under SLURM, and without it all on this machine:
#
#     STORE=/scratch/run.zarr sbatch dask_cluster.sh
#     STORE=run.zarr WORKERS=2 HOST=127.0.0.1 ./dask_cluster.sh
#
# A cluster that is there already (dask-jobqueue's SLURMCluster, dask-kubernetes, ...) needs only the
# last lines, with its scheduler_address. Whoever reaches the port can run code: on a network that is
# not yours alone, give scheduler, workers and client Dask's TLS settings.
set -euo pipefail

STORE="${STORE:-run.zarr}"                      # seen by all nodes: a shared folder, or s3://bucket/run.zarr
NAME="${NAME:-test-on-train}"                   # of the scores in the store
WORKERS="${WORKERS:-${SLURM_NTASKS:-1}}"        # processes in all
THREADS="${THREADS:-${SLURM_CPUS_PER_TASK:-1}}" # of each worker
MEMORY="${MEMORY:-0.9}"                         # of each worker: a size, or a share of the node's
HOST="${HOST:-$(hostname)}"                     # this script runs on the first node
PORT="${PORT:-8786}"
address="tcp://$HOST:$PORT"

trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT
dask scheduler --host "$HOST" --port "$PORT" --no-dashboard &
options=(--nthreads "$THREADS" --memory-limit "$MEMORY" --death-timeout 60 --no-dashboard)
if command -v srun > /dev/null; then
  srun dask worker "$address" "${options[@]}" &
else
  dask worker "$address" --nworkers "$WORKERS" "${options[@]}" &
fi
python - "$address" "$WORKERS" << 'PYTHON'
import sys
from dask.distributed import Client
Client(sys.argv[1], timeout=60).wait_for_workers(int(sys.argv[2]), timeout=300)
PYTHON

trakstore score "$STORE" --scheduler "$address" --save "$NAME"
trakstore topk "$STORE" --scheduler "$address" --k 10
