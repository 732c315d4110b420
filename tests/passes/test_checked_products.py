"""Products with float16 rows from their files, and the checksums that are made on the way."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

import trakstore as ts
from trakstore.errors import DamagedError, NumericsError
from trakstore.passes import checked_products as module
from trakstore.passes.checked_products import checked_products
from trakstore.passes.half_precision import few_products
from trakstore.passes.rows import ArrayRows
from trakstore.scores import parts
from trakstore.scores.factored import Scores
from trakstore.scores.top_k import top_k
from trakstore.storage.backends.mapped import maps_files
from trakstore.storage.backends.row_registers import joined, over_zeros

pytestmark = pytest.mark.skipif(
    not module._has_instructions() or not maps_files,
    reason="this machine has no such instructions, or maps no files",
)
ROWS, STEP = 205, 37  # rows of a split, and of its chunks: the last one has 20


@pytest.fixture
def make(tmp_path, draw):
    """Return a function that stores drawn rows: ``(store, column, rows as they are stored)``."""

    def stored(dim=24, dtype="float16", where=None, rows=None):
        rows = draw(ROWS, dim) if rows is None else rows
        store = ts.FeatureStore.create(
            where or tmp_path / "s.zarr",
            projection=ts.ProjectionSpec("sjlt", dim=dim),
            dtype=dtype,
        )
        q = np.ones(len(rows), np.float32)
        store.write_split(0, "train", rows, out_to_loss=q, block_rows=STEP)
        store.write_split(0, "test", rows[:3] * 2, out_to_loss=np.ones(3, np.float32))
        return store, store.split(0, "train").column("features"), rows.astype(dtype)

    return stored


def file_of(store: ts.FeatureStore, chunk: int) -> Path:
    return Path(str(store.location)) / f"0/train/features/c/{chunk}/0"


@pytest.mark.parametrize("targets", [1, 3, 4, 9])
@pytest.mark.parametrize("dim", [4, 24, 300])
def test_products_are_those_of_read_rows(make, draw, targets, dim):
    _, column, rows = make(dim)
    lefts = draw(targets, dim)
    wanted = np.empty((targets, ROWS), np.float32)
    few_products(lefts, rows, wanted)
    wide = np.full((targets, ROWS + 2), np.nan, np.float32)
    assert checked_products(lefts, column, 0, ROWS, wide[:, :ROWS])
    np.testing.assert_allclose(wide[:, :ROWS], wanted, rtol=1e-5, atol=1e-5)
    assert np.isnan(wide[:, ROWS:]).all()
    exact = lefts.astype(np.float64) @ rows.astype(np.float64).T
    np.testing.assert_allclose(wide[:, :ROWS], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "stop"), [(0, STEP), (STEP, 2 * STEP + 1), (5 * STEP, ROWS)])
def test_a_part_is_that_of_all_and_so_it_is_in_another_process(make, draw, start, stop):
    _, column, _ = make()
    left, every = draw(2, 24), np.empty((2, ROWS), np.float32)
    assert checked_products(left, column, 0, ROWS, every)
    for one in (column, pickle.loads(pickle.dumps(column))):  # noqa: S301
        part = np.empty((2, stop - start), np.float32)
        assert checked_products(left, one, start, stop, part)
        np.testing.assert_array_equal(part, every[:, start:stop])


def test_registers_of_rows_join_to_the_checksum_of_all():
    for count, size in ((1, 8), (2, 8), (5, 24), (37, 4096)):
        rows = np.random.default_rng(0).integers(0, 2**64, (count, size // 8), np.uint64)
        sums, out = np.empty(count, np.uint64), np.empty((0, count), np.float32)
        none, zeros = np.empty((0, size // 2), np.float32), np.zeros(size // 2, np.float32)
        for multiply, left in ((module._multiply, none), (module._multiply_one, zeros)):
            places = out if left is none else np.empty(count, np.float32)
            multiply(places, sums, left, rows.view(np.uint16), rows)
            checksum = joined(sums, over_zeros(size))
            assert checksum == crc32c(rows.tobytes())


def test_others_are_read(make, tmp_path, monkeypatch):
    def is_made(column, start=0, stop=STEP):
        return checked_products(
            np.ones((1, column.shape[1]), np.float32),
            column,
            start,
            stop,
            np.empty((1, stop - start), np.float32),
        )

    _, column, rows = make()
    assert is_made(column)
    assert not is_made(column, 1)
    assert not is_made(ArrayRows(rows))
    assert not is_made(replace(column, missing=((0, 1),)))
    for name, how in (
        ("odd", {"dim": 6}),
        ("wide", {"dtype": "float32"}),
        ("small", {"dtype": "int8"}),
        ("memory", {"where": "memory://checked-products"}),
    ):
        place = tmp_path / name
        _, other, _ = make(**{"where": place, **how})
        assert not is_made(other), name
    monkeypatch.setattr(module, "_has_instructions", lambda: False)
    assert not is_made(column)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": (flip, "chunk 0/train/features/c/2/0 does not have the checksum"),
    "a shorter file": (lambda path: os.truncate(path, 100), "c/2/0 does not have the checksum"),
    "a longer file": (lambda path: os.truncate(path, 10**6), "c/2/0 has 1,000,000 bytes"),
    "no file": (Path.unlink, "chunk 0/train/features/c/2/0 is missing"),
    "another chunk": (
        lambda path: path.write_bytes((path.parents[1] / "1/0").read_bytes()),
        "is sound but is not the one",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_as_of_rows_that_are_read(make, name, monkeypatch):
    damage, message = DAMAGES[name]
    store, column, _ = make()
    scores = ts.grad_dot_scores(store, of="output").isel(target=[0])
    damage(file_of(store, 2))
    out = np.empty((1, STEP), np.float32)
    assert not checked_products(np.ones((1, 24), np.float32), column, 2 * STEP, 3 * STEP, out)
    for many in (2**25, 0):
        monkeypatch.setattr(parts, "MANY_VALUES", many)
        with pytest.raises(DamagedError, match=message):
            top_k(scores, 5)


@pytest.mark.parametrize("masked", [False, True])
def test_lists_are_those_of_rows_that_are_read(make, monkeypatch, masked):
    store, _, _ = make()
    if masked:
        store.mask("train", range(40, 60))
    scores = ts.grad_dot_scores(store, of="output").isel(target=[0])
    wanted = top_k(scores, 12)
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    calls = []
    monkeypatch.setattr(
        "trakstore.passes.half_precision.few_products",
        lambda *some: calls.append(some) or few_products(*some),
    )
    got = top_k(scores, 12)
    # Masked rows are left out of what was read.
    assert bool(calls) == masked
    np.testing.assert_array_equal(got["position"], wanted["position"])
    np.testing.assert_allclose(got["score"], wanted["score"], rtol=1e-5)


def test_a_row_of_nan_is_named(make, draw, monkeypatch):
    rows = draw(ROWS, 24)
    store, _, _ = make(rows=rows)
    # Rows that were bad when they were written are stored as NaN.
    path = file_of(store, 1)
    values = np.frombuffer(path.read_bytes()[:-4], np.float16).reshape(STEP, 24).copy()
    values[3, 5] = np.nan
    out, left = np.empty((1, ROWS), np.float32), np.ones((1, 24), np.float32)
    column = replace(store.split(0, "train").column("features"), committed_by=None)
    path.write_bytes(values.tobytes() + crc32c(values.tobytes()).to_bytes(4, "little"))
    assert checked_products(left, column, 0, ROWS, out)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(out[0])), [STEP + 3])
    part = parts.Part(0, ArrayRows(left), column)
    scores = Scores("test", (part,), ArrayRows(np.arange(1)), ArrayRows(np.arange(ROWS)))
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    with pytest.raises(NumericsError, match=f"train row {STEP + 3} is nan"):
        top_k(scores, 3)


def test_rows_that_an_append_adds(make, draw, monkeypatch):
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    store, _, rows = make()
    more = draw(50, 24)
    store.append(0, "train", more, out_to_loss=np.ones(50, np.float32))
    longer = ts.open_store(store.location).split(0, "train").column("features")
    left, both = draw(1, 24), np.concatenate([rows, more.astype(np.float16)])
    out = np.empty((1, ROWS + 50), np.float32)
    # The record of the last block is still known as it was: reading it takes the new one.
    assert not checked_products(left, longer, 0, ROWS + 50, out)
    longer.read(ROWS, ROWS + 50)
    assert checked_products(left, longer, 0, ROWS + 50, out)
    np.testing.assert_allclose(out, left @ both.astype(np.float32).T, rtol=1e-4, atol=1e-5)


@pytest.fixture
def wide(make, draw, monkeypatch):
    """Return scores of 25 chunks, in eight ranges of three, the last of four, and their tiles."""
    store, _, _ = make(rows=draw(900, 24))
    scores, tiles, tile = ts.grad_dot_scores(store, of="output"), [], parts.Window.tile
    wanted = top_k(scores, 12)
    monkeypatch.setattr(parts, "MANY_VALUES", 0)
    monkeypatch.setattr(
        parts.Window, "tile", lambda self, *at: tiles.append(at[:2]) or tile(self, *at)
    )
    return store, scores, tiles, wanted


@pytest.mark.parametrize(("steps", "most"), [(1, STEP), (2, 2 * STEP), (16, 900 - 21 * STEP)])
def test_few_targets_take_many_chunks_as_one_tile(wide, monkeypatch, steps, most):
    _, scores, tiles, wanted = wide
    monkeypatch.setattr(parts, "_MOST_STEPS", steps)
    got = top_k(scores, 12)
    assert max(high - low for low, high in tiles) == most
    np.testing.assert_array_equal(got["position"], wanted["position"])
    np.testing.assert_allclose(got["score"], wanted["score"], rtol=1e-5)


def test_of_few_listed_rows_only_their_chunks_are_taken(wide):
    _, scores, tiles, _ = wide
    listed = np.isin(np.arange(900), [3, 500])
    assert set(top_k(scores, 2, where=listed)["position"].values.ravel()) == {3, 500}
    assert sorted(tiles) == [(0, STEP), (13 * STEP, 14 * STEP)]


def test_damage_within_many_chunks_is_told(wide):
    store, scores, tiles, _ = wide
    flip(file_of(store, 24))
    with pytest.raises(DamagedError, match="chunk 0/train/features/c/24/0 does not have the check"):
        top_k(scores, 5)
    assert (21 * STEP, 900) in tiles
