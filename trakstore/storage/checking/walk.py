"""Walking through a store's hierarchy: its documents, and the keys that do not belong there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import ne
from typing import Any

from trakstore.errors import (
    DamagedError,
    LocationError,
    NotFoundError,
    SpecMismatchError,
    did_you_mean,
)
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents, row_document
from trakstore.storage.backends.chunks import TAIL, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.block_checks import Finding, FindingKind
from trakstore.storage.checking.grid import belongs, is_beyond
from trakstore.storage.group_documents import attributes, group_document
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.snapshots import refuse_older
from trakstore.storage.split import Split, split_spec
from trakstore.storage.tables.retrained import read_models
from trakstore.storage.tables.runs import Run
from trakstore.storage.tables.saved_table import check_table, delete_table, table_names
from trakstore.storage.tables.training_records import read_record

__all__ = ["Walk", "require"]

LEFTOVER_SECONDS = 3600.0  # a younger one may be a running writer's
_BEYOND = "behind the last row: an append was stopped (append again), or it was copied here"


class Walk:
    """Goes through the hierarchy; keeps what it finds."""

    def __init__(self, location: Location, repair: bool) -> None:
        self.location, self.repair = location, repair
        self.findings: list[Finding] = []
        self.leftovers: list[str] = []
        self.split_names: set[str] = set()
        self._opened: dict[str, Split] = {}

    def say(self, kind: FindingKind, key: str, message: str, **where: Any) -> None:
        """Keep a finding."""
        self.findings.append(Finding(kind, key, message, **where))

    def document(self, key: str, wanted: bytes, **where: Any) -> None:
        """A document that follows from others: it has to be there, byte for byte."""
        found, message = self.read(key)
        if found == wanted:
            return
        self.say("document", key, message, repaired=self._put(key, wanted), **where)

    def _put(self, key: str, wanted: bytes) -> bool:
        """With ``repair``, write a document; not behind a link, which is found by itself."""
        if self.repair:
            with suppress(DamagedError):
                self.location.put({key: wanted})
                return True
        return False

    def read(self, key: str, most: int | None = None) -> tuple[bytes | None, str]:
        """What a key holds, and what is to be said of it where that is not right."""
        try:
            found = self.location.get(key, most)
        except DamagedError as error:
            return b"", str(error).removeprefix(f"{key} ")
        return found, "is missing" if found is None else "is damaged or disagrees with the spec"

    def listed(self, path: str) -> list[str]:
        """Names just below a folder; a link in its place is found to be foreign."""
        try:
            return self.location.names(path)
        except DamagedError as error:
            self.say("foreign", path, str(error).removeprefix(f"{path} "))
            return []

    def find(self, path: str, wanted: Callable[[str], bool]) -> list[str]:
        """Keys below a folder that are wanted."""
        try:
            return self.location.find(path, wanted)
        except DamagedError as error:
            self.say("foreign", path, str(error).removeprefix(f"{path} "))
            return []

    def written(self, split: Split) -> list[int]:
        """Numbers of the blocks of a split that are committed, in order."""
        folder = layout.written_path(split.path)
        found = {layout.marker_block(name) for name in self.listed(folder)}
        return sorted(block for block in found if block is not None)

    def root(self) -> None:
        """The store's own document."""
        key = layout.DOCUMENT
        document, _ = self.read(key)
        if document is None and not self.location.names(""):
            open_store(self.location)  # says that there is none
        try:
            found = attributes(document or b"", str(self.location))
        except DamagedError as error:
            if document is not None and _of_another(document):
                raise LocationError(f"{self.location} is not a trakstore store") from error
            lost = "; put it back from a copy: nothing can be read without it"
            self.say("document", key, ("is missing" if document is None else "is damaged") + lost)
        else:
            open_store(self.location)  # refuses what is not a store, or is of a newer format
            self.document(key, group_document(found))

    def epochs(self, wanted: Sequence[Epoch] | None) -> list[Epoch]:
        """The epochs that are there, of those that are wanted."""
        names = [n for n in self.listed("") if n not in (*layout.RESERVED, layout.DOCUMENT)]
        found = [layout.as_epoch(n) for n in self._folders("", names, layout.as_epoch)]
        require(wanted, sorted(found, key=layout.epoch_sort_key), "epoch", self.location)
        chosen = found if wanted is None else {layout.as_epoch(epoch) for epoch in wanted}
        return sorted((e for e in found if e in chosen), key=layout.epoch_sort_key)

    def splits_of(self, epoch: Epoch, wanted: Sequence[str] | None) -> Iterator[Split]:
        """The splits at an epoch whose documents can be read, of those that are wanted."""
        path = layout.epoch_path(epoch)
        names = [name for name in self.listed(path) if name != layout.DOCUMENT]
        key = layout.document_key(path)
        if self.read(key)[0] is None and not self._any_document(path, names):
            if not self._cut_short(path):
                self.strange(path)
            return
        self.document(key, group_document({}), epoch=epoch)
        for name in self._folders(path, names, lambda one: layout.check_name(one, "split")):
            self.split_names.add(name)
            if wanted is None or name in wanted:
                split = self.opened(epoch, name)
                if split is not None:
                    yield split

    def _cut_short(self, path: str) -> bool:
        """Whether a folder has no files but leftovers: its document was never written."""
        inside = self.find(path, lambda _: True)
        if not all(map(layout.is_leftover, inside)):
            return False
        self.leftovers += inside
        return True

    def _any_document(self, path: str, names: list[str]) -> bool:
        keys = [layout.document_key(path, name) for name in names]
        return any(self.read(key)[0] is not None for key in keys)

    def _folders(self, path: str, names: list[str], check: Callable[[str], Any]) -> Iterator[str]:
        """The names that can be an epoch's or split's; the others are foreign or leftovers."""
        for name in names:
            key = f"{path}/{name}".lstrip("/")
            try:
                named = str(check(name)) == name
            except ValueError:
                named = False
            if named and self.read(key)[0] is None:
                yield name
            else:
                self.strange(key)

    def strange(self, key: str, **where: Any) -> None:
        if layout.is_leftover(key):
            self.leftovers.append(key)
        else:
            self.say("foreign", key, "is not part of a store; remove it by hand", **where)

    def opened(self, epoch: Epoch, name: str, *, alone: bool = False) -> Split | None:
        """A split as its document says now; None, with a finding, where that cannot be read.

        A document that says the same in other bytes is repaired only where nobody else may drop the
        split meanwhile: ``alone``.
        """
        path = layout.split_path(epoch, name)
        key = layout.document_key(path)
        document: bytes | None = b""
        try:
            document = self.location.get(key)
            if document is None and self._cut_short(path):
                return None
            spec = split_spec(document or b"", path)
            refuse_older(self.location, path, spec)
        except (DamagedError, SpecMismatchError) as error:
            what = "is missing" if document is None else f"is damaged ({error})"
            lost = "put it back from a copy, or remove the folder and featurize again"
            self.say("document", key, f"{what}; {lost}", epoch=epoch, split=name)
            return None
        wanted = group_document(attributes(document or b"", path))
        if document != wanted and alone is self.repair:
            self.document(key, wanted, epoch=epoch, split=name)
        made = self._opened[path] = Split(self.location, epoch, name, spec)
        return made

    def opened_splits(self, name: str) -> list[Split]:
        """The splits of a name that were opened, at all epochs."""
        return [split for split in self._opened.values() if split.name == name]

    def keys(self, split: Split, *, any_written: bool) -> None:
        """The documents of a split's arrays, and keys that it cannot have."""
        where = {"epoch": split.epoch, "split": split.name}
        for name, wanted in array_documents(split.spec).items():
            key = layout.document_key(split.path, name)
            if any_written or self.read(key)[0] is not None:  # else creation was cut short
                self.document(key, wanted, **where)
        for key in self.find(split.path, lambda one: not belongs(split, one)):
            if is_beyond(split, key):
                repaired = self.repair and self.abandoned(key)
                if repaired:
                    self.location.delete([key])
                self.say("foreign", key, f"is {_BEYOND}", repaired=repaired, **where)
            else:
                self.strange(key, **where)

    def left_out(self, split: Split) -> None:
        """The columns that leave rows out; their chunks are there only for blocks with such rows."""
        self._left_out(split, layout.MASKED, "mask its samples again")
        self._left_out(split, layout.SKIPPED, "nothing tells any more why rows are left out")

    def _left_out(self, split: Split, name: str, remedy: str) -> None:
        """Check a column of one byte a row, of which only some chunks are there."""
        path, document = layout.child(split.path, name), row_document(split.spec, name)
        where = {"epoch": split.epoch, "split": split.name}
        keys = self.find(path, lambda key: belongs(split, key))
        chunks = [key for key in keys if not key.endswith(layout.DOCUMENT)]
        if keys:
            self.document(layout.document_key(path), document, **where)
        for key in chunks:
            value, _ = self.read(key, split.spec.block_rows + TAIL)
            if value is not None and not (
                intact(value) and len(value) == split.spec.block_rows + TAIL
            ):
                self.say("damaged", key, f"is damaged: {remedy}", **where)

    def abandoned(self, key: str) -> bool:
        """Whether no running writer can own a file: it is more than an hour old."""
        root = getattr(self.location.store, "root", None)
        if root is None:
            return False
        with suppress(OSError):
            return bool(time.time() - (root / key).stat().st_mtime > LEFTOVER_SECONDS)
        return False

    def runs(self) -> None:
        """The records of runs."""
        for name in self.below(layout.RUNS):
            key = layout.document_key(layout.RUNS, name)
            for other in self.find(layout.child(layout.RUNS, name), partial(ne, key)):
                self.strange(other)
            document, _ = self.read(key)
            if document is None or not _is_record(document):
                what = "is missing" if document is None else "is damaged"
                self.say("document", key, f"{what}; it is a record only, and may be removed")

    def saved(self) -> None:
        """The saved tables; a gram is computed again when it is not there."""
        for name in self.below(layout.SCORES):
            self.findings += check_table(self.location, layout.child(layout.SCORES, name))
        for top, read in ((layout.DYNAMICS, read_record), (layout.EVALUATION, read_models)):
            for name in self.below(top):
                for part in self.below(layout.child(top, name)):
                    self.findings += check_table(self.location, f"{top}/{name}/{part}", read)
        for epoch in self.below(layout.GRAMS):
            for name in self.below(layout.child(layout.GRAMS, epoch)):
                path = f"{layout.GRAMS}/{epoch}/{name}"
                found = list(check_table(self.location, path))
                if found and self.repair:
                    delete_table(self.location, path)
                self.findings += [replace(one, repaired=self.repair) for one in found]

    def below(self, path: str) -> list[str]:
        """Names of the groups in a group, whose document has to be there if there are any."""
        try:
            key, names = layout.document_key(path), table_names(self.location, path)
        except DamagedError as error:
            self.say("foreign", path, str(error).removeprefix(f"{path} "))
            return []
        if self.read(key)[0] is not None or any(
            self.find(layout.child(path, name), lambda _: True) for name in names
        ):
            self.document(key, group_document({}))
        return names

    def clear_leftovers(self) -> None:
        """With ``repair``, remove the leftovers that no running writer can own."""
        if self.repair:
            gone = list(filter(self.abandoned, self.leftovers))
            self.location.delete(gone)
            self.leftovers = [key for key in self.leftovers if key not in gone]


def _is_record(document: bytes) -> bool:
    """Whether a document is that of a run, as it was written."""
    try:
        found = attributes(document, "")
        Run.from_dict(found)
    except (DamagedError, SpecMismatchError):
        return False
    return group_document(found) == document


def _of_another(document: bytes) -> bool:
    """Whether a root document is whole and is some other program's."""
    try:
        attributes(document, "", check=False)
    except DamagedError:
        return False
    return b'"trakstore"' not in document and b'"crc32c"' not in document


def require(
    wanted: Sequence[Any] | None, found: Iterable[Any], what: str, location: Location
) -> None:
    """Raise a :class:`NotFoundError` for the first that is wanted and was not found."""
    known = [str(one) for one in found]
    for one in wanted or ():
        if str(one) not in known:
            raise NotFoundError(f"{location} has no {what} {one!r}{did_you_mean(one, known)}")
