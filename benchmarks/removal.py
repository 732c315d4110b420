"""Digits trained again without the images that a target is said to owe its class to.

    python benchmarks/removal.py [mlp | few | cnn] [--targets 40] [--repeats 5] [--out accuracy]

For as many targets, drawn among those that all models get right, the images with the highest scores
are taken away, as many random ones, and as many of the target's class; models are trained again in
two processes. Means over targets with 95% intervals, of TRAK as it is by default, of the paper's
formula and of the cosine of gradients. Data, models and stores are those of ``accuracy.py``; models
are kept under --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from accuracy import DIM, MODELS, USED, Ground, sjlt
from distributed import Client, LocalCluster
from rich.console import Console

import trakstore as ts
from trakstore.evaluation.removals import counterfactual
from trakstore.report.evaluation_tables import removal_table

SIZES = (5, 20)


def main() -> None:
    """Print a table for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kind", nargs="?", choices=MODELS, default="mlp")
    parser.add_argument("--targets", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--small", action="store_true", help="few images and epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the models are small
    ground = Ground(options.kind, options.out, 0, options.small)
    store = ground.store(sjlt(DIM))
    used = list(ground.epochs)[:USED]
    outputs = [store.split(epoch, "test").column("output") for epoch in used]
    lowest = np.min([one.read(0, one.shape[0]) for one in outputs], axis=0)
    right = lowest >= min(0, np.median(lowest))  # below 0 for models of little training
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.flatnonzero(right))[: options.targets])
    methods = {
        "trak": ts.trak_scores(store, epochs=used),
        "paper": ts.trak_scores(store, epochs=used, temperature=None),
        "cosine": ts.grad_cos_scores(store, epochs=used),
    }
    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as two, Client(two):
        for name, scores in methods.items():
            found = counterfactual(
                scores,
                ground.trainer,
                ground.out / "removal.zarr",
                name,
                sizes=(2, 3) if options.small else SIZES,
                targets=chosen.tolist(),
                repeats=options.repeats,
            )
            print(f"{options.kind}, {len(chosen)} targets, by {name}")
            Console(width=100).print(removal_table(found))


if __name__ == "__main__":
    main()
