"""Samples appended by an engine that is found wrong: rows that were stored before are doubted too."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from features.faulty_engine import assert_right, not_compared, rows_of, run, wrong_in
from features.models import Samples
from features.stopped import stopped_after
from torch.utils.data import Subset

import trakstore as ts
from trakstore.errors import NumericsError
from trakstore.features.factorised import FactorisedEngine

DATA = Samples(64)
OLD = Subset(DATA, range(24))  # one block and a half
WRONG = {not_compared(0), not_compared(2), *rows_of(3)}


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
