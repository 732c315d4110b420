"""Samples added to a stored split: what was done is told, and wrong ones make stored rows doubted."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from features.faulty_engine import assert_right, not_compared, rows_of, run, wrong_in
from features.models import Samples, mlp
from features.stopped import stopped_after
from torch.utils.data import Subset

import trakstore as ts
from trakstore.errors import NumericsError
from trakstore.features import Featurized, Job, featurize, featurize_job
from trakstore.features.factorised import FactorisedEngine

DATA = Samples(64)
OLD = Subset(DATA, range(24))  # one block and a half
WRONG = {not_compared(0), not_compared(2), *rows_of(3)}


class First(Samples):
    def __init__(self, count: int) -> None:
        super().__init__(40)
        self.count = count

    def __len__(self) -> int:
        return self.count


def test_the_rows_that_were_added_are_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=32), "progress": False}

    def done(count: int, **more: Any) -> Featurized:
        return featurize(mlp(), First(count), tmp_path / "s.zarr", **options, **more)

    first = done(23, block_rows=8)
    assert (first.rows, first.blocks) == (23, 3)
    # Rows 23 to 29: the third block is written again, with one row more, and a fourth one.
    second = done(30, append=True)
    assert (second.rows, second.blocks) == (7, 2)
    assert second.bytes * first.rows == first.bytes * second.rows
    assert 0 < second.spent.computing <= second.seconds
    # Whole blocks behind whole ones, and then nothing.
    assert [done(n, append=True).rows for n in (32, 40, 40)] == [2, 8, 0]
    assert ts.open_store(tmp_path / "s.zarr").split(0, "train").rows == 40


class Slow(First):
    def __getitem__(self, i: int) -> Any:
        time.sleep(0.03)
        return super().__getitem__(i)


def test_the_time_of_adding_is_no_preparation(tmp_path: Path) -> None:
    job = Job(mlp(), {"train": First(5)}, projector=ts.ProjectionSpec("sjlt", dim=32))
    featurize_job(job, tmp_path / "s.zarr", progress=False)
    job = replace(job, datasets={"test": First(5), "train": Slow(35)}, append=True)
    done = featurize_job(job, tmp_path / "s.zarr", progress=False)
    # Blocks of five rows, of as many as there were at first.
    assert (done.rows, done.blocks) == (5 + 30, 1 + 6)
    assert done.spent.computing > 30 * 0.03 > done.prepared.store


def test_rows_that_were_stored_are_made_anew_with_those_that_are_appended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = tmp_path / "s.zarr"
    with wrong_in(WRONG, DATA):
        run(OLD, where)
        ts.open_store(where).mask("train", [5, 7])
        state = ts.open_store(where).split(0, "train").state
        with caplog.at_level(logging.WARNING, logger="trakstore"):
            run(DATA, where, append=True)
    assert any("the 24 rows that are stored may be wrong" in one.message for one in caplog.records)
    assert_right(where, DATA)
    split = ts.open_store(where).split(0, "train")
    assert split.masked.tolist() == [5, 7]
    assert split.state != state, "grams of the rows of before count no more"


def test_a_stop_while_they_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "s.zarr"
    with wrong_in(WRONG, DATA):
        run(OLD, where)
        with stopped_after(1, monkeypatch):
            run(DATA, where, append=True)
        assert ts.open_store(where).split(0, "train").status().written_rows == 16
        run(DATA, where, append=True)
    assert_right(where, DATA)


def test_an_append_that_no_engine_can_do_says_what_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "s.zarr"
    run(OLD, where)
    monkeypatch.setattr(
        FactorisedEngine, "generic_rows", lambda engine, batch: FactorisedEngine.rows(engine, batch)
    )
    message = (
        r"rows 48 to 63 are not .*; the 24 rows that are stored stay, and may be wrong .*'all'"
    )
    with wrong_in(WRONG, DATA), pytest.raises(NumericsError, match=message):
        run(DATA, where, append=True)
    split = ts.open_store(where).split(0, "train")
    assert split.rows == 24 and split.status().complete


def test_a_split_that_was_doubted_is_appended_to_with_all_care(tmp_path: Path) -> None:
    where, wrong = tmp_path / "s.zarr", {not_compared(0), *rows_of(1), not_compared(2)}
    with wrong_in(wrong, DATA):
        run(Subset(DATA, range(32)), where)
        run(DATA, where, append=True)
    assert_right(where, DATA)
