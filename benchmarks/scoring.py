"""Gram, whole matrix and top-k against a hand-written loop over the same bytes.

The roofline is one process that loops over raw, memory-mapped blocks with the same BLAS and the same
number of threads, in the same run, alternating with trakstore; medians and their ratios are printed.

    python benchmarks/scoring.py                      # n = 400,000, k = 512, m = 1,000
    python benchmarks/scoring.py --small
    python benchmarks/scoring.py --cluster 2 --dtype float16
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from stores import timed

import trakstore as ts
from trakstore.kernels.gram import gram

BLOCK_BYTES = 8 * 2**20


def main() -> None:
    """Print a table of ratios."""
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="trakstore-bench-", dir=options.folder))
    try:
        store, raw = write(folder, options)
        if options.cluster:
            with (
                LocalCluster(
                    n_workers=options.cluster, threads_per_worker=1, dashboard_address=":0"
                ) as cluster,
                Client(cluster),
            ):
                compare(store, raw, folder, options)
        else:
            compare(store, raw, folder, options)
    finally:
        shutil.rmtree(folder)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--targets", type=int, default=1_000)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--cluster", type=int, default=0, help="worker processes; 0: threads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to put the data")
    parser.add_argument("--only", default="gram,top_k,matrix")
    options = parser.parse_args()
    if options.small:
        options.rows, options.dim, options.targets, options.repeats = 4_000, 64, 50, 1
    return options


def write(folder: Path, options: argparse.Namespace) -> tuple[ts.FeatureStore, np.memmap[Any, Any]]:
    """The same features as a store and as a raw file."""
    rng = np.random.default_rng(0)
    shape = (options.rows, options.dim)
    raw = np.memmap(folder / "raw", dtype=options.dtype, mode="w+", shape=shape)
    for start in range(0, options.rows, 10_000):
        raw[start : start + 10_000] = rng.standard_normal(
            (min(10_000, options.rows - start), options.dim), dtype=np.float32
        )
    projection = ts.ProjectionSpec("sjlt", options.dim)
    store = ts.FeatureStore.create(folder / "s.zarr", projection=projection, dtype=options.dtype)
    scale = np.ones(options.rows, dtype=np.float32)
    store.write_split(0, "train", raw, out_to_loss=scale)
    targets = rng.standard_normal((options.targets, options.dim), dtype=np.float32)
    store.write_split(0, "test", targets, out_to_loss=np.ones(options.targets))
    return store, raw


def compare(
    store: ts.FeatureStore, raw: np.memmap[Any, Any], folder: Path, options: argparse.Namespace
) -> None:
    """Time each operation and its roofline, alternating."""
    scores = ts.trak_scores(store)
    left = scores.window(0, options.targets).lefts[0]
    features = store.split(0, "train").column("features")
    matrix = folder / "raw-scores"
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "gram": (lambda: raw_gram(raw), lambda: gram(features)),
        "top_k": (
            lambda: raw_top_k(raw, left, options.top),
            lambda: ts.top_k(scores, options.top),
        ),
        "matrix": (lambda: raw_matrix(raw, left, matrix), lambda: whole(scores, store, folder)),
    }
    print(f"n={options.rows} k={options.dim} m={options.targets} {options.dtype}, ", end="")
    print(f"{options.cluster or 'no'} worker processes, {CPU_COUNT} cores")
    print(f"{'operation':10} {'roofline':>10} {'trakstore':>10} {'speed':>6}   pairs")
    for name in options.only.split(","):
        floor, ours = pairs[name]
        floor(), ours()  # warm
        times = [(timed(floor), timed(ours)) for _ in range(options.repeats)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(a / b for a, b in times)
        shown = " ".join(f"{a:.2f}/{b:.2f}" for a, b in times)
        print(f"{name:10} {medians[0]:9.2f}s {medians[1]:9.2f}s {ratio:6.2f}   {shown}", flush=True)


def blocks(raw: np.memmap[Any, Any]) -> list[tuple[int, int]]:
    """Row ranges of about 8 MB."""
    step = max(1, BLOCK_BYTES // (raw.shape[1] * raw.itemsize))
    return [(at, min(len(raw), at + step)) for at in range(0, len(raw), step)]


def raw_gram(raw: np.memmap[Any, Any]) -> Any:
    """Float32 products of blocks, summed in float64."""
    total = np.zeros((raw.shape[1], raw.shape[1]))
    for start, stop in blocks(raw):
        block = np.asarray(raw[start:stop], dtype=np.float32)
        total += block.T @ block  # syrk, where numpy sees that it can
    return total


def raw_top_k(raw: np.memmap[Any, Any], left: Any, top: int) -> Any:
    """Products of blocks; targets that have a score above their k-th so far are sorted anew."""
    best = np.full((len(left), top), -np.inf, dtype=np.float32)
    places = np.zeros((len(left), top), dtype=np.int64)
    for start, stop in blocks(raw):
        tile = left @ np.asarray(raw[start:stop], dtype=np.float32).T
        hit = np.flatnonzero((tile > best[:, -1:]).any(axis=1))
        if not len(hit):
            continue
        part, rows = tile[hit], np.arange(len(hit))[:, None]
        at = np.argpartition(part, -min(top, stop - start), axis=1)[:, -top:]
        values = np.concatenate([best[hit], part[rows, at]], axis=1)
        where = np.concatenate([places[hit], at + start], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :top]
        best[hit], places[hit] = values[rows, order], where[rows, order]
    return best, places


def raw_matrix(raw: np.memmap[Any, Any], left: Any, path: Path) -> None:
    """Products of blocks, written to a file one after the other."""
    with path.open("wb") as file:
        for start, stop in blocks(raw):
            (left @ np.asarray(raw[start:stop], dtype=np.float32).T).tofile(file)
    path.unlink()


def whole(scores: ts.Scores, store: ts.FeatureStore, folder: Path) -> None:
    """The matrix in the store."""
    ts.save_scores(scores, store, "whole")
    shutil.rmtree(folder / "s.zarr" / "scores" / "whole")


if __name__ == "__main__":
    main()
