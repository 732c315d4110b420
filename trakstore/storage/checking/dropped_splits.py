"""Checks of splits whose features were dropped: their notes, and the grams kept in their place.

Such a gram cannot be computed again. So repair deletes nothing because of a note that it cannot read,
and no gram to which a note may refer.
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
    """Finish a stopped call of ``drop_rows``, as the call itself would; return the split afterwards.

    The caller holds the claim of the split.
    """
    place, path = split.location, split.path
    if not split.dropped or not chunks_left(split):
        return split
    try:
        with claimed(place, kept_gram(path), "repair"):
            # A damaged note is no reason to delete what may be the only copy of the rows.
            if _sound_note(split) is not None:
                finish_drop(split)
    except LocationError:
        raise
    except TrakStoreError as error:
        # If rows are gone, a fault of the gram is reported by itself.
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
    # Under its claim, since another process may compute the gram, or drop its rows.
    with claimed(walk.location, path, "repair"):
        wrong = list(check_table(walk.location, path))
        if _may_be_kept(walk, path):
            with suppress(DamagedError, SpecMismatchError):  # of its own document, which is said
                rewrite_documents(walk.location, path)
            left = list(check_table(walk.location, path))
            return [replace(one, repaired=one not in left) for one in wrong]
        # A gram can be computed from the rows: a bad one is dropped, and made again when needed.
        if wrong:
            delete_table(walk.location, path)
        return [replace(one, repaired=True) for one in wrong]


def _may_be_kept(walk: Walk, path: str) -> bool:
    """Tell whether a note says that a gram's rows were dropped, or is damaged and may say so."""
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
    """Return the fault of a note; an empty text if it is sound."""
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
    """Write the note again if the rows are gone and their gram is whole; otherwise delete it."""
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
    """Read the note of this split; None if there is none that can be trusted."""
    try:
        note = read_dropped(split.location, split.path)
    except DamagedError:
        return None
    return note if note is not None and note.is_of(split.spec) else None


def _check_kept_gram(walk: Walk, split: Split) -> None:
    """Report a gram that is missing though the rows that it was computed from were dropped."""
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
