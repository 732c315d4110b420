"""Small reads that run at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trakstore.storage.backends.location import Location

_AT_ONCE = 128


def together(location: Location, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make calls, at once if reads go to another machine; return their results in order.

    On a local disk it is faster to make them one after the other.

    Parameters
    ----------
    location : Location
        Place that they read.
    calls : sequence of callable
        Functions without arguments.
    """
    if len(calls) < 2 or location.near:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(_AT_ONCE, len(calls))) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]
