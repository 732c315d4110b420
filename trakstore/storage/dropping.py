"""Deletion of rows whose gram is stored, to free disk space."""

from __future__ import annotations

from trakstore.errors import DamagedError, LocationError, SpecMismatchError, TrakStoreError
from trakstore.storage import layout
from trakstore.storage.arrays import block_keys
from trakstore.storage.claims import claimed
from trakstore.storage.dropped_rows import (
    WEIGHTING,
    dropped_columns,
    forget_dropped,
    kept_gram,
    note_dropped,
)
from trakstore.storage.sampled_rows import of_train
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split
from trakstore.storage.tables.gram_documents import GramOrigin, read_gram_document
from trakstore.storage.tables.saved_table import check_table, read_table

GRAM_GONE = "is gone, or of other rows"


def drop_rows(split: Split) -> None:
    """Delete the features of rows with drawn labels, whose gram is stored.

    A note is published before the first chunk is deleted. From then on nobody reads the features, and
    the same call finishes a stopped one, if the gram is unchanged.

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
        When the split does not belong to the train rows, or changed meanwhile.
    NotFoundError
        When there is no train split.
    LocationError
        When another process is changing the split or its gram.
    """
    if not split.name.endswith(layout.SAMPLED):
        raise TrakStoreError(
            f"the rows of {split.name} are what scores are products of: only those of a split with "
            f"drawn labels, such as {layout.sampled_split('train')}, can be dropped while it stays; "
            f"store.drop deletes a whole split"
        )
    place, path, gram = split.location, split.path, kept_gram(split.path)
    # Under both claims, since whoever computes the gram again would replace the kept one.
    with claimed(place, path, "drop rows"), claimed(place, gram, "drop rows"):
        now, train = _as_they_are(split)
        if now.dropped:
            finish_drop(now)
            return
        counted = _counted(now, train)
        _need_gram(counted)
        note_dropped(place, path, now.spec.nonce, now.rows, gram)
        _refuse_changed(split, counted)
        _delete_chunks(now)


def finish_drop(split: Split) -> None:
    """Delete the chunks left by a call of :func:`drop_rows` that stopped after publishing its note.

    The caller holds the claims of the split and of its gram, and has read the note.

    Raises
    ------
    TrakStoreError
        When the gram is no longer that of the rows. If no chunk was deleted yet, the note is taken
        back, and the rows count again.
    """
    if has_all_chunks(split):
        try:
            _need_gram(_counted(*_as_they_are(split)))
        except LocationError:  # an unreachable place says nothing about the gram
            raise
        except TrakStoreError:
            forget_dropped(split.location, split.path)
            raise
    elif chunks_left(split) and (wrong := wrong_gram(split)):
        raise TrakStoreError(
            f"the rows of {split.name} at epoch {split.epoch} that are left stay, though some "
            f"are gone, since their gram {wrong}: put it back from a copy, or drop the split "
            f"(store.drop) and featurize the draws again"
        )
    _delete_chunks(split)


def gram_is_gone(split: Split) -> bool:
    """Tell whether the gram of a dropped split is missing, or is one of other rows."""
    try:
        there = read_table(split.location, kept_gram(split.path))
    except DamagedError:
        return False
    return (there.get("nonce"), there.get("rows")) != (split.spec.nonce, split.rows)


def wrong_gram(split: Split) -> str:
    """Return the fault of a dropped split's gram; an empty text if it is whole.

    The rows left out of it may differ from those that are masked now.
    """
    if gram_is_gone(split):
        return GRAM_GONE
    return "; ".join(map(str, check_table(split.location, kept_gram(split.path))))


def chunks_left(split: Split) -> set[str]:
    """List the existing chunks of the columns that are deleted with dropped rows."""
    folders = (
        layout.chunk_folder(layout.child(split.path, n)) for n in dropped_columns(split.spec)
    )
    return {key for folder in folders for key in split.location.find(folder, lambda _: True)}


def has_all_chunks(split: Split) -> bool:
    """Tell whether every chunk exists of the columns that are deleted with dropped rows."""
    goes, spec = dropped_columns(split.spec), split.spec
    keys = {key for block in range(spec.blocks) for key in block_keys(spec, block)}
    wanted = {layout.child(split.path, key) for key in keys if key.partition("/")[0] in goes}
    return wanted <= chunks_left(split)


def _delete_chunks(split: Split) -> None:
    for name in dropped_columns(split.spec):
        split.location.delete_folder(layout.chunk_folder(layout.child(split.path, name)))


def _as_they_are(split: Split) -> tuple[Split, Split | None]:
    """Open the present split, and its train split."""
    name = split.name.removesuffix(layout.SAMPLED)
    now, train = open_splits(split.location, [(split.epoch, split.name), (split.epoch, name)])
    if now is None or now.spec.nonce != split.spec.nonce or now.rows != split.rows:
        raise _changed(split)
    return now, train


def _counted(split: Split, train: Split | None) -> Split:
    """Return a split without the rows of masked train samples; raise if rows are missing."""
    if train is None:
        name = split.name.removesuffix(layout.SAMPLED)
        raise TrakStoreError(
            f"epoch {split.epoch} has no split {name!r}, to which the rows of {split.name} belong"
        )
    split.require_complete()
    train.require_complete()
    return of_train(split, train)


def _need_gram(split: Split) -> None:
    """Raise a :class:`TrakStoreError` unless the gram of these rows is stored in full."""
    place, path, spec = split.location, kept_gram(split.path), split.spec
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
        # Once the rows are deleted, nothing can make the gram again.
        wrong = "; ".join(map(str, check_table(place, path)))
    if wrong:
        raise TrakStoreError(
            f"the rows of {split.name} at epoch {split.epoch} stay: their gram {wrong}; trakstore drop "
            f"STORE --rows {split.name} computes it and drops them, as does trak_scores(store, "
            f"kernel='sampled', solver=Cholesky()) before drop_rows"
        )


def _refuse_changed(split: Split, counted: Split) -> None:
    """Take the note back if rows were masked or appended while it was being written."""
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
