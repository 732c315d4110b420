"""A query that is changed for another one while questions come: none is answered by two."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import trakstore as ts
from trakstore.serve.current_query import CurrentQuery


def no_end() -> None:
    """Somebody waits for each answer."""


@contextmanager
def under_way(current: CurrentQuery) -> Iterator[None]:
    """A question of another thread."""
    begun, end = threading.Event(), threading.Event()

    def ask() -> None:
        with current.taken(no_end):
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(20)
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_question_keeps_its_query(own_store: ts.FeatureStore) -> None:
    current = CurrentQuery(ts.Query(own_store))
    with current.taken(no_end) as before:
        before.ask(target=100, k=1)
        own_store.mask("train", ["a1"])
        current.renew()
        assert current.query is not before
        assert (before.rows, current.query.rows) == (40, 39)
        # Of the rows as they were, which it holds.
        assert before.ask(target=100, k=40).proponents[39].score is not None
    with current.taken(no_end) as after:
        assert after is current.query


def test_what_cannot_be_opened_changes_nothing(own_store: ts.FeatureStore) -> None:
    current = CurrentQuery(ts.Query(own_store))
    before = current.query
    own_store.drop(1, "train")
    own_store.mask("train", ["a1"], epochs=2)
    with pytest.raises(ts.TrakStoreError, match="rows"):
        current.renew()
    assert current.query is before


def test_there_is_time_for_questions_while_another_one_is_made(
    own_store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = CurrentQuery(ts.Query(own_store).prepare())
    before, seen = current.query, list[Any]()
    prepare = ts.Query.prepare

    def asked_meanwhile(query: ts.Query) -> ts.Query:
        with current.taken(no_end) as one:
            seen.append(one)
        return prepare(query)

    monkeypatch.setattr(ts.Query, "prepare", asked_meanwhile)
    current.renew()
    assert seen == [before] and current.query is not before


def test_without_room_for_two_the_kernels_of_the_old_one_are_let_go_first(
    own_store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = ts.Query(own_store, memory_limit="40MB").prepare()
    assert query.fits_twice
    held = query._kernels.nbytes
    # Four epochs have a kernel of 16 x 16 numbers and 40 rows each, and no room for another one's.
    assert held >= 4 * 8 * 16 * 16
    monkeypatch.setattr("trakstore.serve.query.byte_count", lambda _: 2 * held - 1)
    assert not query.fits_twice
    current, events = CurrentQuery(query), list[str]()
    prepare, let_go = ts.Query.prepare, ts.Query.let_go

    def preparing(new: ts.Query) -> ts.Query:
        events.append(f"prepare beside {query._kernels.nbytes} bytes")
        waiting.start()
        waiting.join(0.3)
        events.append("waits" if waiting.is_alive() else "does not wait")
        return prepare(new)

    def letting_go(old: ts.Query) -> None:
        events.append("let go")
        let_go(old)

    def ask() -> None:
        with current.taken(no_end) as one:
            events.append("the new one" if one is not query else "the old one")

    waiting = threading.Thread(target=ask)
    monkeypatch.setattr(ts.Query, "prepare", preparing)
    monkeypatch.setattr(ts.Query, "let_go", letting_go)
    with under_way(current):
        renewing = threading.Thread(target=current.renew)
        renewing.start()
        renewing.join(0.3)
        assert renewing.is_alive() and events == []  # who has begun is not disturbed
    renewing.join(20)
    waiting.join(20)
    assert events == ["let go", "prepare beside 0 bytes", "waits", "the new one"]


def test_a_question_that_is_given_up_does_not_wait_for_the_other_query(query: ts.Query) -> None:
    current = CurrentQuery(query)
    current._pausing = True

    def gone() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError), current.taken(gone):
        raise AssertionError("it was to wait")


def test_the_kernels_of_the_old_one_are_freed_at_once(own_store: ts.FeatureStore) -> None:
    current = CurrentQuery(ts.Query(own_store).prepare())
    scores = current.query._kernels.scores("trak")
    held = [weakref.ref(current.query._kernels), *(weakref.ref(one.factor) for one in scores.parts)]
    del scores
    gc.disable()  # the objects of the start are never collected: nothing of it may be in a cycle
    try:
        current.renew()
        assert [one() for one in held] == [None] * 5
    finally:
        gc.enable()


def test_three_are_never_in_memory(own_store: ts.FeatureStore) -> None:
    current = CurrentQuery(ts.Query(own_store))
    with under_way(current):
        current.renew()  # while the question is at the first one
        again = threading.Thread(target=current.renew)
        second = current.query
        again.start()
        again.join(0.3)
        assert again.is_alive() and current.query is second
    again.join(20)
    assert current.query is not second
