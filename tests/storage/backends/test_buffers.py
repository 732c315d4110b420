"""An array is given again when nobody can see it any more, and never before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trakstore.storage.backends.buffers import chunk_buffer, reused_buffers


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_what_nobody_holds_is_given_again() -> None:
    with reused_buffers():
        first = address(chunk_buffer(1000))
        assert address(chunk_buffer(1000)) == first


def test_what_somebody_sees_is_not() -> None:
    with reused_buffers():
        views: list[Any] = []
        for at in range(6):  # the array, a slice of it, and rows that are its bytes
            array = chunk_buffer(1000)
            array[:] = at
            views += [array[10:20], np.frombuffer(array[:800], "<f4").reshape(20, 10)[5:]]
            del array
        assert [int(one.view(np.uint8).max()) for one in views[::2]] == list(range(6))
        assert [int(one.view(np.uint8).max()) for one in views[1::2]] == list(range(6))


def test_two_at_once_take_turns() -> None:
    with reused_buffers():
        held, seen = chunk_buffer(1000), set()
        for _ in range(10):
            held = chunk_buffer(1000)
            seen.add(address(held))
        assert len(seen) == 2


def test_nothing_is_kept_outside_or_for_others() -> None:
    with reused_buffers():
        mine = address(chunk_buffer(5_000_000))
        with ThreadPoolExecutor(1) as other:
            assert address(other.submit(chunk_buffer, 5_000_000).result()) != mine
        with reused_buffers():
            assert address(chunk_buffer(5_000_000)) != mine
        assert address(chunk_buffer(5_000_000)) == mine
    assert chunk_buffer(10).flags.owndata
