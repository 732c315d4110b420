"""Claims: a process that appends, drops, repairs, saves or retrains announces it first.

Any number of workers compute rows without communicating. Replacing or deleting something is for one
process: a second one is refused, with the name of the first. A killed process blocks nobody: on the
same machine its end is noticed at once, on another one by its silence, since a living process renews
its claim.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from trakstore.documents import made_by, one_of, text, whole
from trakstore.errors import DamagedError, LocationError
from trakstore.paths import exists
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document, make_groups, placed_fields
from trakstore.storage.numbered import highest, publish_numbered, stored_numbers

RENEWED = 15.0  # seconds between two renewals
SILENT = 60.0  # seconds without one, after which a process elsewhere counts as dead
POLL = 1.0  # seconds between two reads of a claim
ATTEMPTS = 20


@dataclass(frozen=True)
class Claim:
    """A process that is changing something, or has changed it.

    Attributes
    ----------
    place : str
        Path of the claim itself.
    what : str
        The change, such as ``"append"``.
    host, machine : str
        Name of the machine, and a text that distinguishes it, since its last start, from others.
    process, born : int
        Number of the process, and its start time, which distinguishes it from later ones of that
        number.
    since : str
        Time of the claim, ISO 8601, UTC.
    writing : str
        Random text, so that no two claims are equal.
    renewed : int
        Number of renewals.
    known : dict
        Results of this and earlier claims: plain values, such as the number of rows.
    ended : bool
        True once the process has ended, successfully or not.
    """

    place: str
    what: str
    host: str
    machine: str
    process: int
    born: int
    since: str
    writing: str
    renewed: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    @classmethod
    def of_this_process(cls, place: str, what: str, known: dict[str, Any]) -> Claim:
        """Make the claim of this process."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        own = (socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()) or 0)
        return cls(place, what, *own, since, secrets.token_hex(8), known=known)

    @classmethod
    def read(cls, document: bytes, where: str) -> Claim:
        """Read a claim from its document.

        Raises
        ------
        DamagedError
            When it is none.
        """
        try:
            return cls(**placed_fields(document, where, _CLAIM))
        except DamagedError as error:
            raise DamagedError(f"{where} does not say who writes ({error}); remove it") from error

    @property
    def is_left(self) -> bool:
        """True if a process of this machine left the claim and no longer runs."""
        mine = self.machine == _machine()
        return mine and not self.ended and _born(self.process) != self.born

    @property
    def document(self) -> bytes:
        return group_document(asdict(self))

    def __str__(self) -> str:
        return f"{self.what} by process {self.process} on {self.host}, since {self.since}"


_CLAIM = {
    **dict.fromkeys(("place", "what", "host", "machine", "since", "writing"), text()),
    **dict.fromkeys(("process", "born", "renewed"), whole()),
    "known": made_by(dict, "named values"),
    "ended": one_of(True, False),
}


@contextmanager
def claimed(location: Location, path: str, what: str) -> Iterator[dict[str, Any]]:
    """Within, let this process alone change what lies at ``path``.

    Parameters
    ----------
    location : Location
    path : str
        Path of a group.
    what : str
        The change, for messages in other processes.

    Yields
    ------
    dict
        Results of the change, plain values that the caller adds and the claim keeps: see
        :func:`last_claim`.

    Raises
    ------
    LocationError
        When another process is changing it; the message says which, and since when.
    """
    top = layout.claims_path(path)
    number, claim = _take(location, top, what)
    result: dict[str, Any] = {}
    ended = threading.Event()
    renewal = threading.Thread(
        target=_renew, args=(location, top, number, claim, ended), daemon=True
    )
    renewal.start()
    try:
        yield result
    except BaseException:
        result.clear()  # a failed change has no results
        raise
    finally:
        ended.set()
        renewal.join()
        over = replace(claim, known={**claim.known, **result}, ended=True)
        key = layout.document_key(top, number)
        # If the end cannot be written, or the process is killed before, the claim falls silent. The
        # next process takes over after a minute, or at once on this machine. The highest claim stays,
        # since its number must never be used again.
        with suppress(LocationError):
            location.put({key: over.document})
            older = [n for n in stored_numbers(location, top) if n < number]
            location.delete([layout.document_key(top, n) for n in older])


def last_claim(location: Location, path: str) -> Claim | None:
    """Return the claim of the process that is changing what lies at ``path``, or did so last."""
    top = layout.claims_path(path)
    last = highest(location, top, stored_numbers(location, top))
    return None if last is None else Claim.read(last[1], layout.child(top, last[0]))


def _take(location: Location, top: str, what: str) -> tuple[int, Claim]:
    make_groups(location, top)
    for _ in range(ATTEMPTS):
        numbers = stored_numbers(location, top)
        last = highest(location, top, numbers)
        before = None if last is None else _ended(location, top, *last)
        # The next number is above every used one, whether or not the last document is gone. Of two
        # processes that read the same claim, exactly one publishes the next; the other reads again.
        number = max(numbers, default=0) + 1
        place = layout.child(top, number)
        claim = Claim.of_this_process(place, what, {} if before is None else before.known)
        if not publish_numbered(location, top, number, claim.document):
            continue
        if _is_alone(location, top, numbers, 0 if last is None else last[0]):
            return number, claim
        # Its folder is deleted too: without a document it would look like a claim that was deleted by
        # hand.
        location.delete_folder(place)
    raise LocationError(f"{location}: others come first again and again at {top}; try again")


def _is_alone(location: Location, top: str, numbers: list[int], read: int) -> bool:
    """Tell whether no process holds a claim with these numbers, except the one that was ``read``.

    A folder with a higher number and no document was left by a killed process, or belongs to one that
    is about to write its claim. That process withdraws if it finds a higher claim; if it looked before
    that claim was there, its own document is there by now. A claim with a lower number than the one
    read has ended, was left by a dead process, or was passed over after a long silence, unless its
    process is on this machine and alive.
    """
    for number in numbers:
        document = None if number == read else location.get(layout.document_key(top, number))
        if document is None:
            continue
        claim = Claim.read(document, layout.child(top, number))
        lives = claim.machine == _machine() and not claim.ended and not claim.is_left
        if number > read or lives:
            return False
    return True


def _ended(location: Location, top: str, number: int, document: bytes) -> Claim:
    """Return a claim whose process has ended; raise if it lives.

    For this machine the process is looked up. A process elsewhere is dead if its claim does not change
    for several renewals, since a pause of the network may swallow some of them.
    """
    claim = Claim.read(document, layout.child(top, number))
    key, until = layout.document_key(top, number), time.monotonic() + SILENT
    lives = not claim.ended and not claim.is_left
    if lives and claim.machine != _machine():
        while not (lives := location.get(key) != document) and time.monotonic() < until:
            time.sleep(POLL)
    if lives:
        path = layout.claimed_path(top)
        raise LocationError(
            f"{location}: {path} is being changed ({claim}); try again once that has ended"
        )
    return claim


def _renew(location: Location, top: str, number: int, claim: Claim, ended: threading.Event) -> None:
    """Write a claim repeatedly, so that others see that this process lives."""
    key, count = layout.document_key(top, number), 0
    while not ended.wait(RENEWED):
        count += 1
        with suppress(LocationError):  # the next renewal may succeed
            location.put({key: replace(claim, renewed=count).document})


@cache
def _machine() -> str:
    """Return a text for this machine since its start: others have processes of the same numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(process: int) -> int | None:
    """Return the start time of a process of this machine, in the system's unit; None without one."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    if exists(Path("/proc/self/stat")):
        return None
    # Without /proc, an existing process is taken to be the one that made the claim.
    try:
        with suppress(PermissionError):
            os.kill(process, 0)
    except ProcessLookupError:
        return None
    return 0
