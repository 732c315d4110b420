"""Checks of splits whose features were dropped: their notes, and the grams that are kept of them.

Such a gram is no derived data: nothing can make it again. So repair deletes nothing on the word of a
note that it cannot read, and no gram that a note may be of.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from trakstore.errors import DamagedError, LocationError, SpecMismatchError, TrakStoreError
from trakstore.storage import layout
from trakstore.storage.block_checks import Finding
from trakstore.storage.checking.statements import strange_files, was_emptied
from trakstore.storage.checking.walk import Walk
from trakstore.storage.claims import claimed
from trakstore.storage.dropped_rows import (
    WEIGHTING,
    DroppedRows,
    forget_dropped,
    kept_gram,
    note_dropped,
    placed_note,
    read_dropped,
)
from trakstore.storage.dropping import (
    GRAM_GONE,
    chunks_left,
    finish_drop,
    gram_is_gone,
    has_all_chunks,
    wrong_gram,
)
from trakstore.storage.split import Split
from trakstore.storage.tables.saved_table import check_table, delete_table, rewrite_documents


def finish_dropping(walk: Walk, split: Split) -> Split:
    """Finish a call of ``drop_rows`` that was stopped, as that would; return the split as it is then.

    The caller has the claim of the split.
    """
    place, path = split.location, split.path
    if not split.dropped or not chunks_left(split):
        return split
    try:
        with claimed(place, kept_gram(path), "repair"):
            # A damaged note is no reason to delete what may be the only rows.
            if _sound_note(split) is not None:
                finish_drop(split)
    except LocationError:
        raise
    except TrakStoreError as error:
        # Where rows are gone, what is wrong with the gram is a finding of its own.
        now = replace(split, dropped=walk.is_dropped(path, split.spec))
        if not now.dropped:
            key = layout.document_key(layout.dropped_path(path))
            what = f"says that rows were dropped which are all there ({error})"
            walk.say("document", key, what, repaired=True, epoch=split.epoch, split=split.name)
        walk.keep(now)
        return now
    return split


def check_grams(walk: Walk) -> None:
    """Check the grams of splits."""
    for path in walk.groups(layout.GRAMS, 2):
        wrong = list(check_table(walk.location, path))
        walk.findings += _repaired(walk, path) if wrong and walk.repair else wrong


def _repaired(walk: Walk, path: str) -> list[Finding]:
    """Repair a gram; return what was wrong with it."""
    # Under its claim: another process may compute it, or drop the rows that it is of.
    with claimed(walk.location, path, "repair"):
        wrong = list(check_table(walk.location, path))
        if _may_be_kept(walk, path):
            with suppress(DamagedError, SpecMismatchError):  # of its own document, which is said
                rewrite_documents(walk.location, path)
            left = list(check_table(walk.location, path))
            return [replace(one, repaired=one not in left) for one in wrong]
        # A gram follows from the rows: a bad one is dropped, and computed when it is asked for.
        if wrong:
            delete_table(walk.location, path)
        return [replace(one, repaired=True) for one in wrong]


def _may_be_kept(walk: Walk, path: str) -> bool:
    """Tell whether a note says of a gram's rows that they were dropped, or is damaged and may."""
    name = layout.below(layout.GRAMS, path).removesuffix(f"~{WEIGHTING}")
    if path != kept_gram(name):
        return False
    try:
        note = read_dropped(walk.location, name)
    except DamagedError:
        return True
    split = walk.opened_at(name)
    return note is not None and (split is None or note.is_of(split.spec))


def check_dropped(walk: Walk) -> None:
    """Check the notes of splits whose features were dropped, and that their grams are there."""
    strange_files(walk, layout.DROPPED)
    for path in walk.groups(layout.DROPPED, 2):
        split = walk.opened_at(layout.below(layout.DROPPED, path))
        document, what = walk.read(layout.document_key(path))
        if document is None and not was_emptied(walk, path):
            continue
        wrong = what if document is None else _wrong_note(document, path, split)
        if wrong:
            repaired = walk.repair and split is not None and _repair_note(walk, split)
            walk.say("document", layout.document_key(path), wrong, repaired=repaired)
        elif split is not None and split.dropped:
            _check_kept_gram(walk, split)


def _wrong_note(document: bytes, path: str, split: Split | None) -> str:
    """Return what is wrong with a note; empty for one that is sound."""
    try:
        note = placed_note(document, path)
    except DamagedError as error:
        return f"is damaged ({error})"
    if note.document != document:
        return "is not as it was written"
    if split is not None and note.nonce == split.spec.nonce and note.rows != split.rows:
        return f"says {note.rows} rows, and the split has {split.rows}"
    return ""


def _repair_note(walk: Walk, split: Split) -> bool:
    """Write the note again if the rows are gone and their gram is whole, else delete it."""
    place, path, gram = split.location, split.path, kept_gram(split.path)
    with claimed(place, path, "repair"), claimed(place, gram, "repair"):
        note = _sound_note(split)
        if note is not None:
            place.put({layout.document_key(note.place): note.document})
        elif not chunks_left(split) and not wrong_gram(split):
            note_dropped(place, path, split.spec.nonce, split.rows, gram)
        else:
            forget_dropped(place, path)
            if not has_all_chunks(split):
                _check_kept_gram(walk, split)
    return True


def _sound_note(split: Split) -> DroppedRows | None:
    """Read the note of this split; None where there is none, or none that can be believed."""
    try:
        note = read_dropped(split.location, split.path)
    except DamagedError:
        return None
    return note if note is not None and note.is_of(split.spec) else None


def _check_kept_gram(walk: Walk, split: Split) -> None:
    """Find a gram that is gone though the rows that it was computed from were dropped."""
    if not gram_is_gone(split):
        return  # what is wrong with one that is there is said of it
    what = (
        f"{GRAM_GONE}, though the rows of {split.name} were dropped: drop the split (store.drop) and "
        f"featurize the draws again"
    )
    if has_all_chunks(split):
        what = f"{GRAM_GONE}, and the rows of {split.name} that were to be dropped are all there"
    where = {"epoch": split.epoch, "split": split.name}
    walk.say("missing", layout.document_key(kept_gram(split.path)), what, **where)
