"""From how many rows on does it matter that products of a gram are taken in float32?

    python benchmarks/rounding.py [--small] [--dim 256]

The default damping λ is the mean squared norm, which does not grow with n, while the kernel K and the
rounding of its products do. Each line has the largest eigenvalue of K32 - K64 in units of λ, and the
largest difference of TRAK scores between the two, relative to the largest score: for features with a
common direction and a spectrum that falls off, as gradients have, and for plain normal numbers.
Products are of tiles of 8 MB; sums over tiles are float64 in both.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from trakstore.kernels.gram import gram
from trakstore.passes.rows import ArrayRows


def gradients(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Rows with a mean as long as they scatter, whose i-th direction has deviation 1/i."""
    scatter = (1 / np.arange(1, dim + 1)).astype(np.float32)
    mean = np.full(dim, np.sqrt((scatter**2).sum() / dim), dtype=np.float32)
    return rng.standard_normal((rows, dim), dtype=np.float32) * scatter + mean


def normal(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    return rng.standard_normal((rows, dim), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--dim", type=int, default=256)
    o = parser.parse_args()
    counts = (1_000, 10_000) if o.small else (1_000, 10_000, 100_000, 1_000_000, 3_000_000)
    for make in (normal, gradients):
        for rows in counts:
            rng = np.random.default_rng(0)
            train, targets = make(rng, rows, o.dim), make(rng, 50, o.dim).astype(np.float64)
            kept = ArrayRows(train, max(1, 2**23 // (4 * o.dim)))
            single, double = (gram(kept, dtype=one).matrix for one in ("float32", "float64"))
            damping = np.trace(double) / rows
            error = np.abs(np.linalg.eigvalsh(single - double)).max() / damping
            some = train[:1000].astype(np.float64)
            scores = [
                targets @ np.linalg.solve(kernel + damping * np.eye(o.dim), some.T)
                for kernel in (single, double)
            ]
            change = np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max()
            print(f"{make.__name__:9} n = {rows:9,}: K changes by {error:.1e} λ, ", end="")
            print(f"scores by {change:.1e}", flush=True)


if __name__ == "__main__":
    main()
