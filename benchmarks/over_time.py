"""Scores over checkpoints: time and measured peak of a process, for two numbers of train rows.

    python benchmarks/over_time.py             # 10 checkpoints x 20,000 and x 200,000 rows
    python benchmarks/over_time.py --small

Each question runs in a process of its own; peaks are VmHWM less what the imports took. Evolution comes
first and has the grams to compute; it leaves them in the store, and transitions read them there.
Transitions are those of the middle, with all other neighbouring checkpoints as a null.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from stores import peak, random_store

import trakstore as ts
from trakstore.analysis import evolution, transition
from trakstore.kernels.gram import gram
from trakstore.passes.rows import ArrayRows
from trakstore.planning import byte_count


def main() -> None:
    """Two sizes, ten times apart: a transition keeps up to 15 numbers for each train row."""
    options = parse()
    if options.part:
        part(options)
        return
    peaks: dict[tuple[str, int], int] = {}
    sizes = (options.rows // 10, options.rows)
    print(f"{options.epochs} checkpoints, k={options.dim}, m={options.targets}, ", end="")
    print(f"limit {options.limit}")
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="trakstore-bench-", dir=options.folder) as folder:
            epochs = tuple(range(options.epochs))
            random_store(Path(folder) / "s.zarr", rows, options.targets, options.dim, epochs=epochs)
            for name in QUESTIONS:
                found = run(name, folder, options)
                peaks[name, rows] = found["peak"]
                print(f"n={rows:<9} {name:11} {found['seconds']:8.2f} s, peak ", end="")
                print(
                    f"{found['peak'] / 1e6:.0f} MB above {found['base'] / 1e6:.0f} MB", flush=True
                )
    for name in QUESTIONS:
        small, large = (peaks[name, rows] for rows in sizes)
        share = large / byte_count(options.limit)
        print(f"{name:11} 10 times the rows: {large / small:.2f} of the peak, ", end="")
        print(f"{share:.2f} of the limit")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--limit", default="150MB")
    parser.add_argument("--folder", default=None, help="where to put the data")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        options.rows, options.epochs, options.dim, options.targets = 20_000, 4, 16, 40
        options.limit = "20MB"
    return options


def run(name: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """A part in a process of its own: what it printed."""
    given = ["--part", name, "--folder", folder, "--limit", options.limit]
    command = [sys.executable, __file__, *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def part(options: argparse.Namespace) -> None:
    """One question to the store, within the limit."""
    store = ts.open_store(Path(options.folder) / "s.zarr")
    gram(ArrayRows(np.ones((2, 2), np.float32)))  # starts the threads
    base, began = peak(), time.perf_counter()
    QUESTIONS[options.part](ts.trak_scores(store, memory_limit=options.limit), options.limit)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak() - base, "base": base}))


def follow(scores: ts.Scores, limit: str) -> None:
    """All checkpoints, one after the other."""
    evolution(scores, 10, memory_limit=limit)


def compare(scores: ts.Scores, limit: str) -> None:
    """The two checkpoints in the middle, against all other neighbours."""
    pairs = [(scores.epoch(a), scores.epoch(b)) for a, b in pairwise(scores.epochs)]
    change = pairs.pop(len(pairs) // 2)
    transition(*change, pairs, memory_limit=limit)


QUESTIONS = {"evolution": follow, "transitions": compare}

if __name__ == "__main__":
    main()
