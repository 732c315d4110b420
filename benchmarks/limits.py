"""Work that is larger than its memory limit: time, residual, and the measured peak of a process.

    python benchmarks/limits.py blocked     # Cholesky of k = 16,384 within 1 GB, against LAPACK
    python benchmarks/limits.py large       # gram, matrix, top-k of n = 800,000 and 8,000,000
    python benchmarks/limits.py traker      # against traker's score computer (pip install traker)

Each part runs in a process of its own; peaks are VmHWM less what the imports took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stores import peak, timed

from trakstore.planning import block_shape


def main() -> None:
    """Run one comparison."""
    options = parse()
    if options.part:
        PARTS[options.part](options)
        return
    folder = Path(tempfile.mkdtemp(prefix="trakstore-bench-", dir=options.folder))
    try:
        COMPARISONS[options.what](folder, options)
    finally:
        shutil.rmtree(folder)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(COMPARISONS))
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--folder", default=None, help="where to put the data")
    parser.add_argument("--limit", default="1GB")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--dim", type=int, default=0)
    parser.add_argument("--targets", type=int, default=0)
    parser.add_argument("--only", default="gram,matrix,top_k")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(part: str, folder: Path, options: argparse.Namespace, **sizes: Any) -> dict[str, Any]:
    """A part in a process of its own; what it printed, with its peak."""
    given = [f"--{name}={value}" for name, value in sizes.items()]
    fixed = [options.what, "--part", part, "--folder", str(folder), "--limit", options.limit]
    command = [sys.executable, __file__, *fixed, *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def blocked(folder: Path, options: argparse.Namespace) -> None:
    """Gram in tiles, blocked Cholesky and solve; then LAPACK on the same matrix in memory."""
    dim, rows = (512, 300) if options.small else (options.dim or 16_384, options.rows or 4_096)
    write(folder, rows, dim, 64, "float32")
    ours = run("blocked", folder, options, dim=dim)
    print(f"k={dim}, limit {options.limit}: tiles of the gram {ours['gram']:.1f} s, peak ", end="")
    print(f"{ours['gram_peak'] / 1e6:.0f} MB; factor {ours['factor']:.1f} s, solve of 64 ", end="")
    print(f"{ours['solve']:.1f} s, peak {ours['peak'] / 1e6:.0f} MB, ", end="")
    print(f"residual {ours['residual']:.1e}, backward error {ours['backward']:.1e}", flush=True)
    dense = run("lapack", folder, options, dim=dim)
    print(f"LAPACK in memory: factor {dense['factor']:.1f} s, residual {dense['residual']:.1e}, ")
    print(
        f"peak {dense['peak'] / 1e6:.0f} MB; blocked takes {ours['factor'] / dense['factor']:.2f}"
    )


def part_blocked(options: argparse.Namespace) -> None:
    """Ours, within the limit."""
    import trakstore as ts
    from trakstore.kernels.blocked_cholesky import BlockedCholesky
    from trakstore.kernels.choice import split_kernel

    store = ts.open_store(Path(options.folder) / "s.zarr")
    base, began = peak(), time.perf_counter()
    kernel: Any = split_kernel(store.split(0, "train"), "tiles", memory_limit=options.limit)
    gram, gram_peak = time.perf_counter() - began, peak() - base
    began = time.perf_counter()
    factor = BlockedCholesky(options.limit, options.folder).factor(kernel)
    factored = time.perf_counter() - began
    rhs = store.split(0, "test").column("features").read(0, 64)
    began = time.perf_counter()
    solved = factor.solve(rhs)
    timing = {"gram": gram, "factor": factored, "solve": time.perf_counter() - began}
    found = {"peak": peak() - base, "gram_peak": gram_peak}
    probe = np.random.default_rng(1).standard_normal((2, kernel.dim))
    strips = [(at, min(kernel.dim, at + 1024)) for at in range(0, kernel.dim, 1024)]
    applied, missed, below = np.zeros_like(probe), np.zeros_like(solved), np.zeros_like(probe)
    again = np.zeros_like(probe)
    for a, b in strips:
        rows, lower = kernel.array[a:b], factor.lower[a:b]
        applied += probe[:, a:b] @ rows
        missed += solved[:, a:b] @ rows
        below += probe[:, a:b] @ lower
    for a, b in strips:
        again[:, a:b] = below @ factor.lower[a:b].T
    applied += factor.damping * probe
    missed += factor.damping * solved - rhs
    residual = np.linalg.norm(again - applied) / np.linalg.norm(applied)
    found["residual"] = float(residual)
    found["backward"] = float(np.linalg.norm(missed) / np.linalg.norm(rhs))
    (Path(options.folder) / "lam").write_text(str(factor.damping))
    print(json.dumps(found | timing))


def part_lapack(options: argparse.Namespace) -> None:
    """The same matrix, whole; by torch's LAPACK, since SciPy's crashes at this size."""
    import torch

    import trakstore as ts
    from trakstore.kernels.choice import split_kernel

    store = ts.open_store(Path(options.folder) / "s.zarr")
    base = peak()
    kernel: Any = split_kernel(store.split(0, "train"), "tiles")
    matrix = kernel.array[:]
    lam = float((Path(options.folder) / "lam").read_text())
    matrix.flat[:: kernel.dim + 1] += lam
    probe = np.random.default_rng(1).standard_normal((2, kernel.dim))
    applied = probe @ matrix
    began = time.perf_counter()
    lower = torch.linalg.cholesky(torch.from_numpy(matrix)).numpy()
    factor = time.perf_counter() - began
    residual = np.linalg.norm((probe @ lower) @ lower.T - applied) / np.linalg.norm(applied)
    found = {"factor": factor, "residual": float(residual), "peak": peak() - base}
    print(json.dumps(found))


def large(folder: Path, options: argparse.Namespace) -> None:
    """Two sizes, ten times apart, in chunks of one shape: the same peak, ten times the time."""
    dim, rows = (64, 20_000) if options.small else (options.dim or 512, options.rows or 8_000_000)
    block, places = block_shape(rows, dim, 2).block_rows, {}
    for count in (rows // 10, rows):
        places[count] = folder / str(count)
        write(places[count], count, dim, 1_000, "float16", block)
    for part in options.only.split(","):
        ratios = []
        for _ in range(1 if options.small else options.repeats):
            small, big = (anew(part, place, options) for place in places.values())
            for count, one in zip(places, (small, big), strict=True):
                print(f"n={count} {part:8} {one['seconds']:8.2f} s, peak ", end="")
                print(f"{one['peak'] / 1e6:.0f} MB above {one['base'] / 1e6:.0f} MB", flush=True)
            whole = (big["peak"] + big["base"]) / (small["peak"] + small["base"])
            ratios.append((big["seconds"] / small["seconds"], whole, big["peak"] / small["peak"]))
        times, whole, above = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"{part:8} 10 times the rows: {times:.1f} times the time, ", end="")
        print(f"{whole:.2f} the peak of the process, {above:.2f} that above the imports")


def anew(part: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One operation, without what it stored before; the gram stays for those that need it."""
    stored = {"gram": "grams", "matrix": "scores"}.get(part)
    if stored and (folder / "s.zarr" / stored).exists():
        shutil.rmtree(folder / "s.zarr" / stored)
    return run(part, folder, options)


def part_operation(options: argparse.Namespace) -> None:
    """One operation on the store, within the limit."""
    import trakstore as ts
    from trakstore.kernels.solvers import Damping
    from trakstore.kernels.stored_grams import split_gram
    from trakstore.passes.rows import ArrayRows

    store, limit = ts.open_store(Path(options.folder) / "s.zarr"), options.limit
    ts.kernels.gram.gram(ArrayRows(np.ones((2, 2), np.float32)))  # starts the threads
    damping = Damping(absolute=1.0)
    base, began = peak(), time.perf_counter()
    if options.part == "gram":
        split_gram(store.split(0, "train"), memory_limit=limit)
    else:
        scores = ts.trak_scores(store, damping=damping, memory_limit=limit)
        if options.part == "top_k":
            ts.top_k(scores, 100, memory_limit=limit)
        else:
            few = scores.isel(target=range(200))
            ts.save_scores(few, store, "few", memory_limit=limit)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak() - base, "base": base}))


def write(folder: Path, rows: int, dim: int, targets: int, dtype: Any, block_rows: int = 1) -> None:
    """A store of noise; a block of it repeats."""
    import trakstore as ts

    rng = np.random.default_rng(0)
    block = rng.standard_normal((50_000, dim), dtype=np.float32).astype(dtype)

    class Repeated:
        ndim, shape = 2, (rows, dim)

        def __getitem__(self, key: slice) -> Any:
            return block[np.arange(key.start, min(rows, key.stop)) % len(block)]

    folder.mkdir(exist_ok=True)
    projection = ts.ProjectionSpec("sjlt", dim)
    store = ts.FeatureStore.create(folder / "s.zarr", projection=projection, dtype=dtype)
    ones = np.ones(rows)
    store.write_split(0, "train", Repeated(), out_to_loss=ones, block_rows=block_rows)
    store.write_split(0, "test", block[:targets], out_to_loss=np.ones(targets))


def traker(folder: Path, options: argparse.Namespace) -> None:
    """The same features in memory: time and peak of both pipelines; ours against plain products."""
    sizes = (2_000, 64, 50) if options.small else (100_000, 1_024, 1_000)
    rows, dim, targets = sizes
    repeats = 1 if options.small else options.repeats
    del folder
    print(f"n={rows} k={dim} m={targets}, float32, in memory")
    given = {"rows": rows, "dim": dim, "targets": targets}
    ratios = []
    for _ in range(repeats):
        ours, theirs = (run(part, Path(), options, **given) for part in ("ours", "theirs"))
        ratios.append([theirs[what] / ours[what] for what in ("seconds", "cpu", "peak")])
        print(f"trakstore {ours['seconds']:.2f} s, {ours['peak'] / 1e6:.0f} MB; traker ", end="")
        print(f"{theirs['seconds']:.2f} s, {theirs['peak'] / 1e6:.0f} MB; times ", end="")
        print(", ".join(f"{ratio:.2f}" for ratio in ratios[-1]), flush=True)
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    shares = run("share", Path(), options, **given, repeats=repeats)["shares"]
    print("median: {:.2f} times as fast, CPU time {:.2f}, memory 1/{:.2f}".format(*medians))
    print(f"share of sgemm {statistics.median(shares):.2f}, alternating: ", end="")
    print(" ".join(f"{share:.2f}" for share in shares))


def features(options: argparse.Namespace) -> tuple[Any, Any]:
    """Train and target features."""
    rng = np.random.default_rng(0)
    shapes = ((options.rows, options.dim), (options.targets, options.dim))
    train, target = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return train, target


def cost(pipeline: Callable[[], object]) -> None:
    """Print the peak of a first run above what was there, and the median times of three more."""
    base = peak()
    pipeline()
    above, times = peak() - base, []
    for _ in range(3):
        began, used = time.perf_counter(), time.process_time()
        pipeline()
        times.append((time.perf_counter() - began, time.process_time() - used))
    seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": above}))


def part_ours(options: argparse.Namespace) -> None:
    """Gram, factor, and all scores."""
    from trakstore.methods.trak import trak_scores_of_arrays

    train, target = features(options)
    np.asarray(trak_scores_of_arrays(target[:8], train[:2048]))  # threads, BLAS's buffers
    cost(lambda: np.asarray(trak_scores_of_arrays(target, train)))


def part_share(options: argparse.Namespace) -> None:
    """Its time against that of as many flops in large float32 products, each product counted once."""
    from trakstore.methods.trak import trak_scores_of_arrays

    train, target = features(options)
    n, k, m = options.rows, options.dim, options.targets
    work = n * k * (k + 1) + k**3 // 3 + 2 * m * k * k + 2 * m * n * k
    square, other = (np.ones((4096, 1024), dtype=np.float32) for _ in range(2))
    out = np.empty((4096, 4096), dtype=np.float32)
    each = 2 * out.size * square.shape[1]
    products = max(1, work // each)

    def plain() -> None:
        for _ in range(products):
            np.matmul(square, other.T, out=out)  # of two arrays: else numpy halves the work

    def pipeline() -> None:
        np.asarray(trak_scores_of_arrays(target, train))

    plain(), pipeline()  # warm
    pairs = [(timed(plain), timed(pipeline)) for _ in range(options.repeats)]
    shares = [work / (products * each) * floor / ours for floor, ours in pairs]
    print(json.dumps({"shares": shares}))


def part_theirs(options: argparse.Namespace) -> None:
    """traker's BasicScoreComputer on the CPU."""
    import torch
    from trak.score_computers import BasicScoreComputer  # type: ignore[import-not-found]

    train, target = (torch.from_numpy(one) for one in features(options))

    def pipeline(train: Any, target: Any) -> None:
        computer = BasicScoreComputer(dtype=torch.float32, device="cpu", CUDA_MAX_DIM_SIZE=20_000)
        inverse = computer.get_x_xtx_inv(train, computer.get_xtx(train))
        computer.get_scores(inverse, target, torch.zeros(len(train), len(target)))

    pipeline(train[:2048], target[:8])
    cost(lambda: pipeline(train, target))


COMPARISONS = {"blocked": blocked, "large": large, "traker": traker}
PARTS = {
    "blocked": part_blocked,
    "lapack": part_lapack,
    "gram": part_operation,
    "top_k": part_operation,
    "matrix": part_operation,
    "ours": part_ours,
    "share": part_share,
    "theirs": part_theirs,
}

if __name__ == "__main__":
    main()
