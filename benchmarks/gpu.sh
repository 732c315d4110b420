#!/usr/bin/env bash
# All of gpu.py in one call, on a bare machine that has Python, torch and a GPU, and no network:
#
#     bash benchmarks/gpu.sh WHEELS [options of gpu.py]
#
# WHEELS is a folder of wheels for that machine's Python: zarr msgspec numcodecs google-crc32c donfig dask distributed
# partd locket tblib zict tornado xarray obstore; for `peers` traker dattri, for `llm` transformers, and bergson captum
# datasets dill multiprocess natsort simple-parsing docstring-parser petname torchopt optree. One that is made for
# another Python stops the whole install. Figures go to gpu.json in $OUT, or in this folder where that is not set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) site=$(mktemp -d) wheels=$1
shift
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
PYTHONUNBUFFERED=1 PYTHONPATH="$site:$(dirname "$here")" python3 "$here/gpu.py" --json "${OUT:-$PWD}/gpu.json" "$@"
