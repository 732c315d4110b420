"""Top-k in two passes beside the exact pass: time and recall.

    python benchmarks/approximate.py [--small] [--rows 400000] [--dim 512] [--targets 1000]

Features are normal numbers whose i-th direction has the standard deviation i to the -1/2, in a random
basis, and targets are preconditioned as TRAK does, which makes all directions count alike again: the
hard case. `plain` are the same without a kernel, as GradDot has them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.linalg.approximate import approximate_top_k


def fill(where: Path, rows: int, targets: int, dim: int) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    shape = (np.arange(1, dim + 1) ** -0.5)[:, None] * basis
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=dim))
    for split, count in (("train", rows), ("test", targets)):
        features = rng.standard_normal((count, dim), dtype=np.float32) @ shape.astype(np.float32)
        q = rng.uniform(0.1, 1, count).astype(np.float32)
        store.write_split(0, split, features, out_to_loss=q)
    return store


def timed(run: Any, repeats: int) -> tuple[Any, float]:
    seconds, found = [], run()
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return found, float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    if o.small:
        o.rows, o.dim, o.targets, o.repeats = 4000, 64, 50, 1
    with tempfile.TemporaryDirectory() as folder:
        store = fill(Path(folder) / "s.zarr", o.rows, o.targets, o.dim)
        for name, scores in (("trak", ts.trak_scores(store)), ("plain", ts.grad_dot_scores(store))):
            _, exact = timed(lambda s=scores: ts.top_k(s, 10), o.repeats)  # type: ignore[misc]
            print(f"{name}: exact pass {exact:.2f} s", flush=True)
            for columns in (16, 64, 256):
                run = lambda c=columns, s=scores: approximate_top_k(s, 10, columns=c, checked=0)  # type: ignore[misc] # noqa: E731
                _, seconds = timed(run, o.repeats)
                recall = approximate_top_k(scores, 10, columns=columns).attrs["recall"]
                print(f"  {columns} columns: {seconds / exact:.2f} of it, recall {recall:.2f}")


if __name__ == "__main__":
    main()
