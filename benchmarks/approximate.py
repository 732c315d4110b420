"""The index beside the exact pass, and that beside reading alone: time and recall.

    python benchmarks/approximate.py [--small] [--faiss] [--rows 1000000] [--dim 2048] [--store s.zarr]

Train rows are mixed from 65,536 normal ones whose i-th direction has the variance i to the -1.9, as it
was measured of digits' gradients, in a random basis; each target has ten planted neighbours, of
whitened cosines from 0.12 to 0.39, among them. With `--store`, the scores of a store that is there;
with `--faiss`, codes of faiss (`pip install faiss-cpu`) beside the index, of rows in memory. Seconds
are of the wall, and of all processors together in brackets: where others use the machine, the latter
say what a free one would take.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

import trakstore as ts

POWER, BASE, PLANTED, BLOCK = 1.9, 65_536, 10, 16_384


def planted(where: Path, rows: int, dim: int, targets: int) -> ts.FeatureStore:
    """A store of float16 rows with planted neighbours of its targets."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((dim, dim), dtype=np.float32))[0]
    turn = (np.arange(1, dim + 1) ** (-POWER / 2))[:, None].astype(np.float32) * basis
    turn *= np.sqrt(dim / (turn**2).sum())
    asked = rng.standard_normal((targets, dim), dtype=np.float32) @ turn
    parts = [
        rng.standard_normal((4096, dim), dtype=np.float32) @ turn
        for _ in range(max(1, min(rows, BASE) // 4096))
    ]
    known = np.concatenate(parts)
    places = np.random.default_rng(5).choice(rows, (targets, PLANTED), replace=False)
    lazy = partial(_block, known, asked, places, rows)
    blocks = [
        da.from_delayed(dask.delayed(lazy)(low), (min(BLOCK, rows - low), dim), np.float16)
        for low in range(0, rows, BLOCK)
    ]
    store = ts.FeatureStore.create(
        where, projection=ts.ProjectionSpec("sjlt", dim=dim), dtype="float16"
    )
    q = rng.uniform(0.1, 1, rows).astype(np.float32)
    with dask.config.set(scheduler="synchronous"):
        store.write_split(0, "train", da.concatenate(blocks), out_to_loss=q)
    store.write_split(0, "test", asked, out_to_loss=np.ones(targets, np.float32))
    return store


def _block(
    known: NDArray[np.float32],
    asked: NDArray[np.float32],
    places: NDArray[np.int64],
    rows: int,
    low: int,
) -> NDArray[np.float16]:
    rng, count = np.random.default_rng(100 + low), min(BLOCK, rows - low)
    signs = np.sign(rng.standard_normal((2, count, 1))).astype(np.float32) * np.float32(0.5**0.5)
    block = known[rng.choice(len(known), count)] * signs[0]
    block += known[rng.choice(len(known), count)] * signs[1]
    for target, rank in zip(*np.nonzero((places >= low) & (places < low + count)), strict=True):
        cosine, at = 0.12 + 0.03 * rank, places[target, rank] - low
        block[at] = cosine * asked[target] + np.sqrt(1 - cosine**2) * block[at]
    return block.astype(np.float16)


def feature_files(store: ts.FeatureStore) -> list[Path]:
    """Files of the train features of all epochs."""
    root = Path(str(store.location))
    return sorted(root.glob("*/train/features/c/*/*"))


def read_all(files: list[Path]) -> None:
    """Read files, with as many threads as there are processors, and do nothing else."""
    threads = len(os.sched_getaffinity(0))

    def read(some: list[Path]) -> None:
        buffer = bytearray(16 * 2**20)
        for one in some:
            with one.open("rb", buffering=0) as file:
                file.readinto(buffer)

    with ThreadPoolExecutor(threads) as pool:
        cut = -(-len(files) // threads)
        list(pool.map(read, [files[at : at + cut] for at in range(0, len(files), cut)]))


def forget(files: list[Path]) -> None:
    """Have the system drop what it keeps of the files in memory."""
    for one in files:
        handle = os.open(one, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def timed(run: Callable[[], Any], repeats: int, before: Callable[[], Any] = lambda: None) -> str:
    """Least seconds of some runs: of the wall, and of processors."""
    best = []
    for _ in range(repeats):
        before()
        wall, spent = time.perf_counter(), time.process_time()
        run()
        best.append((time.perf_counter() - wall, time.process_time() - spent))
    walls, processors = zip(*best, strict=True)
    return f"{min(walls):.3f} s ({min(processors):.3f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help="a store that is there")
    parser.add_argument(
        "--faiss", action="store_true", help="codes of faiss beside those of the index"
    )
    o = parser.parse_args()
    if o.small:
        o.rows, o.dim, o.targets, o.repeats = 6000, 64, 8, 1
    with tempfile.TemporaryDirectory() as folder:
        if o.store:
            store = ts.open_store(o.store)
        else:
            store = planted(Path(folder) / "s.zarr", o.rows, o.dim, o.targets)
        measure(store, o.repeats)
        if o.faiss:
            beside_faiss(store, o.repeats)


def measure(store: ts.FeatureStore, repeats: int) -> None:
    from trakstore.kernels import Cholesky

    files = feature_files(store)
    scores = ts.trak_scores(store, solver=Cholesky())
    rows = scores.shape[1]
    one, k = scores.isel(target=[0]), min(50, rows)
    read, exact = partial(read_all, files), partial(ts.top_k, one, k)
    exact()
    for name, before in (("warm", lambda: None), ("cold", partial(forget, files))):
        print(f"{name}: reading {timed(read, repeats, before)}", flush=True)
        print(f"{name}: exact top-{k} of one {timed(exact, repeats, before)}", flush=True)
    built: list[Any] = []
    spent = timed(lambda: built.append(ts.build_index(scores)), 1)
    (index,) = built
    print(f"built in {spent}, {index.nbytes / 1e6:.0f} MB: {index}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"the process took {peak:.1f} GB at most; an index is opened in", end=" ")
    print(timed(partial(ts.open_index, scores), 1), flush=True)
    truth = ts.top_k(scores, 10)["position"].values
    usual = ts.approximate_top_k(one, 10, index=index).attrs["candidates"]
    for count in sorted({20, 50, 100, 200, 500, 1000, 2000, usual, 8000}):
        if 10 <= count < rows:
            ask = partial(ts.approximate_top_k, one, 10, index=index, candidates=count)
            spent = timed(ask, 5 * repeats)
            found = ts.approximate_top_k(scores, 10, index=index, candidates=count)
            pairs = zip(truth, found["position"].values, strict=True)
            recall = np.mean([np.isin(*pair).mean() for pair in pairs])
            print(f"{count} candidates: recall {recall:.3f}, a query {spent}", flush=True)


def beside_faiss(store: ts.FeatureStore, repeats: int, candidates: int = 100) -> None:
    """Compare recalls and times of the first candidates by codes of faiss and of the index."""
    faiss: Any = import_module("faiss")

    scores = ts.trak_scores(store)
    truth = ts.top_k(scores, 10)["position"].values
    lefts = scores.window(0, len(truth)).lefts[0]
    rows = store.features(0, "train").values.astype(np.float32)
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    for kind in ("SQ4", "SQ8", f"PQ{rows.shape[1] // 4}x4fs"):
        index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index.train(rows[:30_000])
        built = timed(partial(index.add, rows), 1)
        near = np.concatenate([index.search(one[None], candidates)[1] for one in lefts])
        spent = timed(partial(index.search, lefts[:1], candidates), 5 * repeats)
        recall = np.mean([np.isin(*pair).mean() for pair in zip(truth, near, strict=True)])
        print(f"faiss {kind}: added in {built}, recall {recall:.3f}, a search {spent}", flush=True)
    own, window = ts.build_index(scores, checked=0, anew=True), scores.window(0, len(truth))
    every = own.candidates(scores, window, candidates, "largest")
    recall = np.mean([np.isin(*pair).mean() for pair in zip(truth, every, strict=True)])
    ask = partial(own.candidates, scores, window.of_targets(0, 1), candidates, "largest")
    spent = timed(ask, 5 * repeats)
    print(f"index: {own.nbytes / 1e6:.0f} MB, recall {recall:.3f}, a search {spent}", flush=True)


if __name__ == "__main__":
    main()
