"""Damages the files of a small store one at a time: is each found, and is no wrong number read?

    python benchmarks/corruption.py --bytes 200 --truncations 50

prints one line for each kind of file and dtype. Every file of the store is as likely; a corruption
replaces one random byte by another value, a truncation keeps a random shorter length.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.spec import SplitSpec
from trakstore.storage.columns import stored_rows
from trakstore.storage.verify import verify_store
from trakstore.storage.writer import BlockWriter

ROWS, DIM, BLOCK = 37, 24, 8
EPOCHS: tuple[int | str, ...] = (0, 5, "final")
DTYPES = ("float32", "float16")

Columns = dict[tuple[Any, ...], Any]


def columns_of(epoch: int | str, split: str) -> dict[str, Any]:
    """What ``write_split`` is given: strings as ids and labels at ``train``."""
    rng = np.random.default_rng([EPOCHS.index(epoch), len(split)])
    given: dict[str, Any] = {"features": rng.normal(size=(ROWS, DIM)).astype(np.float32)}
    if split == "train":
        given["ids"] = [f"bild-{i}-ü" for i in range(ROWS)]
        given["labels"] = rng.integers(0, 10, ROWS)
        given["out_to_loss"] = rng.random(ROWS, dtype=np.float32)
    return given


def build(where: Path, dtype: Any = "float32") -> ts.FeatureStore:
    """A store of three epochs with two splits each, one split that is not complete, and scores."""
    spec = ts.ProjectionSpec("sjlt", dim=DIM)
    store = ts.FeatureStore.create(where, projection=spec, dtype=dtype)
    for epoch in EPOCHS:
        for split in ("train", "test"):
            store.write_split(epoch, split, **columns_of(epoch, split), block_rows=BLOCK)
    columns = (("features", dtype), ("norm", "float32"), ("sample_id", "int64"))
    half = store.create_split(0, "half", SplitSpec(ROWS, DIM, columns, block_rows=BLOCK))
    for block in (0, 2, 4):
        a, b = half.spec.block_range(block)
        rows = columns_of(0, "half")["features"][a:b]
        BlockWriter(half).write(block, stored_rows(rows, dtype, a) | {"sample_id": np.arange(a, b)})
    store.mask("train", ["bild-3-ü"], epochs=["final"])
    ts.save_scores(ts.trak_scores(store, targets="test", train="train", epochs=[0, 5]), store, "s")
    return store


def build_tiny(where: Path, dtype: Any = "float32") -> ts.FeatureStore:
    """A store of a few hundred bytes a file, to damage every one of them."""
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=3), dtype=dtype)
    given = {name: array[:5] for name, array in columns_of(0, "train").items()}
    given["features"] = given["features"][:, :3]
    store.write_split(0, "train", **given, block_rows=3)
    store.mask("train", ["bild-1-ü"])
    store.write_split(0, "test", given["features"][:2])
    ts.save_scores(ts.trak_scores(store, targets="test", train="train"), store, "s")
    return store


def read(where: Path) -> Columns:
    """Every column of every split, and the scores; where reading is refused, the error."""
    found: Columns = {}
    for epoch in EPOCHS:
        for split in ("train", "test", *(["half"] if epoch == 0 else [])):
            for column in ("features", "norm", "sample_id", "label", "out_to_loss"):
                try:
                    opened = ts.open_store(where).split(epoch, split)
                    if split != "half":
                        opened.require_complete()
                    stored = opened.column(column, allow_missing=split == "half")
                    found[epoch, split, column] = stored.read(0, opened.rows)
                except TrakStoreError as error:
                    found[epoch, split, column] = error
    try:
        found["final", "masked"] = ts.open_store(where).split("final", "train").masked
    except TrakStoreError as error:
        found["final", "masked"] = error
    try:
        scores = ts.open_scores(where, "s").compute()
        found |= {("s", name): array.values for name, array in scores.coords.items()}
        found["s", "scores"] = scores.values
    except (TrakStoreError, ValueError) as error:  # zarr's own, for a chunk that is damaged
        found |= {("s", name): error for name in ("scores", "target_id", "train_id")}
    return found


def same(got: Any, wanted: Any) -> bool:
    """Equal to the bit, missing rows (NaN) too, or refused alike."""
    if isinstance(wanted, Exception):
        return isinstance(got, Exception)
    return (
        not isinstance(got, Exception)
        and got.dtype == wanted.dtype
        and np.array_equal(got, wanted, equal_nan=got.dtype.kind == "f")
    )


@dataclass(frozen=True)
class Trial:
    """One damaged file: what verify found, and how many columns were read wrongly, or refused."""

    key: str
    what: str
    found: tuple[str, ...]
    wrong: int
    refused: int

    @property
    def kind(self) -> str:
        """What sort of file it was."""
        parts = self.key.split("/")
        if parts[0] in ("scores", "grams"):
            return f"saved {parts[0]}"
        if "masked" in parts:
            return "mask"
        if parts[-1] == "zarr.json":
            return ("root", "epoch", "split", "array")[len(parts) - 1] + " document"
        return "marker" if "written" in parts else f"chunk of {parts[2]}"


def flip(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One byte replaced by another value."""
    at, change = rng.randrange(len(content)), rng.randrange(1, 256)
    changed = content[:at] + bytes([content[at] ^ change]) + content[at + 1 :]
    return changed, f"byte {at} of {len(content)} ^ {change}"


def truncate(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A random shorter length."""
    size = rng.randrange(len(content))
    return content[:size], f"{size} of {len(content)} bytes"


def trials(
    where: Path,
    damage: Callable[[bytes, random.Random], tuple[bytes, str]],
    count: int,
    seed: object = 0,
) -> Iterator[Trial]:
    """Damage a random file, look, put it right again; ``count`` times."""
    rng = random.Random(f"{seed} {damage.__name__}")
    files = files_of(where)
    chosen = (rng.choice(files) for _ in range(count))
    return _tried(where, ((path, *damage(path.read_bytes(), rng)) for path in chosen))


def every_byte(where: Path, seed: int = 0) -> Iterator[Trial]:
    """Each byte of each file once, replaced by a random other value."""
    rng = random.Random(seed)

    def damages() -> Iterator[tuple[Path, bytes, str]]:
        for path in files_of(where):
            content = path.read_bytes()
            for at in range(len(content)):
                changed = bytes([content[at] ^ rng.randrange(1, 256)])
                yield path, content[:at] + changed + content[at + 1 :], f"byte {at}"

    return _tried(where, damages())


def files_of(where: Path) -> list[Path]:
    """All files of a store."""
    return sorted(path for path in where.rglob("*") if path.is_file())


def _tried(where: Path, damages: Iterable[tuple[Path, bytes, str]]) -> Iterator[Trial]:
    wanted = read(where)
    for path, damaged, what in damages:
        content = path.read_bytes()
        path.write_bytes(damaged)
        report, got = verify_store(where), read(where)
        path.write_bytes(content)
        differ = [name for name in wanted if not same(got[name], wanted[name])]
        refused = sum(isinstance(got[name], Exception) for name in differ)
        kinds = tuple(finding.kind for finding in report.findings)
        key = path.relative_to(where).as_posix()
        yield Trial(key, what, kinds, len(differ) - refused, refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=200, help="single-byte corruptions per dtype")
    parser.add_argument("--truncations", type=int, default=50, help="truncations per dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-byte", action="store_true", help="each byte of a tiny store too")
    given = parser.parse_args()
    print(f"{'dtype':8} {'damage':10} {'file':20} trials found refused-reads wrong-reads")
    for dtype in DTYPES:
        for damage, count in ((flip, given.bytes), (truncate, given.truncations)):
            with tempfile.TemporaryDirectory() as folder:
                where = Path(folder) / "run.zarr"
                build(where, dtype)
                done = list(trials(where, damage, count, f"{given.seed} {dtype}"))
            show(dtype, damage.__name__, done)
    if given.every_byte:
        with tempfile.TemporaryDirectory() as folder:
            build_tiny(Path(folder) / "tiny.zarr")
            show("float32", "every byte", list(every_byte(Path(folder) / "tiny.zarr", given.seed)))


def show(dtype: str, damage: str, done: list[Trial]) -> None:
    """One line for each kind of file, and one for all."""
    for kind in [*sorted({trial.kind for trial in done}), ""]:
        some = [trial for trial in done if kind in ("", trial.kind)]
        found, refused = sum(bool(t.found) for t in some), sum(t.refused for t in some)
        wrong = sum(trial.wrong for trial in some)
        name = kind or "all"
        print(f"{dtype:8} {damage:10} {name:20} {len(some):6} {found:5} {refused:13} {wrong:11}")


if __name__ == "__main__":
    main()
