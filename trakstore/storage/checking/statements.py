"""Checks of documents about splits beside the splits: rows left out, completeness, changes.

They lie at the root, one for each statement. On a local disk each has a folder of its own, which
remains when the document is deleted.
"""

from __future__ import annotations

from contextlib import suppress

from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.checking.walk import Walk
from trakstore.storage.claims import Claim, claimed, last_claim
from trakstore.storage.completion import forget_complete, note_complete, read_completion
from trakstore.storage.group_documents import EMPTY, attributes, group_document
from trakstore.storage.masks import mask_numbers, parsed_masks
from trakstore.storage.numbered import stored_numbers
from trakstore.storage.split import Split


def check_masks(walk: Walk) -> None:
    """Check the documents that leave rows out of splits."""
    strange_files(walk, layout.MASKS)
    for split in walk.below(layout.MASKS):
        path = layout.masks_path(split)
        for number in range(1, 1 + max(mask_numbers(walk.below(path)), default=0)):
            _check_mask(walk, split, path, number)


def _check_mask(walk: Walk, split: str, path: str, number: int) -> None:
    key = layout.document_key(path, number)
    document, _ = walk.read(key)
    # A writer has a temporary file there, or was killed while writing it: nothing was published.
    if document is None and any(map(layout.is_leftover, walk.find(layout.child(path, number)))):
        return
    try:
        if document is None:
            walk.say("document", key, "is missing; put it back from a copy")
        elif group_document(attributes(document, path)) != document:
            walk.say("document", key, "is not as it was written")
        else:
            masks = parsed_masks(document, path, number)
            for one in walk.opened_splits(split):  # unpacked as each of them would unpack it
                masks.positions(one.epoch, one.spec.nonce, one.rows)
    except DamagedError as error:
        walk.say("document", key, f"is damaged ({error})")
    walk.document(layout.document_key(layout.kept_path(path, number)), EMPTY)


def check_completions(walk: Walk) -> None:
    """Check the notes of splits that were complete."""
    strange_files(walk, layout.COMPLETE)
    for path in walk.groups(layout.COMPLETE, 2):
        wrong = _wrong_completion(walk, path)
        if wrong is not None:
            if walk.repair:
                _note_again(walk, path)
            walk.say("document", layout.document_key(path), wrong, repaired=walk.repair)


def _wrong_completion(walk: Walk, path: str) -> str | None:
    document, _ = walk.read(layout.document_key(path))
    if document is None:
        return "is missing" if was_emptied(walk, path) else None
    try:
        note = read_completion(walk.location, path)
    except DamagedError as error:
        return f"is damaged ({error})"
    if note is None:  # just now
        return None
    if note.document != document:
        return "is not as it was written"
    # An older note that was put back is sound and in its place, but the claim of the append has the
    # newer number.
    with suppress(DamagedError):  # a damaged claim is a finding of its own
        claim = last_claim(walk.location, layout.below(layout.COMPLETE, path))
        known = {} if claim is None else claim.known
        if known.get("nonce") == note.nonce and known.get("noted", 0) > note.rows:
            return f"says {note.rows} rows, but {known['noted']} were noted: it is an older one"
    return None


def _note_again(walk: Walk, path: str) -> None:
    """Write the note of a split again if it is complete; otherwise leave none."""
    # The old note is deleted first: a split that is no longer complete must not keep one.
    walk.location.delete_folder(path)
    for split in walk.opened_splits(layout.last_part(path)):
        if layout.complete_path(split.epoch, split.name) == path:
            note_complete(split)


def deleted_markers(walk: Walk, split: Split, written: list[int]) -> None:
    """Report markers that are missing in a split that was complete."""
    if not _gone(split, written) or not _is_there(walk, split):
        return
    # Listed again, since another process may just have repaired the split, or written the block.
    gone = _gone(split, walk.written(split))
    for block in gone:
        key, what = layout.marker_key(split.path, block), "is missing though it was written"
        where = {"epoch": split.epoch, "split": split.name, "block": block}
        walk.say("marker", key, what, repaired=walk.repair, **where)
    if gone and walk.repair:
        forget_complete(split)


def _gone(split: Split, written: list[int]) -> list[int]:
    """Return the numbers of blocks that were noted as committed, and are missing."""
    there = None
    with suppress(DamagedError):  # which is said of the note
        there = read_completion(split.location, layout.complete_path(split.epoch, split.name))
    if there is None or there.nonce != split.spec.nonce:
        return []
    blocks = -(-min(there.rows, split.rows) // split.spec.block_rows)
    return sorted(set(range(blocks)) - set(written))


def _is_there(walk: Walk, split: Split) -> bool:
    """Tell whether a split was not dropped since it was opened."""
    document, _ = walk.read(layout.document_key(split.path))
    with suppress(DamagedError):
        return bool(attributes(document or b"", split.path).get("nonce") == split.spec.nonce)
    return False


def check_claims(walk: Walk) -> None:
    """Check the claims of processes that are changing something, or were the last to do so."""
    tops = set[str]()
    for key in walk.find(layout.CLAIMS):
        place = layout.parent(key) if layout.is_document(key) else key
        document, above = walk.read(key)[0], layout.parent(place)
        if place == key:
            walk.strange(key)
        elif document is not None and above.endswith("~"):
            _check_claim(walk, place, document)
        tops |= {one for one in (place, above) if one.endswith("~")}
    claims = map(layout.parent, walk.find(layout.CLAIMS, layout.is_document))
    groups = {group for claim in claims if (group := layout.parent(claim))}
    for key in sorted({key for group in groups for key in layout.document_keys(group)}):
        walk.document(key, EMPTY)
    for top in sorted(tops):
        _check_last(walk, top)


def _check_claim(walk: Walk, place: str, document: bytes) -> None:
    key, lost = layout.document_key(place), "it tells who changes what: remove it by hand"
    try:
        claim = Claim.read(document, place)
    except DamagedError as error:
        walk.say("document", key, f"is damaged ({error}); {lost}")
        return
    if claim.document != document:
        walk.say("document", key, f"is not as it was written; {lost}")
    elif claim.is_left or (not claim.ended and walk.abandoned(key)):
        if walk.repair:
            _take_over(walk, layout.parent(place))
        else:
            walk.leftovers.append(key)


def _check_last(walk: Walk, top: str) -> None:
    """Check for the last claim: it stays when it has ended, so that a missing one was deleted."""
    numbers = stored_numbers(walk.location, top)
    last = layout.child(top, max(numbers, default=0))
    if numbers and was_emptied(walk, last):
        repaired = walk.repair and _take_over(walk, top)
        what = "is missing: it told who changed what"
        walk.say("document", layout.document_key(last), what, repaired=repaired)


def _take_over(walk: Walk, top: str) -> bool:
    """Make a claim, and end it, in place of one that is left; tell whether that was possible."""
    path = layout.claimed_path(top)
    with suppress(LocationError), claimed(walk.location, path, "repair"):
        return True
    return False


def strange_files(walk: Walk, top: str) -> None:
    """Keep the files that are no documents."""
    for key in walk.find(top, lambda one: not layout.is_document(one)):
        walk.strange(key)


def was_emptied(walk: Walk, path: str) -> bool:
    """Tell whether a folder lacks the document that it was made for.

    It is checked twice: a writer makes the folder first, and the document may have come meanwhile.
    """
    empty = walk.read(path)[0] is None and not walk.find(path)
    return (
        empty and layout.last_part(path) in walk.listed(layout.parent(path)) and not walk.find(path)
    )
