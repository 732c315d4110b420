"""Damages the files of a small store one at a time: is each found, and is no wrong number read?

    python benchmarks/corruption.py --bytes 200 --truncations 50 --displaced 200

prints one line for each kind of file and dtype. Every file of the store is as likely; a corruption
replaces one random byte by another value, a truncation keeps a random shorter length. A file that is
displaced is sound: it is deleted, swapped with or replaced by another of its kind, put back from an
older copy of the store, or is a document in which a value was edited.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.evaluation import add_retrained, retrained_models
from trakstore.kernels.stored_grams import split_gram
from trakstore.spec import SplitSpec
from trakstore.storage.backends.location import Location
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.columns import row_columns_of, stored_rows
from trakstore.storage.completion import note_complete
from trakstore.storage.skipped import skipped_norms, skipped_rows
from trakstore.storage.tables.training_records import MEASURES, TrainingRun, add_part, record_parts
from trakstore.storage.writer import BlockWriter

ROWS, MORE, DIM, BLOCK = 35, 2, 24, 8
EPOCHS: tuple[int | str, ...] = (0, 5, "final")
DTYPES = ("float32", "float16")
COLUMNS = ("features", "norm", "sample_id", "label", "out_to_loss")

Columns = dict[tuple[Any, ...], Any]


def columns_of(epoch: int | str, split: str) -> dict[str, Any]:
    """What ``write_split`` is given: strings as ids and labels at ``train``."""
    rng, rows = np.random.default_rng([EPOCHS.index(epoch), len(split)]), ROWS + MORE
    given: dict[str, Any] = {"features": rng.normal(size=(rows, DIM)).astype(np.float32)}
    if split == "train":
        given["ids"] = [f"bild-{i}-ü" for i in range(rows)]
        given["labels"] = rng.integers(0, 10, rows)
        given["out_to_loss"] = rng.random(rows, dtype=np.float32)
    return given


def build(where: Path, dtype: Any = "float32", older: Path | None = None) -> ts.FeatureStore:
    """A store with everything that a store can have, and one split that is not complete.

    ``older`` is where a copy goes that is made on the way: rows are appended, and more is left out,
    after it.
    """
    spec = ts.ProjectionSpec("sjlt", dim=DIM)
    store = ts.FeatureStore.create(where, projection=spec, dtype=dtype)
    for epoch in EPOCHS:
        for split in ("train", "test"):
            given = {name: array[:ROWS] for name, array in columns_of(epoch, split).items()}
            store.write_split(epoch, split, **given, block_rows=BLOCK)
    columns = tuple(sorted({**row_columns_of(dtype), "sample_id": "int64"}.items()))
    for name, blocks in (("half", (0, 2, 4)), ("bad", range(5))):
        split = store.create_split(0, name, SplitSpec(ROWS, DIM, columns, block_rows=BLOCK))
        for block in blocks:
            a, b = split.spec.block_range(block)
            rows = stored_rows(columns_of(0, name)["features"][a:b], dtype, a)
            rows["sample_id"] = np.arange(a, b)
            BlockWriter(split).write(
                block, rows | (_bad_rows(rows, block) if name == "bad" else {})
            )
        note_complete(split)
    store.mask("train", ["bild-3-ü"], epochs=["final"])
    if older is not None:
        shutil.copytree(where, older)
    for epoch in EPOCHS:
        for split in ("train", "test"):
            given = {name: array[ROWS:] for name, array in columns_of(epoch, split).items()}
            store.append(epoch, split, **given)
    store.mask("train", ["bild-9-ü", "bild-36-ü"])
    _save_tables(store)
    return store


def _bad_rows(rows: dict[str, Any], block: int) -> dict[str, Any]:
    """What is stored where a row of every second block was bad, for a reason of its own."""
    if block % 2:
        return {}
    reasons = np.zeros(len(rows["norm"]), dtype=np.uint8)
    reasons[block // 2] = 1 + block
    bad, features, norm = reasons > 0, rows["features"].copy(), rows["norm"].copy()
    features[bad] = np.nan if features.dtype.kind == "f" else -1
    norm[bad] = skipped_norms(reasons[bad])
    changed = {"features": features, "norm": norm, "skipped": reasons}
    if "row_scale" in rows:
        changed["row_scale"] = np.where(bad, np.float32(np.nan), rows["row_scale"])
    return changed


def _save_tables(store: ts.FeatureStore) -> None:
    """Scores of several kinds, grams, models that were trained again, and what training showed."""
    scores = ts.trak_scores(store, targets="test", train="train", epochs=[0, 5])
    others = ts.trak_scores(store, targets="test", train="train", epochs=[0, 5], damping=9.0)
    for name, kept in (("s", {}), ("top", {"top": 3}), ("above", {"threshold": 1.0})):
        for each, which in ((scores, name), (others, f"{name}2")):
            ts.save_scores(each, store, which, **kept)
    rng = np.random.default_rng(1)
    for _ in range(3):
        subsets = rng.random((2, ROWS)) < 0.5
        add_retrained(store, "again", subsets, rng.normal(size=(2, 5)).astype(np.float32))
    for order in (1, 2):
        run = TrainingRun(f"run{order}", "", 0, order)
        for part in range(2):
            values = rng.normal(size=(6, len(MEASURES))).astype(np.float32)
            epochs = np.full(6, part, dtype=np.int64)
            add_part(store.location, "train", run, part, np.arange(6), epochs, values)


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
    """Every column of every split, and all tables; where reading is refused, the error."""
    columns: Columns = {}
    opened = _or_refusal(lambda: ts.open_store(where))

    def keep(name: tuple[Any, ...], values: Callable[[], Any]) -> None:
        columns[name] = opened if isinstance(opened, Exception) else _or_refusal(values)

    for epoch in EPOCHS:
        for split in ("train", "test", *(["half", "bad"] if epoch == 0 else [])):
            columns |= _split_columns(opened, epoch, split)
        keep((epoch, "gram"), lambda: _gram(opened, epoch))  # noqa: B023
    for name in ("s", "s2", "top", "top2", "above", "above2"):
        keep((name,), lambda: _values(ts.open_scores(opened, name)))  # noqa: B023
    keep(("again",), lambda: _values(retrained_models(opened, "again")))
    keep(("dynamics",), lambda: _dynamics(opened))
    return columns


def _or_refusal(values: Callable[[], Any]) -> Any:
    """Call a function; return the error where reading is refused."""
    try:
        return values()
    except (TrakStoreError, ValueError) as error:  # zarr's own, for a chunk that is damaged
        return error


def _split_columns(store: Any, epoch: Any, name: str) -> Columns:
    """Return each column of a split that is opened once, or the error of each."""

    def opened() -> Any:
        split = store.split(epoch, name)
        if name != "half":
            split.require_complete()
        return split

    split = store if isinstance(store, Exception) else _or_refusal(opened)
    ways = {
        **{column: partial(_column, split, column) for column in COLUMNS},
        "masked": lambda: split.masked,
        "skipped": lambda: np.array([str(row) for row in skipped_rows(split)]),
    }
    refused = isinstance(split, Exception)
    return {
        (epoch, name, column): split if refused else _or_refusal(way)
        for column, way in ways.items()
    }


def _column(split: Any, column: str) -> Any:
    return split.column(column, allow_missing=split.name == "half").read(0, split.rows)


def _gram(store: ts.FeatureStore, epoch: Any) -> Any:
    """The gram of a train split, rounded: one that is damaged is computed again, and not stored."""
    sealed = Location("sealed", store.location.store.with_read_only(True), reopens=False)
    matrix = split_gram(replace(store, location=sealed).split(epoch, "train")).matrix
    return np.round(matrix, 3)


def _values(saved: Any) -> Any:
    """All of a data set's arrays in one."""
    whole = saved.to_dataset(name="scores") if hasattr(saved, "to_dataset") else saved
    with_coords = whole.reset_coords().compute()
    texts = [str(with_coords[name].values.tolist()) for name in sorted(with_coords)]
    return np.array(texts)


def _dynamics(store: ts.FeatureStore) -> Any:
    parts = record_parts(store.location, "train")
    names = ("sample_id", "epoch", "measures")
    return np.array([str([part.read(name).tolist() for name in names]) for part in parts])


def same(got: Any, wanted: Any) -> bool:
    """Equal to the bit, missing rows (NaN) too, or refused alike."""
    if isinstance(wanted, Exception):
        return isinstance(got, Exception)
    return (
        not isinstance(got, Exception)
        and (got.dtype == wanted.dtype or got.dtype.kind == "U")
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
        if parts[0] in ("scores", "grams", "evaluation", "dynamics"):
            return f"saved {parts[0]}"
        if parts[0] in ("_masks", "_claims", "_complete"):
            return parts[0].removeprefix("_")
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


def displaced(where: Path, older: Path, count: int, seed: object = 0) -> Iterator[Trial]:
    """Displace a random file, look, put it right again; ``count`` times."""
    rng, files = random.Random(f"{seed} displaced"), files_of(where)
    kinds = (_delete, _swap, _copy, _older, _edit)

    def changes() -> Iterator[tuple[dict[Path, bytes | None], str]]:
        made = 0
        while made < count:
            path, kind = rng.choice(files), rng.choice(kinds)
            if kind is _delete and _says_only_that_it_is_there(where, path):
                continue
            changed = kind(where, older, path, rng)
            if changed and any(path.read_bytes() != content for path, content in changed.items()):
                made += 1
                yield changed, kind.__name__.strip("_")

    return _changed(where, changes())


_Changed = dict[Path, bytes | None]


def _delete(_where: Path, _older: Path, path: Path, _rng: random.Random) -> _Changed:
    return {path: None}


def _says_only_that_it_is_there(where: Path, path: Path) -> bool:
    """A marker of a split that was never complete: its block is missing without it."""
    return path.relative_to(where).as_posix().startswith("0/half/written/c.")


def _swap(where: Path, _older: Path, path: Path, rng: random.Random) -> _Changed:
    other = _another(where, path, rng)
    return {} if other is None else {path: other.read_bytes(), other: path.read_bytes()}


def _copy(where: Path, _older: Path, path: Path, rng: random.Random) -> _Changed:
    other = _another(where, path, rng)
    return {} if other is None else {path: other.read_bytes()}


def _older(where: Path, older: Path, path: Path, _rng: random.Random) -> _Changed:
    before = older / path.relative_to(where)
    return {path: before.read_bytes()} if before.exists() else {}


def _edit(_where: Path, _older: Path, path: Path, rng: random.Random) -> _Changed:
    """A value of a document, or all of its attributes."""
    if path.name != "zarr.json":
        return {}
    document = json.loads(path.read_bytes())
    attributes = document["attributes"]
    inside = attributes.get("trakstore", attributes) or document
    name = rng.choice(sorted(inside))
    value = inside[name]
    if rng.random() < 0.3:
        document["attributes"] = {}
    else:
        inside[name] = value + 1 if isinstance(value, int) else None
    return {path: json.dumps(document, indent=1, sort_keys=True).encode()}


_NUMBERS = re.compile(r"(?<=/)c[./].*|(?<=models\.)\d+|run\d+\.\d+|\d+(?=\.kept|/zarr|/features)")
_NAMES = re.compile(
    r"(?<=^scores/)(s|top|above)2?(?=/)|^(0|5|final)(?=/)|(?<=^grams/)[^/]+|train|test"
)


def _another(where: Path, path: Path, rng: random.Random) -> Path | None:
    """Another file with the same part to play, and other bytes."""
    alike = [
        one
        for one in files_of(where)
        if _part(where, one) == _part(where, path) and one.read_bytes() != path.read_bytes()
    ]
    return rng.choice(alike) if alike else None


def _part(where: Path, path: Path) -> str:
    key = path.relative_to(where).as_posix()
    return _NUMBERS.sub("*", _NAMES.sub(lambda at: (at[1] or "*") if at[1] else "*", key))


def files_of(where: Path) -> list[Path]:
    """All files of a store."""
    return sorted(path for path in where.rglob("*") if path.is_file())


def _tried(where: Path, damages: Iterable[tuple[Path, bytes, str]]) -> Iterator[Trial]:
    return _changed(where, (({path: content}, what) for path, content, what in damages))


def _changed(where: Path, changes: Iterable[tuple[_Changed, str]]) -> Iterator[Trial]:
    wanted = read(where)
    for changed, what in changes:
        before = {path: path.read_bytes() for path in changed}
        for path, content in changed.items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        report, got = verify_store(where), read(where)
        for path, content in before.items():
            path.write_bytes(content)
        differ = [name for name in wanted if not same(got[name], wanted[name])]
        refused = sum(isinstance(got[name], Exception) for name in differ)
        kinds = tuple(finding.kind for finding in report.findings)
        key = next(iter(changed)).relative_to(where).as_posix()
        yield Trial(key, what, kinds, len(differ) - refused, refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=200, help="single-byte corruptions per dtype")
    parser.add_argument("--truncations", type=int, default=50, help="truncations per dtype")
    parser.add_argument("--displaced", type=int, default=100, help="displaced files per dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-byte", action="store_true", help="each byte of a tiny store too")
    given = parser.parse_args()
    print(f"{'dtype':8} {'damage':10} {'file':20} trials found refused-reads wrong-reads")
    for dtype in (*DTYPES, "int8"):
        for damage, count in ((flip, given.bytes), (truncate, given.truncations)):
            with tempfile.TemporaryDirectory() as folder:
                where = Path(folder) / "run.zarr"
                build(where, dtype)
                done = list(trials(where, damage, count, f"{given.seed} {dtype}"))
            show(dtype, damage.__name__, done)
        with tempfile.TemporaryDirectory() as folder:
            where, older = Path(folder) / "run.zarr", Path(folder) / "older.zarr"
            build(where, dtype, older)
            done = list(displaced(where, older, given.displaced, f"{given.seed} {dtype}"))
        for what in sorted({trial.what for trial in done}):
            show(dtype, what, [trial for trial in done if trial.what == what])
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
