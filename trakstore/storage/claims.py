"""Claims: a process that appends, drops, repairs, saves or trains again says so before.

Rows are computed by any number of workers without a word between them. To replace or delete something
is for one process: a second one is refused, with the name of the first. A process that was killed stops
nobody: on the same machine its end is seen at once, on another one by its silence, since a process that
lives renews its claim.
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

RENEWED = 15.0  # seconds between two signs of life,
SILENT = 60.0  # and without one, after which a process on another machine is taken to be dead
POLL = 1.0  # seconds between two looks
ATTEMPTS = 20


@dataclass(frozen=True)
class Claim:
    """A process that changes something, or did.

    Attributes
    ----------
    place : str
        Path of the claim itself.
    what : str
        The change in words, such as ``"append"``.
    host, machine : str
        Name of the machine, and a text that tells it, as it runs now, from others of that name.
    process, born : int
        Number of the process, and the time of its start, which tells it from later ones of that number.
    since : str
        ISO 8601, UTC.
    writing : str
        Random text: no two claims are alike.
    renewed : int
        Number of signs of life.
    known : dict
        Results of it and of claims before: plain values, such as the number of rows.
    ended : bool
        True once it has ended, well or not.
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
        """True if it was left behind by a process of this machine that is no more."""
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
    """Within, this process alone changes what lies at ``path``.

    Parameters
    ----------
    location : Location
    path : str
        Path of a group.
    what : str
        The change in words, for others.

    Yields
    ------
    dict
        Filled by the caller with results, plain values, which are kept: see :func:`last_claim`.

    Raises
    ------
    LocationError
        When another process is changing it: which one, and since when.
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
        result.clear()  # results of a change that failed are none
        raise
    finally:
        ended.set()
        renewal.join()
        over = replace(claim, known={**claim.known, **result}, ended=True)
        key = layout.document_key(top, number)
        # If the end cannot be written, or the process is killed before, the claim goes silent, and the
        # next process takes the place after a minute; on this machine at once. The highest claim stays,
        # since a number that was used must never be used again.
        with suppress(LocationError):
            location.put({key: over.document})
            older = [n for n in stored_numbers(location, top) if n < number]
            location.delete([layout.document_key(top, n) for n in older])


def last_claim(location: Location, path: str) -> Claim | None:
    """Return the claim of the process that changed what lies at ``path`` last, or does now."""
    top = layout.claims_path(path)
    last = highest(location, top, stored_numbers(location, top))
    return None if last is None else Claim.read(last[1], layout.child(top, last[0]))


def _take(location: Location, top: str, what: str) -> tuple[int, Claim]:
    make_groups(location, top)
    for _ in range(ATTEMPTS):
        numbers = stored_numbers(location, top)
        last = highest(location, top, numbers)
        before = None if last is None else _ended(location, top, *last)
        # One more than any number that was used, whether or not the document of the last is gone: of
        # two processes that read the same claim exactly one publishes the next, the other reads again.
        number = max(numbers, default=0) + 1
        place = layout.child(top, number)
        claim = Claim.of_this_process(place, what, {} if before is None else before.known)
        if not publish_numbered(location, top, number, claim.document):
            continue
        if _is_alone(location, top, numbers, 0 if last is None else last[0]):
            return number, claim
        # With its folder: one without a document would tell of a claim that somebody deleted.
        location.delete_folder(place)
    raise LocationError(f"{location}: others come first again and again at {top}; try again")


def _is_alone(location: Location, top: str, numbers: list[int], read: int) -> bool:
    """Tell whether no process holds a claim of these numbers but of the one that was ``read``.

    A folder above it without a document is what a killed process left, or that of a process which was
    about to write its claim. That one takes its claim back if it finds a higher one there. If it looked
    before that was there, its own claim is there now. A claim below the one that was read has ended,
    was left by a process that died, or was passed over after a long silence, but for one of this
    machine whose process lives.
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
    """Return a claim whose process has ended; raise for one that lives.

    A process of this machine is looked for. One elsewhere is dead when its claim does not change for
    longer than several renewals take: a pause of the network may swallow some of them.
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
    """Write a claim again and again, so that others see that this process lives."""
    key, count = layout.document_key(top, number), 0
    while not ended.wait(RENEWED):
        count += 1
        with suppress(LocationError):  # the next sign of life may come through
            location.put({key: replace(claim, renewed=count).document})


@cache
def _machine() -> str:
    """Return what tells this machine, as it runs now, from others, whose processes have own numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(process: int) -> int | None:
    """Return when a process of this machine was started, in the system's unit; None for no process."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    if exists(Path("/proc/self/stat")):
        return None
    # Without /proc, a process that is there is taken for the one that made the claim.
    try:
        with suppress(PermissionError):
            os.kill(process, 0)
    except ProcessLookupError:
        return None
    return 0
