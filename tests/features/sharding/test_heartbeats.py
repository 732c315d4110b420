"""Signs of life of ranks."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

import pytest
import torch.distributed as dist

from trakstore.errors import TrakStoreError
from trakstore.features.sharding import heartbeats
from trakstore.features.sharding.heartbeats import Heartbeats, telling_failures
from trakstore.features.sharding.lockstep import RankGoneError


def test_a_rank_counts_as_lost_when_its_sign_is_an_old_one() -> None:
    store = dist.HashStore()
    first, second, third = (Heartbeats(store, rank, 3) for rank in range(3))
    assert first.silence(0.0) is None, "no rank has begun"
    for one in (first, second, third):
        one.beat()
    assert first.silence(100.0) is None
    assert first.silence(129.0) is None
    second.beat()
    assert first.silence(160.0) is None
    assert first.silence(189.0) is None
    assert third.silence(300.0) is None, (
        "it looks after the first one, which it has not seen before"
    )
    told = first.silence(191.0) or ""
    assert told.startswith("rank 1 of the sharded model gave no sign of life for 31 s")
    assert third.failure() == told
    second.end()
    assert first.silence(300.0) is None, "it was done"


def test_the_first_error_is_told_to_the_others() -> None:
    store = dist.HashStore()
    first, second = (Heartbeats(store, rank, 2) for rank in (0, 1))
    assert first.failure() is None
    second.fail(OSError("no disk"))
    first.fail(OSError("connection closed"))
    assert first.failure() == second.failure() == "rank 1 failed: OSError: no disk"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BEAT", "_GRACE"):
        monkeypatch.setattr(heartbeats, name, 0.01)


def watched(hearts: Heartbeats, *, done: Event | None = None) -> list[str]:
    """Return with what a rank is ended."""
    done, told = done or Event(), list[str]()
    talking = Thread(target=hearts.talk, args=(done,), daemon=True)
    talking.start()
    hearts.watch(done, told.append)
    done.set()
    talking.join(10)
    return told


@pytest.mark.usefixtures("quick")
def test_a_rank_ends_when_another_did_and_it_is_not_told() -> None:
    store = dist.HashStore()
    Heartbeats(store, 1, 2).fail(OSError("no disk"))
    assert watched(Heartbeats(store, 0, 2)) == ["rank 1 failed: OSError: no disk"]


@pytest.mark.usefixtures("quick")
def test_a_rank_ends_when_another_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_SILENT", 0.1)
    store = dist.HashStore()
    Heartbeats(store, 1, 2).beat()
    (told,) = watched(Heartbeats(store, 0, 3))
    assert told.startswith("rank 1 of the sharded model gave no sign of life for 0 s")
    assert Heartbeats(store, 2, 3).failure() == told, "a third one need not find out"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("gone", [True, False])
def test_a_rank_ends_when_the_store_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr(heartbeats, "_SILENT", 0.1)
    hearts, answer = Heartbeats(dist.HashStore(), 1, 2), Event()

    def beat() -> None:
        if gone:
            raise dist.DistNetworkError("connection reset")
        answer.wait()

    monkeypatch.setattr(hearts, "beat", beat)
    (told,) = watched(hearts) if gone else _ended(hearts)
    answer.set()
    expected = "is gone" if gone else "gave no sign of life for 0 s"
    assert told.startswith(f"the first rank of the sharded model {expected}")


def _ended(hearts: Heartbeats) -> list[str]:
    """Return with what a rank is ended whose talk does not come back."""
    told = list[str]()
    done = Event()
    Thread(target=hearts.talk, args=(done,), daemon=True).start()
    hearts.watch(done, told.append)
    return told


def test_a_rank_that_is_told_in_time_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_BEAT", 0.01)
    monkeypatch.setattr(heartbeats, "_GRACE", 100.0)
    done, store = Event(), dist.HashStore()
    first, second = (Heartbeats(store, rank, 2) for rank in (0, 1))
    second.fail(OSError("no disk"))
    monkeypatch.setattr(first, "failure", lambda: done.set() or "rank 1 failed")
    assert watched(first, done=done) == []


@pytest.mark.parametrize(
    ("error", "told", "expected"),
    [
        (RuntimeError("connection closed"), True, "rank 1 failed: OSError: no disk"),
        (RuntimeError("connection closed"), False, "connection closed"),
        (TrakStoreError("a bad job"), True, "a bad job"),
        (RankGoneError("another is gone"), True, "rank 1 failed: OSError: no disk"),
        (RankGoneError("another is gone"), False, "another is gone"),
    ],
)
def test_the_error_that_counts_is_that_of_the_rank_which_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: bool, expected: str
) -> None:
    first, second = (Heartbeats(store, rank, 2) for store in [dist.HashStore()] for rank in (0, 1))
    monkeypatch.setattr(Heartbeats, "of_launched", _given(first))
    if told:
        second.fail(OSError("no disk"))
    with pytest.raises((TrakStoreError, RuntimeError), match=expected), telling_failures():
        raise error
    # An error of its own is told to others, and not that it was left behind.
    said = f"rank 0 failed: {type(error).__name__}: {error}"
    own = None if isinstance(error, RankGoneError) else said
    assert second.failure() == ("rank 1 failed: OSError: no disk" if told else own)


def _given(hearts: Heartbeats) -> Any:
    return classmethod(lambda _: hearts)
