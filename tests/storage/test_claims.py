"""One process at a time changes what lies at a path; the dead stand in nobody's way."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import LocationError, SpecMismatchError
from trakstore.storage import claims
from trakstore.storage.backends.location import Location, open_location
from trakstore.storage.claims import claimed, last_claim
from trakstore.storage.layout import document_key
from trakstore.storage.numbered import stored_numbers


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return open_location(tmp_path, create=True)


def test_a_second_one_is_refused_with_who_and_since_when(place: Location) -> None:
    with claimed(place, "0/train", "append") as done:
        with (
            pytest.raises(
                LocationError, match=rf"append by process {os.getpid()} on .* since 20\d\d"
            ),
            claimed(place, "0/train", "drop"),
        ):
            raise AssertionError
        with claimed(place, "0/test", "drop"):
            pass
        done["rows"] = 7
    with claimed(place, "0/train", "drop"):
        pass
    claim = last_claim(place, "0/train")
    assert claim is not None and claim.ended and claim.what == "drop"
    assert claim.known == {"rows": 7}  # of the one before


def test_who_is_broken_off_lets_go(place: Location) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(place, "x", "save") as done:
        done["rows"] = 7
        raise KeyboardInterrupt
    with claimed(place, "x", "save"):
        pass
    claim = last_claim(place, "x")
    assert claim is not None and claim.known == {}


def _hold(address: str, ready: Any) -> None:
    with claimed(open_location(address), "x", "save"):
        ready.set()
        signal.pause()


def is_left(place: Location) -> bool:
    claim = last_claim(place, "x")
    assert claim is not None
    return claim.is_left


def test_a_killed_process_stands_in_nobodys_way(place: Location) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    holder = spawn.Process(target=_hold, args=(place.address, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(LocationError, match=f"process {holder.pid}"), claimed(place, "x", "save"):
        raise AssertionError
    assert is_left(place) is False
    holder.kill()
    holder.join()
    assert is_left(place) is True
    with claimed(place, "x", "save"):
        pass
    assert is_left(place) is False


def test_one_on_another_machine_is_listened_for(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "POLL", 0.001)
    with claimed(place, "x", "save"):
        pass
    claim = last_claim(place, "x")
    assert claim is not None
    key = document_key("_claims/x~/2")
    elsewhere = replace(claim, place="_claims/x~/2", machine="another", ended=False)
    place.put({key: elsewhere.document})
    whole = Location.get

    def renewed(self: Location, wanted: str) -> bytes | None:
        if wanted == key:
            return replace(elsewhere, renewed=1).document
        return whole(self, wanted)

    with monkeypatch.context() as patch:
        monkeypatch.setattr(claims, "SILENT", 60.0)
        patch.setattr(claims.time, "sleep", lambda _: patch.setattr(Location, "get", renewed))
        with pytest.raises(LocationError, match="is being changed"), claimed(place, "x", "save"):
            raise AssertionError
    monkeypatch.setattr(claims, "SILENT", 0.01)
    with claimed(place, "x", "save"):  # it was silent: dead
        pass


def test_of_many_exactly_one_holds_it(place: Location) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier = Barrier(6)

    def take(_: int) -> bool:
        barrier.wait()
        try:
            with claimed(place, "x", "save"):
                barrier.wait()  # until all others were refused
                return True
        except LocationError:
            barrier.wait()
            return False

    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(take, range(6))) == 1


def test_a_claim_that_is_just_being_written_is_not_passed_over(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a claim is made before its document: between the two another process comes."""
    whole, during = Location.put_if_absent, []

    def put(self: Location, key: str, value: bytes) -> bytes:
        if key == document_key("_claims/x~/2"):  # of the one that comes; now the first one goes on
            whole(self, first, document)
            during.append(stored_numbers(self, "_claims/x~")[-1])
        return whole(self, key, value)

    with claimed(place, "x", "save"):
        own = last_claim(place, "x")
    assert own is not None
    first, document = document_key("_claims/x~/1"), replace(own, ended=False).document
    place.delete([first])
    (Path(place.address) / "_claims/x~/1").mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "put_if_absent", put)
        with pytest.raises(LocationError, match="x is being changed"), claimed(place, "x", "drop"):
            raise AssertionError
    assert during == [1], "the first one saw no other, and holds its claim"
    assert not (Path(place.address) / "_claims/x~/2").exists()


def test_a_claim_below_a_dead_one_still_counts(place: Location) -> None:
    """A process was killed right after it had passed over another's claim that was being written."""
    with claimed(place, "x", "save"):
        own = last_claim(place, "x")
        assert own is not None
        key = document_key("_claims/x~/2")
        dead = replace(own, place="_claims/x~/2", born=own.born + 1)
        place.put({key: dead.document})
        with pytest.raises(LocationError, match="again and again"), claimed(place, "x", "drop"):
            raise AssertionError
    with claimed(place, "x", "drop"):
        pass


def test_appends_and_drops_of_a_split_that_is_being_changed(tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 4))
    rows = np.ones((3, 4), np.float32)
    split = store.write_split(0, "train", rows)
    with claimed(store.location, split.path, "append"):
        for refused in (
            lambda: store.drop(0, "train"),
            lambda: store.append(0, "train", rows, ids=[7, 8, 9]),
            lambda: ts.verify_store(store, repair=True),
        ):
            with pytest.raises(LocationError, match="0/train is being changed"):
                refused()
    from trakstore.storage.growth import append_rows

    store.append(0, "train", rows, ids=[7, 8, 9])
    with pytest.raises(SpecMismatchError, match="changed by another process"):
        append_rows(split, 1, lambda *_: {})
    assert store.split(0, "train").rows == 6


def left_claim(where: Path) -> Path:
    """A store with a claim, on saved scores, of a process that is no more."""
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", 4))
    with claimed(store.location, "scores/s", "save") as done:
        done["rows"] = 7
    own = last_claim(store.location, "scores/s")
    assert own is not None
    path = where / "_claims/scores/s~/1/zarr.json"
    path.write_bytes(replace(own, ended=False, born=own.born + 1).document)
    return path


def test_a_claim_that_was_left_is_harmless_and_repair_ends_it(tmp_path: Path) -> None:
    path = left_claim(tmp_path / "s")
    report = ts.verify_store(tmp_path / "s")
    assert report.ok and report.leftovers == (path.relative_to(tmp_path / "s").as_posix(),)
    assert not ts.verify_store(tmp_path / "s", repair=True).leftovers
    assert not ts.verify_store(tmp_path / "s").leftovers
    claim = last_claim(open_location(tmp_path / "s"), "scores/s")
    assert claim is not None and claim.ended and claim.known == {"rows": 7}
    with claimed(open_location(tmp_path / "s"), "scores/s", "save"):
        assert not ts.verify_store(tmp_path / "s").leftovers  # this process lives
        assert not ts.verify_store(tmp_path / "s", repair=True).findings


@pytest.mark.parametrize("repair", [True, False])
def test_a_claim_that_was_deleted_is_found_and_in_nobodys_way(tmp_path: Path, repair: bool) -> None:
    where = tmp_path / "s"
    left_claim(where)
    with claimed(open_location(where), "scores/s", "save"):
        pass  # the second, so that the first is gone
    (where / "_claims/scores/s~/2/zarr.json").unlink()
    [finding] = ts.verify_store(where).findings
    assert (finding.kind, finding.key) == ("document", "_claims/scores/s~/2/zarr.json")
    if repair:
        assert ts.verify_store(where, repair=True).findings[0].repaired
    else:
        with claimed(open_location(where), "scores/s", "save"):
            pass
    assert ts.verify_store(where).ok
