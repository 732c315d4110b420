"""Deletion of rows whose gram is stored, to free the disk."""

from __future__ import annotations

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.storage import layout
from trakstore.storage.claims import claimed
from trakstore.storage.dropped_rows import dropped_columns, forget_dropped, note_dropped
from trakstore.storage.sampled_rows import WEIGHTING, gram_of_draws, of_train
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split
from trakstore.storage.tables.gram_documents import GramOrigin, read_gram_document
from trakstore.storage.tables.saved_table import check_table


def drop_rows(split: Split) -> None:
    """Delete the features of rows with drawn labels, of which a stored gram is kept.

    A note is published before the first chunk goes: from then on nobody reads the features, and a call
    that was stopped is finished by the same call.

    Parameters
    ----------
    split : Split
        A split whose name ends with ``~sampled``.

    Raises
    ------
    TrakStoreError
        When it is another split, or its gram is not stored, not whole, or not of the rows that count
        now.
    IncompleteError
        When rows of it, or of the train split, are missing.
    SpecMismatchError
        When it is not of the train rows, or was changed meanwhile.
    NotFoundError
        When there is no train split.
    LocationError
        When another process changes the split or its gram.
    """
    if not split.name.endswith(layout.SAMPLED):
        raise TrakStoreError(
            f"the rows of {split.name} are what scores are products of: only those of a split with "
            f"drawn labels, such as {layout.sampled_split('train')}, can be dropped while it stays; "
            f"store.drop deletes a whole split"
        )
    place, path, gram = split.location, split.path, gram_of_draws(split)
    # Under both claims: whoever computes the gram again would replace the one that is kept.
    with claimed(place, path, "drop rows"), claimed(place, gram, "drop rows"):
        now, counted = _as_they_are(split)
        if not now.dropped:
            _need_gram(counted)
            note_dropped(place, path, now.spec.nonce, now.rows, gram)
            _refuse_changed(split, counted)
        for name in dropped_columns(now.spec):
            place.delete_folder(layout.chunk_folder(layout.child(path, name)))


def _as_they_are(split: Split) -> tuple[Split, Split]:
    """Open the split as it is now; return it, and its rows without those of masked train samples."""
    name = split.name.removesuffix(layout.SAMPLED)
    now, train = open_splits(split.location, [(split.epoch, split.name), (split.epoch, name)])
    if now is None or now.spec.nonce != split.spec.nonce:
        raise _changed(split)
    if now.dropped:
        return now, now
    if train is None:
        raise TrakStoreError(
            f"epoch {split.epoch} has no split {name!r}, to which the rows of {split.name} belong"
        )
    now.require_complete()
    train.require_complete()
    return now, of_train(now, train)


def _need_gram(split: Split) -> None:
    """Raise a :class:`TrakStoreError` unless the gram of these rows is stored, to the last byte."""
    place, path, spec = split.location, gram_of_draws(split), split.spec
    wanted = GramOrigin.of(spec.nonce, split.rows, split.masked, "float32", WEIGHTING)
    known, wrong = read_gram_document(place, path, split.dim, wanted), ""
    if known is None:
        wrong = "is not stored"
    elif known.origin != wanted:
        wrong = (
            f"is stored of {known.origin.rows} rows without {known.origin.masked}, and there are "
            f"{wanted.rows}, of which {wanted.masked} are masked"
        )
    else:
        # Once the rows are gone nothing can make it again.
        wrong = "; ".join(map(str, check_table(place, path)))
    if wrong:
        raise TrakStoreError(
            f"the rows of {split.name} at epoch {split.epoch} stay: their gram {wrong}; trakstore drop "
            f"STORE --rows {split.name} computes it and drops them, as does trak_scores(store, "
            f"kernel='sampled', solver=Cholesky()) before drop_rows"
        )


def _refuse_changed(split: Split, counted: Split) -> None:
    """Take the note back if rows were masked, or appended, while it was written."""
    try:
        name = split.name.removesuffix(layout.SAMPLED)
        now, train = open_splits(split.location, [(split.epoch, split.name), (split.epoch, name)])
        if (
            now is None
            or train is None
            or of_train(now, train).masked.tolist() != (counted.masked.tolist())
        ):
            raise _changed(split)
    except BaseException:
        forget_dropped(split.location, split.path)
        raise


def _changed(split: Split) -> SpecMismatchError:
    return SpecMismatchError(
        f"{split.name} at epoch {split.epoch} was changed by another process since it was opened; "
        f"look at it and try again"
    )
