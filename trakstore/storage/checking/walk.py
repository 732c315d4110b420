"""A walk through a store's hierarchy: its documents, and the keys that do not belong there."""

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
from trakstore.spec import SplitSpec, StoreSpec
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents, row_document
from trakstore.storage.backends.chunks import TAIL, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.block_checks import Finding, FindingKind
from trakstore.storage.checking.split_keys import belongs, is_beyond
from trakstore.storage.claims import claimed
from trakstore.storage.dropped_rows import dropped_columns, is_dropped
from trakstore.storage.group_documents import EMPTY, attributes, group_document
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import no_store_error, open_store, stores_inside
from trakstore.storage.snapshots import refuse_older
from trakstore.storage.split import Split, blocks_among, split_spec
from trakstore.storage.tables.index_documents import check_index
from trakstore.storage.tables.retrained import read_models
from trakstore.storage.tables.runs import Run
from trakstore.storage.tables.saved_table import check_table, delete_table, table_names
from trakstore.storage.tables.scale_factors import check_factors, read_factors
from trakstore.storage.tables.training_records import read_record

LEFTOVER_SECONDS = 3600.0  # younger temporary files may belong to a running writer
_BEYOND = "behind the last row: an append was stopped (append again), or it was copied here"


class Walk:
    """A walk that goes through the hierarchy, with the blocks or without, and keeps what it finds."""

    def __init__(self, location: Location, repair: bool, *, blocks: bool = True) -> None:
        self.location, self.repair, self.blocks = location, repair, blocks
        self.findings: list[Finding] = []
        self.leftovers: list[str] = []
        self.split_names: set[str] = set()
        self._spec: StoreSpec | None = None  # the spec in the root document, if there is one
        self._opened: dict[str, Split] = {}

    def say(self, kind: FindingKind, key: str, message: str, **where: Any) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, key, message, **where))

    def document(self, key: str, wanted: bytes, **where: Any) -> None:
        """Check a document that follows from others: it must exist, with exactly these bytes."""
        stored, message = self.read(key)
        if stored != wanted:
            repaired = False
            if self.repair:
                with suppress(DamagedError):  # behind a link, which is a finding of its own
                    self.location.put({key: wanted})
                    repaired = True
            self.say("document", key, message, repaired=repaired, **where)

    def read(self, key: str, most: int | None = None) -> tuple[bytes | None, str]:
        """Return the value of a key, and the fault in words if it cannot be right."""
        try:
            stored = self.location.get(key, most)
        except DamagedError as error:
            return b"", str(error).removeprefix(f"{key} ")
        return stored, "is missing" if stored is None else "is damaged or disagrees with the spec"

    def listed(self, path: str) -> list[str]:
        """List the names just below a folder; report a link in its place as foreign."""
        return self._unless_foreign(path, partial(self.location.names, path))

    def find(self, path: str, wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
        """List the keys below a folder that are wanted."""
        return self._unless_foreign(path, partial(self.location.find, path, wanted))

    def _unless_foreign(self, path: str, listing: Callable[[], list[str]]) -> list[str]:
        try:
            return listing()
        except DamagedError as error:
            self.say("foreign", path, str(error).removeprefix(f"{path} "))
            return []

    def written(self, split: Split) -> list[int]:
        """Return the numbers of the blocks of a split that are committed, in order."""
        return blocks_among(self.listed(layout.written_path(split.path)))

    def root(self) -> None:
        """Check the store's own document."""
        key = layout.DOCUMENT
        document, _ = self.read(key)
        # Nothing may be removed from a folder of stores, which only looks like a store without its
        # document.
        if document is None and (not self.location.names("") or stores_inside(self.location)):
            raise no_store_error(self.location)
        try:
            stored = attributes(document or b"", str(self.location))
        except DamagedError as error:
            if document is not None and _of_another(document):
                raise LocationError(f"{self.location} is not a trakstore store") from error
            lost = "; put it back from a copy: nothing can be read without it"
            self.say("document", key, ("is missing" if document is None else "is damaged") + lost)
        else:
            try:
                # Raises if this is no store, or has a newer format.
                self._spec = open_store(self.location).spec
            except DamagedError as error:
                self.say("document", key, f"is damaged ({error})")
                return
            self._scale(self._spec)
            self.document(key, group_document(stored))

    def _scale(self, spec: StoreSpec) -> None:
        """Check that the factors named in the store's spec exist, and have that hash."""
        if spec.scale is None or spec.parameters is None:
            return
        path = layout.scale_path(spec.scale.digest)
        if any(check_table(self.location, path, check_factors)):
            return  # which is said with the other tables
        try:
            read_factors(self.location, spec.scale.digest, spec.parameters)
        except (DamagedError, NotFoundError) as error:
            self.say(
                "document", layout.document_key(path), f"is not what the store names ({error})"
            )

    def epochs(self, wanted: Sequence[Epoch] | None) -> list[Epoch]:
        """Return the epochs that are there, of those that are wanted."""
        names = [n for n in self.listed("") if n not in (*layout.RESERVED, layout.DOCUMENT)]
        there = [layout.as_epoch(n) for n in self._folders("", names, layout.as_epoch)]
        there.sort(key=layout.epoch_sort_key)
        require(wanted, there, "epoch", self.location)
        chosen = there if wanted is None else [layout.as_epoch(epoch) for epoch in wanted]
        return [epoch for epoch in there if epoch in chosen]

    def splits_of(self, epoch: Epoch, wanted: Sequence[str] | None) -> Iterator[Split]:
        """Yield the splits at an epoch whose documents can be read, of those that are wanted."""
        path = layout.epoch_path(epoch)
        names = [name for name in self.listed(path) if name != layout.DOCUMENT]
        documents = [layout.document_key(path), *(layout.document_key(path, n) for n in names)]
        if all(self.read(key)[0] is None for key in documents):
            if not self._cut_short(path):
                self.strange(path)
            return
        self.document(documents[0], EMPTY, epoch=epoch)
        for name in self._folders(path, names, lambda one: layout.check_name(one, "split")):
            self.split_names.add(name)
            if wanted is None or name in wanted:
                split = self.opened(epoch, name)
                if split is not None:
                    yield split

    def _cut_short(self, path: str) -> bool:
        """Tell whether a folder has no files but leftovers: its document was never written."""
        inside = self.find(path)
        if not all(map(layout.is_leftover, inside)):
            return False
        self.leftovers += inside
        return True

    def _folders(self, path: str, names: list[str], check: Callable[[str], Any]) -> Iterator[str]:
        """Yield the names that can be an epoch's or split's; the others are foreign or leftovers."""
        for name in names:
            key = layout.child(path, name)
            try:
                named = str(check(name)) == name
            except ValueError:
                named = False
            if named and self.read(key)[0] is None:
                yield name
            else:
                self.strange(key)

    def strange(self, key: str, **where: Any) -> None:
        """Record a key that no writer makes, as a finding or as a writer's leftover."""
        if layout.is_leftover(key):
            self.leftovers.append(key)
        else:
            self.say("foreign", key, "is not part of a store; remove it by hand", **where)

    def opened(self, epoch: Epoch, name: str, *, alone: bool = False) -> Split | None:
        """Open a split as its document is now; report and return None if it cannot be read.

        A document with the same attributes in other bytes is repaired only under a claim (``alone``),
        when nobody else can drop the split meanwhile.
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
        # The attributes are equal and the bytes are not: another program rewrote the document.
        wanted = group_document(attributes(document or b"", path))
        if alone is self.repair:
            if document != wanted:
                self.document(key, wanted, epoch=epoch, split=name)
            self._of_this_store(spec, key, epoch=epoch, split=name)
        dropped = self.is_dropped(path, spec)
        made = self._opened[path] = Split(self.location, epoch, name, spec, dropped=dropped)
        return made

    def _of_this_store(self, spec: SplitSpec, key: str, **where: Any) -> None:
        """Check that the store's own document and that of a split belong together."""
        if self._spec is None:
            return  # which is said of the root
        try:
            spec.check_of(self._spec)
        except (DamagedError, SpecMismatchError) as error:
            self.say("document", key, f"does not go with that of the store: {error}", **where)

    def is_dropped(self, path: str, spec: SplitSpec) -> bool:
        """Tell whether the features of a split were dropped.

        A damaged note is a finding of its own, and cannot tell: then the features decide, and those
        that exist are checked as usual.
        """
        try:
            return is_dropped(self.location, path, spec)
        except DamagedError:
            folder = layout.chunk_folder(layout.child(path, layout.FEATURES))
            return not self.location.find(folder, lambda _: True)

    def keep(self, split: Split) -> None:
        """Remember an opened split for later checks, in place of its earlier state."""
        self._opened[split.path] = split

    def opened_splits(self, name: str) -> list[Split]:
        """Return the splits of a name that were opened, at all epochs."""
        return [split for split in self._opened.values() if split.name == name]

    def opened_at(self, path: str) -> Split | None:
        """Return the split at a path, if it was opened."""
        return self._opened.get(path)

    def keys(self, split: Split, *, any_written: bool) -> None:
        """Check the documents of a split's arrays, and for keys that it cannot have."""
        where = {"epoch": split.epoch, "split": split.name}
        for name, wanted in array_documents(split.spec).items():
            key = layout.document_key(split.path, name)
            # Without any block or array document, the split was not completely made: the next writer
            # makes the rest.
            if any_written or self.read(key)[0] is not None:
                self.document(key, wanted, **where)
        if split.dropped and not self.repair:
            self._dropped_chunks(split)
        for key in self.find(split.path, lambda one: not belongs(split, one)):
            if is_beyond(split, key):
                repaired = self.repair and self.abandoned(key)
                if repaired:
                    self.location.delete([key])
                self.say("foreign", key, f"is {_BEYOND}", repaired=repaired, **where)
            else:
                self.strange(key, **where)

    def _dropped_chunks(self, split: Split) -> None:
        """Find chunks of features that a stopped call of ``drop_rows`` left."""
        for name in dropped_columns(split.spec):
            folder = layout.chunk_folder(layout.child(split.path, name))
            if self.find(folder):
                self.leftovers.append(folder)

    def left_out(self, split: Split, name: str, remedy: str) -> None:
        """Check a column of left-out rows: it has chunks only for blocks with such rows."""
        path, size = layout.child(split.path, name), split.spec.block_rows + TAIL
        where = {"epoch": split.epoch, "split": split.name}
        keys = self.find(path, lambda key: belongs(split, key))
        if keys:
            self.document(layout.document_key(path), row_document(split.spec, name), **where)
        for key in keys:
            if not layout.is_document(key):
                value, _ = self.read(key, size)
                if value is not None and not (intact(value) and len(value) == size):
                    self.say("damaged", key, f"is damaged: {remedy}", **where)

    def abandoned(self, key: str) -> bool:
        """Tell whether no running writer can own a file: it is more than an hour old."""
        # Only a local disk tells the age of a file; other writers leave no temporary files.
        root = getattr(self.location.store, "root", None)
        if root is None:
            return False
        with suppress(OSError):
            return bool(time.time() - (root / key).stat().st_mtime > LEFTOVER_SECONDS)
        return False

    def runs(self) -> None:
        """Check the records of runs."""
        for path in self.groups(layout.RUNS):
            key = layout.document_key(path)
            for other in self.find(path, partial(ne, key)):
                self.strange(other)
            document, _ = self.read(key)
            if document is None or not _is_record(document):
                what = "is missing" if document is None else "is damaged"
                self.say("document", key, f"{what}; it is a record only, and may be removed")

    def saved(self) -> None:
        """Check the saved tables, except grams."""
        for path in self.groups(layout.SCORES):
            self.findings += check_table(self.location, path)
        for top, read in ((layout.DYNAMICS, read_record), (layout.EVALUATION, read_models)):
            for path in self.groups(top, 2):
                self.findings += check_table(self.location, path, read)
        for path in self.groups(layout.SCALES):
            self.findings += check_table(self.location, path, check_factors)
        for path in self.groups(layout.INDEXES, 2):
            wrong = list(check_table(self.location, path, check_index))
            self.findings += self._dropped(path) if wrong and self.repair else wrong

    def _dropped(self, path: str) -> list[Finding]:
        """Drop a bad index, which can be made again from the rows; return its fault."""
        # Under its claim, since another process may be building it.
        with claimed(self.location, path, "repair"):
            wrong = list(check_table(self.location, path, check_index))
            if wrong:
                delete_table(self.location, path)
        return [replace(one, repaired=True) for one in wrong]

    def groups(self, top: str, depth: int = 1) -> list[str]:
        """List the paths of the groups so deep below a group; those above need documents."""
        above = [top] if depth == 1 else self.groups(top, depth - 1)
        return [layout.child(path, name) for path in above for name in self.below(path)]

    def below(self, path: str) -> list[str]:
        """List the groups in a group, whose document must exist if there are any."""
        key = layout.document_key(path)
        names = self._unless_foreign(path, partial(table_names, self.location, path))
        if self.findings and self.findings[-1].key == path:
            return []  # what is there instead of a group was told
        filled = (self.find(layout.child(path, name)) for name in names)
        if self.read(key)[0] is not None or any(filled):
            self.document(key, EMPTY)
        return names

    def clear_leftovers(self) -> None:
        """With ``repair``, remove the leftovers that no running writer can own."""
        if self.repair:
            gone = list(filter(self.abandoned, self.leftovers))
            self.location.delete(gone)
            self.leftovers = [key for key in self.leftovers if key not in gone]


def _is_record(document: bytes) -> bool:
    """Tell whether a document is that of a run, as it was written."""
    try:
        record = attributes(document, "")
        Run.from_dict(record)
    except (DamagedError, SpecMismatchError):
        return False
    return group_document(record) == document


def _of_another(document: bytes) -> bool:
    """Tell whether a root document is whole and is some other program's."""
    try:
        attributes(document, "", check=False)
    except DamagedError:
        return False
    return b'"trakstore"' not in document and b'"crc32c"' not in document


def require(
    wanted: Sequence[Any] | None, there: Iterable[Any], what: str, location: Location
) -> None:
    """Raise a :class:`NotFoundError` for the first that is wanted and was not found."""
    known = [str(one) for one in there]
    for one in wanted or ():
        if str(one) not in known:
            raise NotFoundError(f"{location} has no {what} {one!r}{did_you_mean(one, known)}")
