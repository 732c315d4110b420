"""A store's folder leads nowhere else: no link is followed, no pipe is waited for, no size believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from trakstore.errors import DamagedError
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.backends.location import Location, open_location

KEYS = ["../out", "a/../../out", "/out", "a//b", "a\\..\\out", "./a", "a/", "a\0b"]


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """A store with ``a/b``, ``link/b`` (a folder outside) and ``a/link`` (a file outside)."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_bytes(b"mine")
    place = open_location(tmp_path / "s.zarr", create=True)
    place.put({"a/b": b"value"})
    (tmp_path / "s.zarr" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "s.zarr" / "a" / "link").symlink_to(tmp_path / "out" / "b")
    return place


USES: dict[str, Callable[[Location, str], object]] = {
    "get": lambda place, key: place.get(key),
    "chunk": lambda place, key: place.get_chunk(key),
    "tails": lambda place, key: place.get_tails([key], 2),
    "put": lambda place, key: place.put({key: b"x"}),
    "put chunk": lambda place, key: place.put_chunk(key, b"x"),
    "put if absent": lambda place, key: place.put_if_absent(key, b"x"),
    "delete": lambda place, key: place.delete([key]),
    "delete folder": lambda place, key: place.delete_folder(key),
    "names": lambda place, key: place.names(key),
    "find": lambda place, key: place.find(key, lambda _: True),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_leads_to_the_store_or_is_refused(use: str, key: str, place: Location) -> None:
    with pytest.raises(DamagedError, match="is no key of a store"):
        USES[use](place, key)


@pytest.mark.parametrize("use", USES)
def test_nothing_behind_a_link_is_touched(use: str, place: Location, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="link is a symbolic link"):
        USES[use](place, "link/b")
    assert [one.read_bytes() for one in (tmp_path / "out").iterdir()] == [b"mine"]


@pytest.mark.parametrize("use", ["get", "chunk", "tails"])
def test_a_link_is_not_read(use: str, place: Location) -> None:
    with pytest.raises(DamagedError, match="a/link is a symbolic link"):
        USES[use](place, "a/link")


def test_a_link_itself_is_listed_replaced_and_removed(place: Location, tmp_path: Path) -> None:
    root, outside = tmp_path / "s.zarr", tmp_path / "out" / "b"
    assert place.names("") == ["a", "link"] and place.names("a") == ["b", "link"]
    assert place.find("a", lambda _: True) == ["a/b", "a/link"]
    with pytest.raises(DamagedError, match="link is a symbolic link"):
        place.names("link")
    place.put({"a/link": b"new"})
    assert place.get("a/link") == b"new"
    (root / "a" / "more").symlink_to(outside)
    place.delete(["a/more"])
    place.delete_folder("link")
    assert place.names("") == ["a"] and place.names("a") == ["b", "link"]
    assert outside.read_bytes() == b"mine"


@pytest.mark.usefixtures("place")
def test_a_link_to_the_store_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other.zarr").symlink_to(tmp_path / "s.zarr")
    assert open_location(tmp_path / "other.zarr").get("a/b") == b"value"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("use", ["get", "chunk", "tails"])
def test_a_pipe_is_not_waited_for(use: str, place: Location, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.zarr" / "a" / "pipe")
    with pytest.raises(DamagedError, match="a/pipe is a pipe or a device"):
        USES[use](place, "a/pipe")


def test_sizes_are_compared_before_anything_is_read(place: Location, tmp_path: Path) -> None:
    for key in ("a/b", "a/zarr.json"):
        with (tmp_path / "s.zarr" / key).open("wb") as file:
            file.truncate(2**40)  # a file with a hole
        for read in (place.get, place.get_chunk):
            with pytest.raises(DamagedError, match=r"has 1,099,511,627,776 bytes; at most"):
                read(key)
    assert place.get_tails(["a/b"], 3) == [bytes(3)]
    place.put({"a/b": b"four"})
    with pytest.raises(DamagedError, match="at most 3 can be right"):
        place.get("a/b", 3)
    chunk = place.get_chunk("a/b", 4)
    assert chunk is not None and place.get("a/b", 4) == bytes(chunk) == b"four"


def test_zarr_reads_through_it(tmp_path: Path) -> None:
    place = open_location(zarr.storage.LocalStore(tmp_path))
    assert isinstance(place.store, DurableLocalStore)
    array = zarr.create_array(place.store, name="x", shape=(6,), chunks=(2,), dtype="i4")
    array[:] = range(6)
    assert array[3:5].tolist() == [3, 4] and array.nchunks_initialized == 3
    (tmp_path / "x" / "c" / "1").unlink()
    (tmp_path / "x" / "c" / "1").symlink_to(tmp_path / "x" / "c" / "0")
    with pytest.raises(DamagedError, match="x/c/1 is a symbolic link"):
        array[:]
