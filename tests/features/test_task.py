"""Blocks that are doubted: one was wrong, and others may be in rows that were not compared."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from features.faulty_engine import OPTIONS, assert_right, not_compared, rows_of, run, wrong_in
from features.models import Samples, mlp
from features.stopped import stopped_after

import trakstore as ts
from trakstore.errors import DamagedError, IncompleteError, NumericsError
from trakstore.features import Job
from trakstore.features.block_rows import RowComputer
from trakstore.features.evaluated import evaluated
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.task import SplitTask
from trakstore.storage import growth, layout
from trakstore.storage.writer import BlockWriter

DATA = Samples(64)
WRONG = {not_compared(1), *rows_of(3)}  # one row of the second of four blocks, and all of the last


def test_blocks_of_a_run_that_was_stopped_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "s.zarr"
    with wrong_in(WRONG, DATA):
        with stopped_after(2, monkeypatch):
            run(DATA, where)
        run(DATA, where)
    assert_right(where, DATA)


@pytest.mark.parametrize("check", ["some", "all"])
def test_how_far_a_run_came_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    """A run that compares all rows doubts those of one that did not."""
    with wrong_in(WRONG, DATA):
        run(DATA, tmp_path / "whole.zarr")
        for blocks in (1, 2, 3):
            with stopped_after(blocks, monkeypatch):
                run(DATA, tmp_path / f"{blocks}.zarr")
            run(DATA, tmp_path / f"{blocks}.zarr", check=check)
    whole = ts.open_store(tmp_path / "whole.zarr").features(0, "train").values
    for blocks in (1, 2, 3):
        assert_right(tmp_path / f"{blocks}.zarr", DATA)
        parts = ts.open_store(tmp_path / f"{blocks}.zarr").features(0, "train").values
        assert parts.tobytes() == whole.tobytes()


def test_rows_that_were_all_compared_are_not_doubted(tmp_path: Path) -> None:
    with wrong_in(WRONG, DATA):
        run(DATA, tmp_path / "s.zarr", check="all")
    assert_right(tmp_path / "s.zarr", DATA)
    assert not ts.open_store(tmp_path / "s.zarr").split(0, "train").spec.doubted


def killed_at(kill: Callable[[pytest.MonkeyPatch], None], where: Path) -> None:
    """Run in a process that kills itself; see that it did."""

    def child() -> None:
        kill(pytest.MonkeyPatch())
        run(DATA, where)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_while_blocks_are_made_anew(tmp_path: Path) -> None:
    where, write = tmp_path / "s.zarr", BlockWriter.write

    def before_the_fifth(patch: pytest.MonkeyPatch) -> None:
        calls = iter([*[write] * 4, die])
        patch.setattr(BlockWriter, "write", lambda *given: next(calls)(*given))

    with wrong_in(WRONG, DATA):
        killed_at(before_the_fifth, where)
        status = ts.open_store(where).split(0, "train").status()
        assert status.missing == ((0, 48),)
        with pytest.raises(IncompleteError, match="run the same featurize again"):
            ts.open_store(where).features(0, "train")
        run(DATA, where)
    assert_right(where, DATA)


def test_a_kill_between_the_doubt_and_the_markers(tmp_path: Path) -> None:
    """The doubt is stored by one document, from which on no marker of before commits anything."""
    where = tmp_path / "s.zarr"
    with wrong_in(WRONG, DATA):
        killed_at(lambda patch: patch.setattr(growth, "finish_withdrawal", die), where)
        report = ts.verify_store(where)
        assert [one.block for one in report.findings] == [0, 1, 2]
        assert all("rows that were withdrawn, since" in one.message for one in report.findings)
        features = ts.open_store(where).split(0, "train").column("features", allow_missing=True)
        with pytest.raises(DamagedError, match=r"withdrawn.*run the same featurize again"):
            features.read(0, 16)
        run(DATA, where)
    assert_right(where, DATA)


JOB = {name: value for name, value in OPTIONS.items() if name != "progress"}
CPU = torch.device("cpu")


def test_blocks_of_another_worker_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, job = tmp_path / "s.zarr", Job(mlp(), {"train": DATA}, **JOB)
    with (
        wrong_in(WRONG, DATA),
        evaluated(job.model, CPU),
        SplitTask.prepare(job, where, 0, "train", CPU) as first,
    ):
        first.write(0)
        begin = RowComputer.begin

        def late(rows: RowComputer, *given: Any) -> Any:
            # The other worker withdraws all rows between a block's computation and its commit.
            finish = begin(rows, *given)
            monkeypatch.undo()
            with SplitTask.prepare(job, where, 0, "train", CPU) as second:
                second.write(3)
            return finish

        monkeypatch.setattr(RowComputer, "begin", late)
        first.write(1)
        first.wait()
        assert first.missing() == [0, 1, 2]
        assert first.rows_twice == 16
        for block in first.missing():
            assert not first.is_written(block)
            first.write(block)
    assert_right(where, DATA)


def test_a_worker_that_commits_just_after_takes_its_block_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, job = tmp_path / "s.zarr", Job(mlp(), {"train": DATA}, **JOB)
    stored = BlockWriter._is_stored
    with (
        wrong_in(WRONG, DATA),
        evaluated(job.model, CPU),
        SplitTask.prepare(job, where, 0, "train", CPU) as first,
    ):

        def withdrawn(
            writer: BlockWriter, block: int, tails: list[bytes], marker: bytes, *given: Any
        ) -> bool:
            monkeypatch.undo()
            with SplitTask.prepare(job, where, 0, "train", CPU) as second:
                second.write(3)
            # The markers of before are deleted by now, and this one comes after.
            writer.split.location.put({layout.marker_key("0/train", block): marker})
            return stored(writer, block, tails, marker, *given)

        monkeypatch.setattr(BlockWriter, "_is_stored", withdrawn)
        first.write(1)
        first.wait()
        assert ts.open_store(where).split(0, "train").missing_blocks() == [0, 1, 2]
    with wrong_in(WRONG, DATA):
        run(DATA, where)
    assert_right(where, DATA)


def test_a_run_that_ends_since_both_engines_are_wrong_leaves_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "s.zarr"
    monkeypatch.setattr(
        FactorisedEngine, "generic_rows", lambda engine, batch: FactorisedEngine.rows(engine, batch)
    )
    with (
        wrong_in(WRONG, DATA),
        pytest.raises(NumericsError, match=r"rows 48 to 63 .* either engine"),
    ):
        run(DATA, where)
    assert ts.open_store(where).split(0, "train").status().written_rows == 0
    monkeypatch.undo()
    run(DATA, where)
    assert_right(where, DATA)
