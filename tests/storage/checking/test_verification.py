from __future__ import annotations

import errno
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import corruption
import numpy as np
import pytest
import zarr

import trakstore as ts
from trakstore.errors import DamagedError, LocationError, NotFoundError, SpecMismatchError
from trakstore.spec import SplitSpec
from trakstore.storage.arrays import array_documents, encode
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.checking import repeated_ids, walk
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.columns import stored_rows
from trakstore.storage.completion import forget_complete, note_complete
from trakstore.storage.group_documents import attributes, group_document
from trakstore.storage.tables.runs import Run, record_run
from trakstore.storage.writer import BlockWriter

X = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A store of one split: rows 0-2, 3-5, 6-8, 9."""
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=8))
    store.write_split(0, "train", X, ids=[f"r{i}" for i in range(10)], block_rows=3)
    return tmp_path / "s.zarr"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for a dtype, with a store that has everything and an older copy of it: to be copied."""

    @cache
    def building(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(dtype)
        corruption.build(folder / "s.zarr", dtype, folder / "older.zarr")
        return folder

    return building


def kinds(where: Path) -> set[tuple[str, int | None]]:
    return {(finding.kind, finding.block) for finding in verify_store(where).findings}


def test_a_sound_store(built: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(built("float16"), tmp_path, dirs_exist_ok=True)
    report = verify_store(tmp_path / "s.zarr", workers=3)
    assert report.ok and not report.leftovers
    blocks = [(one.epoch, one.split, one.written_blocks, one.blocks) for one in report.splits]
    half = [(0, "half", 3, 5), (0, "bad", 5, 5)]
    full = [(epoch, split, 5, 5) for epoch in corruption.EPOCHS for split in ("test", "train")]
    assert sorted(blocks, key=str) == sorted(half + full, key=str)
    assert verify_store(tmp_path / "s.zarr", repair=True).ok


@pytest.mark.parametrize("dtype", corruption.DTYPES)
@pytest.mark.parametrize(
    ("flips", "truncations"), [(10, 4), pytest.param(40, 16, marks=pytest.mark.slow)]
)
def test_random_damage_is_found_and_never_read_as_numbers(
    built: Callable[[str], Path], tmp_path: Path, dtype: str, flips: int, truncations: int
) -> None:
    shutil.copytree(built(dtype), tmp_path, dirs_exist_ok=True)
    where = tmp_path / "s.zarr"
    for damage, count in ((corruption.flip, flips), (corruption.truncate, truncations)):
        for trial in corruption.trials(where, damage, count, dtype):
            assert trial.found, trial
            assert trial.wrong == 0, trial
    assert verify_store(where).ok


@pytest.mark.parametrize("dtype", corruption.DTYPES)
@pytest.mark.parametrize("files", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_what_was_displaced_is_found_and_never_read_as_numbers(
    built: Callable[[str], Path], tmp_path: Path, dtype: str, files: int
) -> None:
    """Sound files that are deleted, swapped, copied, older, or documents that were edited."""
    shutil.copytree(built(dtype), tmp_path, dirs_exist_ok=True)
    where, older = tmp_path / "s.zarr", tmp_path / "older.zarr"
    for trial in corruption.displaced(where, older, files, dtype):
        assert trial.found, trial
        assert trial.wrong == 0, trial
    assert verify_store(where).ok


def test_every_byte_of_the_documents_counts(where: Path) -> None:
    documents = ["zarr.json", "0/zarr.json", "0/train/zarr.json", "0/train/norm/zarr.json"]
    rng = np.random.default_rng(0)
    for path in (where / name for name in documents):
        good = path.read_bytes()
        for at in rng.choice(len(good), 15, replace=False):
            path.write_bytes(good[:at] + bytes([good[at] ^ rng.integers(1, 256)]) + good[at + 1 :])
            assert not verify_store(where).ok, (path, at)
        path.write_bytes(good)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def marker(where: Path, block: int, **changes: int) -> None:
    """Write a sound marker that says something else."""
    row = zarr.open_array(where / "0/train/written", mode="r")[block]
    for at, value in changes.items():
        row[{"rows": 0, "nonce": 1, "tail": 2}[at]] = value
    split = ts.open_store(where).split(0, "train")
    documents = array_documents(split.spec)
    for key, value in encode(documents, (block, block + 1), {"written": row[None]}).items():
        (where / "0/train" / key).write_bytes(value)


def aged(path: Path) -> None:
    os.utime(path, (time.time() - 7200,) * 2)


DAMAGES: dict[str, tuple[Callable[[Path], Any], set[tuple[str, int | None]]]] = {
    "missing chunk": (lambda s: (s / "features/c/1/0").unlink(), {("missing", 1)}),
    "truncated chunk": (lambda s: os.truncate(s / "norm/c/2", 5), {("truncated", 2)}),
    "empty chunk": (lambda s: os.truncate(s / "sample_id/c/0", 0), {("truncated", 0)}),
    "flipped bit": (lambda s: flip(s / "features/c/3/0"), {("damaged", 3)}),
    "flipped bit in text": (lambda s: flip(s / "sample_id/c/3"), {("damaged", 3)}),
    "sound chunk from elsewhere": (
        lambda s: shutil.copy(s / "features/c/0/0", s / "features/c/1/0"),
        {("foreign", 1)},
    ),
    "flipped marker": (lambda s: flip(s / "written/c.1.0"), {("marker", 1)}),
    "empty marker": (lambda s: os.truncate(s / "written/c.1.0", 0), {("marker", 1)}),
    "deleted marker": (lambda s: (s / "written/c.1.0").unlink(), {("marker", 1)}),
    "deleted last marker": (lambda s: (s / "written/c.3.0").unlink(), {("marker", 3)}),
    "stale marker": (lambda s: marker(s.parent.parent, 1, nonce=7), {("marker", 1)}),
    "marker of other rows": (lambda s: marker(s.parent.parent, 1, rows=2), {("marker", 1)}),
    "marker of another chunk": (lambda s: marker(s.parent.parent, 1, tail=2), {("foreign", 1)}),
    "marker of no block": (
        lambda s: aged(Path(shutil.copy(s / "written/c.3.0", s / "written/c.4.0"))),
        {("marker", 4)},
    ),
    "no array document": (lambda s: (s / "norm/zarr.json").unlink(), {("document", None)}),
    "other array document": (
        lambda s: shutil.copy(s / "norm/zarr.json", s / "features/zarr.json"),
        {("document", None)},
    ),
    "no epoch document": (lambda s: (s.parent / "zarr.json").unlink(), {("document", None)}),
    "reformatted split document": (
        lambda s: (s / "zarr.json").write_bytes((s / "zarr.json").read_bytes() + b"\n"),
        {("document", None)},
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repair_makes_it_writable(where: Path, damage: str) -> None:
    do, wanted = DAMAGES[damage]
    do(where / "0/train")
    assert kinds(where) == wanted
    before = {path: path.stat().st_mtime_ns for path in where.glob("0/train/*/c/*")}
    report = verify_store(where, repair=True)
    assert all(finding.repaired for finding in report.findings) and not report.ok
    missing = {block for _, block in wanted if block is not None and block < 4}
    assert set(ts.open_store(where).split(0, "train").missing_blocks()) == missing
    again = verify_store(where)
    assert again.ok and again.splits[0].written_blocks == 4 - len(missing)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # no chunk was touched
    store = ts.open_store(where)
    split = store.write_split(0, "train", X, ids=[f"r{i}" for i in range(10)], block_rows=3)
    np.testing.assert_array_equal(split.column("features").read(0, 10), X)
    assert split.column("sample_id").read(0, 10).tolist() == [f"r{i}" for i in range(10)]
    assert verify_store(where).ok


def test_a_marker_is_missed_as_long_as_it_is_known_that_it_was_there(where: Path) -> None:
    store = ts.open_store(where)
    store.append(0, "train", X[:4], ids=list("abcd"))
    written, note = where / "0/train/written", where / "_complete/0/train/zarr.json"
    (written / "c.4.0").unlink()  # of the rows that were appended
    assert kinds(where) == {("marker", 4)}
    shutil.rmtree(note.parent)  # so stores of before are
    assert verify_store(where).ok
    assert [one.written_blocks for one in verify_store(where).splits] == [4]
    store.drop(0, "train")
    store.write_split(0, "train", X, block_rows=3)
    assert note.exists()
    store.drop(0, "train")
    assert not note.parent.exists() and verify_store(where).ok


@pytest.mark.parametrize("damage", ["deleted", "edited", "of another split", "older", "of before"])
def test_the_note_that_a_split_was_complete(where: Path, damage: str) -> None:
    store = ts.open_store(where)
    store.write_split(0, "test", X[:3])
    note = where / "_complete/0/train/zarr.json"
    older = note.read_bytes()
    store.append(0, "train", X[:4], ids=list("abcd"))
    wanted = note.read_bytes()
    if damage == "deleted":
        note.unlink()
    elif damage == "edited":
        note.write_bytes(wanted.replace(b'"rows": 14', b'"rows": 12'))
    elif damage == "of another split":
        shutil.copy(where / "_complete/0/test/zarr.json", note)
    elif damage == "older":
        note.write_bytes(older)
    else:
        note.write_bytes(wanted + b" ")
    [finding] = verify_store(where).findings
    assert (finding.kind, finding.key) == ("document", "_complete/0/train/zarr.json")
    assert verify_store(where, repair=True).findings[0].repaired
    assert note.read_bytes() == wanted and verify_store(where).ok


def test_repair_puts_no_document_of_a_split_back_that_is_dropped_meanwhile(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has looked at the document, and before it keeps others from the split."""
    store = ts.open_store(where)
    refuse_older = walk.refuse_older

    def dropped(*given: Any) -> None:
        refuse_older(*given)
        monkeypatch.setattr(walk, "refuse_older", refuse_older)
        store.drop(0, "train")

    monkeypatch.setattr(walk, "refuse_older", dropped)
    assert verify_store(where, repair=True).ok
    assert not (where / "0/train").exists()


def test_a_worker_that_is_late_does_not_note_what_was_repaired(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = ts.open_store(where).split(0, "train")
    flip(where / "0/train/norm/c/1")
    forget_complete(split)
    place = type(split.location)
    whole = place.put

    def put(self: Any, values: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, "put", whole)
            verify_store(where, repair=True)  # between the worker's look and its note
        whole(self, values)

    monkeypatch.setattr(place, "put", put)
    note_complete(split)
    assert split.missing_blocks() == [1]
    assert verify_store(where).ok and not (where / "_complete/0/train").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("0/train/features/c/4/0", "0/train/features/c/0/1", "0/train/norm/c/01"),
        *("0/train/x.txt", "0/train/written/c.0", "0/notes", "thesis", "photos/a.jpg"),
        *("_complete/0/x.txt", "_claims/x.txt"),
    ],
)
def test_files_that_do_not_belong_are_reported_and_left_alone(where: Path, name: str) -> None:
    (where / name).parent.mkdir(exist_ok=True)
    (where / name).write_text("mine")
    report = verify_store(where, repair=True)
    shown = name.partition("/")[0] if name.startswith("photos") else name
    assert [(one.kind, one.key, one.repaired) for one in report.findings] == [
        ("foreign", shown, False)
    ]
    assert (where / name).read_text() == "mine"


def test_leftovers_are_harmless_and_old_ones_are_removed(where: Path) -> None:
    old, young = where / "0/train/norm/c/3.ab12.partial", where / "0/train/norm/c/2#1"
    for path in (old, young):
        path.write_text("half")
    aged(old)
    report = verify_store(where)
    assert report.ok and len(report.leftovers) == 2
    assert verify_store(where, repair=True).leftovers == ("0/train/norm/c/2#1",)
    assert young.exists() and not old.exists()


def written(where: Any, rows: np.ndarray[Any, Any], **columns: np.ndarray[Any, Any]) -> None:
    dtype = rows.dtype.name
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=8), dtype=dtype)
    names = (("features", dtype), ("norm", "float32"), ("sample_id", "int64"))
    split = store.create_split(0, "train", SplitSpec(len(rows), 8, names, block_rows=4))
    for block in split.missing_blocks():
        a, b = split.spec.block_range(block)
        stored = stored_rows(np.nan_to_num(rows[a:b], posinf=1.0), dtype, a)
        block_of = {"features": rows[a:b], "sample_id": np.arange(a, b)}
        BlockWriter(split).write(
            block, stored | block_of | {name: array[a:b] for name, array in columns.items()}
        )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite(tmp_path: Path, dtype: str, bad: float) -> None:
    rows = X.astype(dtype)
    rows[5, 3] = bad
    written(tmp_path / "s.zarr", rows)
    [finding] = verify_store(tmp_path / "s.zarr").findings
    assert (finding.kind, finding.block) == ("non-finite", 1) and "1 row (5)" in finding.message


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-4), ("float16", 0.02)])
def test_norms_that_disagree(tmp_path: Path, dtype: str, off: float) -> None:
    rows = X.astype(dtype)
    norm = np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)
    norm[[0, 9]] *= 1 + off
    written(tmp_path / "s.zarr", rows, norm=norm)
    found = verify_store(tmp_path / "s.zarr").findings
    assert [(one.kind, one.block) for one in found] == [("norm", 0), ("norm", 2)]
    norm[[0, 9]] /= 1 + off
    written(tmp_path / "sound.zarr", rows, norm=norm * np.float32(1 + off / 20))
    assert verify_store(tmp_path / "sound.zarr").ok


def test_what_the_writer_accepts_is_sound(tmp_path: Path) -> None:
    """Tiny, huge and zero rows, and float64 that is narrowed."""
    for dtype, scales in (("float32", [1e-42, 1e-38, 1, 1e37]), ("float16", [1e-4, 1, 1e4])):
        spec = ts.ProjectionSpec("sjlt", dim=8)
        store = ts.FeatureStore.create(tmp_path / dtype, projection=spec, dtype=dtype)
        for i, scale in enumerate(scales):
            store.write_split(i, "train", X.astype(np.float64) * scale, block_rows=4)
        store.write_split("zero", "train", np.zeros_like(X))
        assert verify_store(tmp_path / dtype).ok


def test_damaged_documents_of_splits_and_of_the_store(where: Path) -> None:
    store = ts.open_store(where)
    store.write_split(1, "train", X)
    flip(where / "0/train/zarr.json")
    report = verify_store(where)
    assert [(one.kind, one.key) for one in report.findings] == [("document", "0/train/zarr.json")]
    assert [(one.epoch, one.split) for one in report.splits] == [(1, "train")]
    assert not verify_store(where, splits=["train"], epochs=[0]).ok
    with pytest.raises(DamagedError, match="metadata document is damaged"):
        store.split(0, "train")
    for break_root in (flip, Path.unlink):
        break_root(where / "zarr.json")
        found = {one.key for one in verify_store(where).findings}
        assert found == {"zarr.json", "0/train/zarr.json"}
        with pytest.raises((DamagedError, LocationError)):
            ts.open_store(where)


def test_a_changed_number_in_a_document_is_never_believed(where: Path) -> None:
    path = where / "0/train/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 10', b'"rows": 11'))
    with pytest.raises(DamagedError, match="checksum"):
        ts.open_store(where).split(0, "train")


def test_places_that_are_no_stores_and_newer_stores(tmp_path: Path, where: Path) -> None:
    with pytest.raises(LocationError, match="no such folder"):
        verify_store(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LocationError, match="there is no store"):
        verify_store(tmp_path / "empty")
    zarr.open_group(tmp_path / "other", mode="w", attributes={"mine": 1})
    with pytest.raises(LocationError, match="not a trakstore store"):
        verify_store(tmp_path / "other")
    found = attributes((where / "zarr.json").read_bytes(), "here")
    found["trakstore"]["format"] = 3
    (where / "zarr.json").write_bytes(group_document(found))
    with pytest.raises(SpecMismatchError, match="format 3"):
        verify_store(where)


def test_only_the_asked_for(where: Path) -> None:
    ts.open_store(where).write_split(1, "test", X)
    flip(where / "0/train/features/c/0/0")
    assert verify_store(where, epochs=[1]).ok
    assert not verify_store(where, splits=["train"]).ok
    assert [one.split for one in verify_store(where, splits=["test"]).splits] == ["test"]
    with pytest.raises(NotFoundError, match="did you mean 'train'"):
        verify_store(where, splits=["trian"])
    with pytest.raises(NotFoundError, match="epoch 7"):
        verify_store(where, epochs=[7])


def test_a_bad_sector_is_damage_and_a_lost_network_is_not(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DurableLocalStore.get_at_most

    async def get(self: Any, key: str, *given: Any) -> Any:
        if key == "0/train/norm/c/2":
            raise OSError(code, os.strerror(code))
        return await whole(self, key, *given)

    monkeypatch.setattr(DurableLocalStore, "get_at_most", get)
    code = errno.EIO
    assert kinds(where) == {("damaged", 2)}
    code = errno.ENETUNREACH
    with pytest.raises(LocationError, match="unreachable"):
        verify_store(where, repair=True)
    assert not ts.open_store(where).split(0, "train").missing_blocks()


def test_saved_scores(where: Path) -> None:
    store = ts.open_store(where)
    store.write_split(1, "train", X, out_to_loss=np.ones(10))
    store.write_split(1, "test", X[:4])
    ts.save_scores(ts.trak_scores(store, targets="test", train="train"), store, "all")
    assert verify_store(where).ok
    flip(where / "scores/all/scores/c/0/0")
    (where / "scores/all/train_id/c/0").unlink()
    assert sorted(kinds(where)) == [("damaged", None), ("missing", None)]
    with pytest.raises(DamagedError, match="missing"):
        ts.open_scores(store, "all").train_id.compute()


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("stop_at", range(6))
def test_an_append_that_was_stopped_is_reported_and_undone(
    where: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, again: bool
) -> None:
    store = ts.open_store(where)
    place, calls = type(store.location), iter(range(100))
    whole = place.put

    def put(self: Any, values: Any) -> None:
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        whole(self, values)

    more = {"features": X[:4], "ids": list("abcd")}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, "put", put)
        store.append(0, "train", **more)
    found = verify_store(where).findings
    assert all("append" in one.message or one.kind == "document" for one in found), found
    if again:
        store.append(0, "train", **more)
        np.testing.assert_array_equal(store.features(0, "train"), np.concatenate([X, X[:4]]))
    else:
        for path in where.rglob("*"):
            aged(path)
        assert all(finding.repaired for finding in verify_store(where, repair=True).findings)
        np.testing.assert_array_equal(store.features(0, "train"), X)
    assert verify_store(where).ok


def test_grams_are_checked_and_a_bad_one_is_computed_again(where: Path) -> None:
    store = ts.open_store(where)
    wanted = ts.kernel_report(store, 0, "train").to_dict()
    assert [path.name for path in where.glob("grams/0/*/zarr.json")] == ["zarr.json"]
    assert verify_store(where).ok
    for name in ("zarr.json", "gram/zarr.json", "gram/c/0/0"):
        flip(where / "grams/0/train" / name)
        [finding] = verify_store(where, repair=True).findings
        assert finding.repaired and finding.key == f"grams/0/train/{name}"
        assert verify_store(where).ok
        assert ts.kernel_report(store, 0, "train").to_dict() == wanted
        assert verify_store(where).ok


def test_masked_rows_and_records_of_runs(where: Path) -> None:
    ts.open_store(where).mask("train", ["r4", "r9"])
    record_run(
        ts.open_store(where).location, Run(0, "train", "j", "", "", 0, 1, "cpu", 10, 4, {"a": "1"})
    )
    assert verify_store(where).ok
    [record] = where.glob("runs/*/zarr.json")
    mask = where / "_masks/train/1/zarr.json"
    for path in (record, mask):
        flip(path)
        [finding] = verify_store(where).findings
        assert finding.key == path.relative_to(where).as_posix()
        flip(path)
    flip(mask)
    with pytest.raises(DamagedError):
        ts.open_store(where).split(0, "train")


def test_rounded_and_compressed_features(tmp_path: Path) -> None:
    spec = ts.ProjectionSpec("sjlt", dim=8)
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec, keep_bits=7)
    store.write_split(0, "train", X, block_rows=3)
    assert verify_store(store).ok
    for path in sorted((tmp_path / "s.zarr").rglob("*")):
        if path.is_file():
            flip(path)
            assert not verify_store(tmp_path / "s.zarr").ok, path
            flip(path)
    shutil.copytree(tmp_path / "s.zarr", tmp_path / "off.zarr")
    split = ts.open_store(tmp_path / "off.zarr").split(0, "train")
    wrong = stored_rows(X[:3] * 1.05, "float32", 0, 7) | {"sample_id": np.arange(3)}
    BlockWriter(split).write(0, wrong | {"norm": np.linalg.norm(X[:3], axis=1)})
    assert kinds(tmp_path / "off.zarr") == {("norm", 0)}


def test_memory_stores_and_the_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    memory = zarr.storage.MemoryStore()
    written(memory, X)
    key = "0/train/features/c/0/0"
    memory._store_dict[key] = memory._store_dict["0/train/features/c/1/0"]
    report = verify_store(memory, progress=True).to_dict()
    assert report["ok"] is False and report["splits"][0]["bad_blocks"] == 1
    assert {"kind": "foreign", "key": key, "epoch": 0, "split": "train", "block": 0}.items() <= (
        report["findings"][0].items()
    )
    assert str(verify_store(memory).findings[0]).startswith(f"foreign: {key} is sound but")
    assert capsys.readouterr().out == ""


def test_memory_is_a_few_chunks_for_each_thread(tmp_path: Path) -> None:
    spec = ts.ProjectionSpec("sjlt", dim=4096)
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec)
    store.write_split(0, "train", np.ones((4096, 4096), np.float32), block_rows=1024)  # 64 MiB
    tracemalloc.start()
    try:
        assert verify_store(store, workers=2).ok
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 4 * 8 * 2**20, f"{peak / 2**20:.0f} MiB"


def test_object_storage(bucket: str) -> None:
    url = f"{bucket}/run.zarr"
    store = ts.FeatureStore.create(url, projection=ts.ProjectionSpec("sjlt", dim=8))
    store.write_split(0, "train", X, out_to_loss=np.ones(10), block_rows=3)
    store.write_split(0, "test", X[:4])
    ts.save_scores(ts.trak_scores(store, targets="test", train="train"), store, "all")
    assert verify_store(url).ok
    key = "0/train/features/c/2/0"
    store.location.put({key: (store.location.get(key) or b"")[:-5], "0/train/mine": b"x"})
    found = {(one.kind, one.key) for one in verify_store(url, repair=True).findings}
    assert found == {("truncated", key), ("foreign", "0/train/mine")}
    assert store.split(0, "train").missing_blocks() == [2]
    store.write_split(0, "train", X, out_to_loss=np.ones(10), block_rows=3)
    store.location.delete(["0/train/mine"])
    assert verify_store(url).ok


def test_a_link_in_place_of_the_tables_is_told_once(tmp_path: Path) -> None:
    where = tmp_path / "s.zarr"
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", 4))
    store.write_split(0, "train", np.ones((3, 4), np.float32))
    (tmp_path / "elsewhere").mkdir()
    (where / "scores").symlink_to(tmp_path / "elsewhere")
    assert [(one.kind, one.key) for one in ts.verify_store(where).findings] == [
        ("foreign", "scores")
    ]


def document_with(where: Path, key: str, **changed: Any) -> None:
    """Write a document again with other attributes, and the checksum of these."""
    own = attributes((where / key).read_bytes(), "")
    root = own.get("trakstore")
    own = {"trakstore": {**root, **changed}} if root else {**own, **changed}
    (where / key).write_bytes(group_document(own))


def test_a_root_whose_splits_cannot_be_its_own_is_found(where: Path) -> None:
    projection = ts.ProjectionSpec("sjlt", dim=9).to_dict()
    document_with(where, "zarr.json", projection=projection)
    (finding,) = verify_store(where).findings
    assert (finding.kind, finding.key) == ("document", "0/train/zarr.json")
    assert (
        "dim, dtype and keep_bits are (8, 'float32', None), the store's says (9," in finding.message
    )
    (again,) = verify_store(where, repair=True).findings
    assert not again.repaired


def test_a_root_with_fields_that_no_writer_gives_is_found(where: Path) -> None:
    document_with(where, "zarr.json", keep_bits=77)
    (finding,) = verify_store(where).findings
    assert (finding.kind, finding.key) == ("document", "zarr.json")
    assert "keep_bits of the store's document must be" in finding.message


def test_a_learning_rate_below_zero_is_one_finding_among_others(where: Path) -> None:
    store = ts.open_store(where)
    store.write_split(1, "train", X, block_rows=3, learning_rate=0.5)
    document_with(where, "1/train/zarr.json", learning_rate=-1.0)
    with pytest.raises(
        DamagedError,
        match="learning_rate of the split's document must be a finite number >= 0, got -1",
    ):
        ts.open_store(where).split(1, "train")
    chunk = where / "0/train/norm/c/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    found = {(one.kind, one.key) for one in verify_store(where).findings}
    assert found == {("document", "1/train/zarr.json"), ("damaged", "0/train/norm/c/0")}


@pytest.mark.parametrize("at_once", [2**23, 2], ids=["one pass", "shares"])
@pytest.mark.parametrize("name", [int, "r{}".format])
def test_rows_of_one_id_are_found(
    where: Path, monkeypatch: pytest.MonkeyPatch, name: Any, at_once: int
) -> None:
    """Blocks are written one by one, so that a program of one's own may give ids twice."""
    monkeypatch.setattr(repeated_ids, "_AT_ONCE", at_once)
    dtype = "int64" if name is int else "str"
    columns = tuple(sorted({"features": "float32", "norm": "float32", "sample_id": dtype}.items()))
    store = ts.open_store(where)
    split = store.create_split(2, "train", SplitSpec(10, 8, columns, block_rows=3))
    for block, own in enumerate(([5, 1, 2], [3, 4, 0], [6, 5, 8], [3])):
        ids = np.array([name(one) for one in own])
        ids = ids if name is int else ids.astype(np.dtypes.StringDType())
        rows = stored_rows(X[slice(*split.spec.block_range(block))], "float32", 0)
        BlockWriter(split).write(block, rows | {"sample_id": ids})
    (finding,) = verify_store(where).findings
    assert (finding.kind, finding.key, finding.split) == ("ids", "2/train/sample_id", "train")
    firsts = {f"first {name(5)!r} in rows 0, 7", f"first {name(3)!r} in rows 3, 9"}
    assert any(one in finding.message for one in firsts)
    if at_once > 10:
        assert "2 ids, first " + f"{name(5)!r} in rows 0, 7" in finding.message


@pytest.mark.parametrize("times", [1, 2])
def test_a_document_that_is_right_at_another_look_was_being_written(
    where: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A writer that appends or masks puts two documents that go together, one after the other."""
    key, seen, read = "0/train/features/zarr.json", list[str](), walk.Walk.read

    def between(self: walk.Walk, asked: str, most: int | None = None) -> tuple[bytes | None, str]:
        seen.append(asked)
        early = asked == key and seen.count(key) <= times
        return (b"{}", "is damaged or disagrees") if early else read(self, asked, most)

    monkeypatch.setattr(walk.Walk, "read", between)
    report = verify_store(where)
    assert report.ok == (times < 2)
    assert [one.key for one in report.findings] == [key] * (times - 1)
    # The blocks were read once.
    assert report.splits[0].written_blocks == 4 and report.splits[0].bad_blocks == 0
