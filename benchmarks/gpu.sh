#!/usr/bin/env bash
# All of gpu.py in one call, on a bare machine that has Python, torch and a GPU, and no network:
#
#     bash benchmarks/gpu.sh WHEELS [options of gpu.py]
#
# WHEELS is a folder of wheels for that machine's Python, of what it lacks. An image with torch, transformers, xarray
# and SciPy lacked zarr msgspec numcodecs google-crc32c donfig dask distributed partd locket tblib zict tornado obstore;
# for `peers` traker dattri captum; for bergson in `llm` bergson datasets dill multiprocess natsort simple-parsing
# docstring-parser petname torchopt optree. One that is made for another Python stops the whole install. What PYTHONPATH
# names stays importable: fast_jl and sjlt, which are compiled on the machine. Figures go to gpu.json in $OUT, or in
# this folder where that is not set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) site=$(mktemp -d) wheels=$1
shift
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
export PYTHONUNBUFFERED=1 PYTHONPATH="$site:$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}"
python3 "$here/gpu.py" --json "${OUT:-$PWD}/gpu.json" "$@"
