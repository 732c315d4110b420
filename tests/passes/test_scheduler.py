from __future__ import annotations

import threading

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from trakstore.errors import TrakStoreError
from trakstore.passes import scheduler
from trakstore.passes.rows import ArrayRows


@given(rows=st.integers(1, 500), step=st.integers(1, 60), parts=st.integers(1, 40))
def test_ranges_cover_the_rows_by_whole_steps(rows, step, parts):
    found = scheduler.row_ranges(rows, step, parts)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
    assert all(start % step == 0 for start, _ in found)
    steps = -(-rows // step)
    assert len(found) == min(parts, steps, max(8, min(32, steps // 8)))
    assert max(b - a for a, b in found) - min(b - a for a, b in found) <= 2 * step


def test_ranges_are_merged_left_before_right():
    found = scheduler.map_reduce(lambda a, b: [(a, b)], 100, 7, lambda a, b: a + b, parts=5)
    assert found == scheduler.row_ranges(100, 7, 5)


def test_schedulers_agree_to_the_bit():
    values = np.random.default_rng(0).standard_normal(1000)

    def total(**config):
        with dask.config.set(**config):
            task = lambda a, b: values[a:b].sum()  # noqa: E731
            return scheduler.map_reduce(task, 1000, 3, lambda a, b: a + b)

    expected = total(scheduler="synchronous")
    assert expected != values.sum()  # else the order of the sum would not matter
    assert {total(scheduler="threads", num_workers=w) for w in (1, 3)} == {expected}


def test_the_scheduler_is_the_one_that_dask_is_configured_for():
    def threads():
        return scheduler.map_reduce(lambda *_: {threading.get_ident()}, 100, 1, set.union)

    with dask.config.set(scheduler="synchronous"):
        assert threads() == {threading.get_ident()}
        assert scheduler.in_this_process() and scheduler.task_slots() == 1
    with dask.config.set(scheduler="processes"):
        assert not scheduler.in_this_process()
    with dask.config.set(scheduler=None, num_workers=3):
        assert threading.get_ident() not in threads()
        assert scheduler.in_this_process() and scheduler.task_slots() == 3


def blas_threads():
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@pytest.mark.parametrize("outside", [None, 2], ids=["free", "limited by the caller"])
def test_blas_has_one_thread_inside_and_what_it_had_outside(outside):
    gate = threading.Barrier(2)

    def task(_start, _stop):
        gate.wait(timeout=20)  # both ranges are inside at once
        return blas_threads()

    limits = threadpool_limits(outside, user_api="blas")
    with limits, dask.config.set(scheduler="threads", num_workers=2):
        before = blas_threads()
        assert scheduler.map_reduce(task, 2, 1, set.union) == {1}
        assert blas_threads() == before


def test_the_last_to_leave_frees_blas_whatever_thread_it_is_on():
    before, inside, leave = blas_threads(), threading.Event(), threading.Event()

    def stay():
        with scheduler.one_blas_thread():
            inside.set()
            leave.wait(timeout=20)

    other = threading.Thread(target=stay)
    with scheduler.one_blas_thread():
        other.start()
        assert inside.wait(timeout=20)
    assert blas_threads() == {1}
    leave.set()
    other.join()
    assert blas_threads() == before
    with threadpool_limits(2, user_api="blas"):  # nobody else controls it now
        assert blas_threads() == {2}


def test_an_error_in_a_task_reaches_the_caller():
    def task(_start, _stop):
        raise TrakStoreError("here")

    with pytest.raises(TrakStoreError, match="here"):
        scheduler.map_reduce(task, 2, 1, max)
    with pytest.raises(TrakStoreError, match="no rows"):
        scheduler.map_reduce(task, 0, 1, max)


def test_a_tile_is_whole_chunks_up_to_8_mb(monkeypatch):
    monkeypatch.setattr(scheduler, "TILE_ROWS", 1024)
    small = np.empty((10, 512), dtype=np.float32)
    assert scheduler.tile_rows(ArrayRows(small, 32)) == 1024
    assert scheduler.tile_rows(ArrayRows(small, 3920)) == 3920
    wide = np.empty((1, 2**18), dtype=np.float32)
    assert scheduler.tile_rows(ArrayRows(wide, 3)) == 6
