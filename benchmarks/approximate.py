"""Top-k in two passes beside the exact pass: time and recall.

    python benchmarks/approximate.py [--small] [--rows 400000] [--dim 512] [--targets 1000]

Features are normal numbers whose i-th direction has the standard deviation i to the -1/2, in a random
basis, and targets are preconditioned as TRAK does, which makes all directions count alike again: the
hard case. `plain` are the same without a kernel, as GradDot has them.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from stores import median_seconds, random_store

import trakstore as ts
from trakstore.scores.two_pass import approximate_top_k


def falling(dim: int) -> NDArray[np.float32]:
    """A random basis whose directions have less and less of the norm."""
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0]
    return ((np.arange(1, dim + 1) ** -0.5)[:, None] * basis).astype(np.float32)


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
        store = random_store(Path(folder) / "s.zarr", o.rows, o.targets, o.dim, falling(o.dim))
        for name, scores in (("trak", ts.trak_scores(store)), ("plain", ts.grad_dot_scores(store))):
            exact = median_seconds(partial(ts.top_k, scores, 10), o.repeats)
            print(f"{name}: exact pass {exact:.2f} s", flush=True)
            for columns in (16, 64, 256):
                run = partial(approximate_top_k, scores, 10, columns=columns)
                seconds = median_seconds(partial(run, checked=0), o.repeats)
                recall = run().attrs["recall"]
                print(f"  {columns} columns: {seconds / exact:.2f} of it, recall {recall:.2f}")


if __name__ == "__main__":
    main()
