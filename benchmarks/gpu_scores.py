"""The part `scores` of gpu.py: tiles, lists and grams whose train rows come from memory or a disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import Card
from numpy.typing import NDArray

import trakstore as ts
from trakstore.kernels.gram import gram
from trakstore.passes.gpu import working_on_gpu
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.moments import row_moments
from trakstore.scores.parts import Part

GOAL = 20e9  # bytes a second of a copy to the card


def scores(card: Card) -> None:
    """Operations beside the larger of their product and the copy of their train rows."""
    targets, rows, dim = (8, 1024, 16) if card.small else (4096, 8192, 4096)
    name = str(card.device) if card.device.type == "cuda" else "cpu:0"
    with working_on_gpu(name):
        product = product_alone(card, targets, rows, dim)
        for dtype in ("float32", "float16"):
            copied = copies(card, rows, dim, dtype)
            in_memory(card, name, (targets, rows, dim), dtype, max(product, copied), product)
    from_disk(card, name)


def product_alone(card: Card, targets: int, rows: int, dim: int) -> float:
    left = torch.randn(targets, dim, device=card.device)
    right = torch.randn(rows, dim, device=card.device)
    taken = card.seconds(lambda: left @ right.T)
    rate = 2 * targets * rows * dim / taken
    text = f"product of a tile {targets} x {rows}, dim {dim}, float32: {1e3 * taken:.3g} ms"
    card.tell(f"{text}, {rate / 1e12:.3g} TFLOP/s", seconds=taken, rate=rate)
    return taken


def copies(card: Card, rows: int, dim: int, dtype: str) -> float:
    """Seconds of the copy of a tile's rows to the card from pinned memory; told also from pageable."""
    there = torch.empty(rows, dim, dtype=getattr(torch, dtype), device=card.device)
    size, taken = there.numel() * there.element_size(), {}
    for pinned in (False, True):
        here = torch.zeros(rows, dim, dtype=there.dtype)
        if pinned and card.device.type == "cuda":
            here = here.pin_memory()
        taken[pinned] = card.seconds(lambda here=here: there.copy_(here, non_blocking=True))  # type: ignore[misc]
    pageable, direct = (size / taken[one] for one in (False, True))
    card.tell(
        f"copy of its rows in {dtype}: {pageable / 1e9:.3g} GB/s from pageable memory, "
        f"{direct / 1e9:.3g} GB/s from pinned ({1e3 * taken[True]:.3g} ms)",
        dtype=dtype,
        pageable=pageable,
        pinned=direct,
    )
    return taken[True]


def in_memory(
    card: Card, name: str, sizes: tuple[int, int, int], dtype: str, floor: float, product: float
) -> None:
    """Whole passes over rows in memory, by tile."""
    targets, rows, dim = sizes
    tiles = 3 if card.small else 64
    rng = np.random.default_rng(0)
    left = rng.standard_normal((targets, dim), np.float32)
    train = rng.standard_normal((rows, dim), np.float32).astype(dtype)
    there = of_rows(left, Repeated(train, rows, tiles)).to(name)
    goal = max(product, rows * dim * train.itemsize / GOAL)
    runs: dict[str, Callable[[], Any]] = {
        "sums": lambda: row_moments(there),
        "top-20": lambda: ts.top_k(there, 20),
    }
    for what, run in card.in_time(runs.items()):
        each = card.seconds(run, rounds=3, warm=1) / tiles
        card.tell(
            f"{what} in {dtype}, rows from memory: {1e3 * each:.3g} ms a tile, {each / floor:.2f} x "
            f"the larger of product and copy, {each / goal:.2f} x that at 20 GB/s",
            what=what,
            dtype=dtype,
            seconds=each,
            ratio=each / floor,
            goal=each / goal,
        )
    check(of_rows(left[: max(1, targets // 16)], Repeated(train, rows, 2)), name)


@dataclass(frozen=True, eq=False)
class Repeated(ArrayRows):
    """A tile of rows again and again: to draw all rows would take longer than what is measured."""

    tiles: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tiles * self.chunk_rows, *self.array.shape[1:])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        first = start % self.chunk_rows
        return self.array[first : first + stop - start]


def of_rows(left: NDArray[Any], train: Repeated) -> Scores:
    ids = ArrayRows(np.arange(len(left))), ArrayRows(np.arange(train.shape[0]))
    return Scores("plain", (Part(0, ArrayRows(left), train),), *ids)


def check(here: Scores, name: str) -> None:
    """Numbers are those of the CPU to rounding."""
    expected, found = ts.top_k(here, 20), ts.top_k(here.to(name), 20)
    worst = float(np.abs(expected.score - found.score).max() / np.abs(expected.score).max())
    if worst > 1e-5:
        raise SystemExit(f"check failed: lists are off by {worst:.1e} from the CPU's")


def from_disk(card: Card, name: str) -> None:
    """Lists and a gram of a store, beside the same on the CPU and reading its chunks alone."""
    rows, targets, dim = (300, 20, 16) if card.small else (200_000, 2000, 2048)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        spec = ts.ProjectionSpec("sjlt", dim=dim)
        store = ts.FeatureStore.create(Path(folder) / "s.zarr", projection=spec)
        for split, count in (("train", rows), ("test", targets)):
            store.write_split(0, split, rng.standard_normal((count, dim), np.float32))
        features = store.split(0, "train").column("features")
        size = rows * dim * 4
        alone = card.seconds(lambda: read_chunks(Path(folder)), rounds=3, warm=1)
        card.tell(
            f"store of {rows:,} x {dim}: its bytes are read in {1e3 * alone:.4g} ms by one thread, "
            f"{size / alone / 1e9:.3g} GB/s",
            seconds=alone,
        )
        plain = ts.grad_dot_scores(store, of="output")
        runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            f"top-20 of {targets:,} targets": (
                lambda: ts.top_k(plain, 20),
                lambda: ts.top_k(plain.to(name), 20),
            ),
            "gram": (lambda: gram(features), lambda: gram(features, device=name)),
        }
        for what, (here, there) in card.in_time(runs.items()):
            there()
            taken = [timed(card, there), timed(card, there), timed(card, here)]
            best = min(taken[:2])
            card.tell(
                f"{what} over it: {1e3 * best:.4g} ms, "
                f"{size / best / 1e9:.3g} GB/s, {best / alone:.2f} x reading; on the CPU "
                f"{1e3 * taken[2]:.4g} ms",
                what=what,
                seconds=best,
                ratio=best / alone,
                cpu=taken[2],
            )
        difference = float(np.abs(gram(features).matrix - gram(features, device=name).matrix).max())
        card.tell(f"the gram is off by {difference / rows:.1e} of the number of rows")


def timed(card: Card, run: Callable[[], Any]) -> float:
    card.wait()
    began = time.perf_counter()
    run()
    card.wait()
    return time.perf_counter() - began


def read_chunks(folder: Path) -> int:
    paths = [one for one in sorted(folder.rglob("features/c/**/*")) if one.is_file()]
    return sum(len(path.read_bytes()) for path in paths)
