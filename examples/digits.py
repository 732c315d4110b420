"""Attribution of handwritten digits, from a job to a picture's worth of answers.

Run it as it is::

    python examples/digits.py

or on any number of processes, then ask without the model::

    torchrun --nproc-per-node 2 -m trakstore featurize examples/digits.py:digits --store digits.zarr
    trakstore info digits.zarr
    trakstore topk digits.zarr --k 5 --target @0
"""

from __future__ import annotations

import argparse

import trakstore as ts
from trakstore.cli.demo import digits
from trakstore.features import featurize_job

__all__ = ["digits"]


def main(place: str) -> None:
    """Write the features that are not there yet, then ask which train digits matter."""
    done = featurize_job(digits(), place)
    print(f"wrote {done.rows} rows to {place}")

    store = ts.open_store(place)
    scores = ts.trak_scores(store, targets="test", train="train")  # factored: nothing is formed yet
    top = ts.top_k(scores.isel(target=slice(3)), 5)
    for target in range(top.sizes["target"]):
        one = top.isel(target=target)
        print(f"digit {one['target_id'].item()}: most helpful are {one['train'].values.tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="digits.zarr")
    main(parser.parse_args().store)
