"""Creation of splits, safe when any number of writers start at once.

Every document is published only where there is none, the parent first, and read back. The stored one
decides, and a writer that differs from it in more than the shape of blocks is refused.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import numpy as np

from trakstore.documents import parsed
from trakstore.errors import DamagedError, SpecMismatchError, error_context
from trakstore.planning import BlockShape, block_shape
from trakstore.spec import SplitSpec, StoreSpec, check_equal, check_settings
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import EMPTY
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split, split_document, split_spec
from trakstore.storage.writer import BlockWriter


def spec_shape(spec: SplitSpec, dtype: str, batch_rows: int) -> BlockShape:
    """Choose the shape of a split's blocks and chunks, from features or wider activations."""
    shape = block_shape(
        spec.rows,
        max(spec.dim, *(width for _, width in spec.widths), 1),
        np.dtype(dtype).itemsize,
        at_least=batch_rows,
        block_rows=spec.block_rows if spec.block_rows > 1 else None,
    )
    return replace(shape, chunk_columns=min(shape.chunk_columns, spec.dim))


def make_split(
    location: Location,
    store: StoreSpec,
    epoch: Epoch,
    split: str,
    spec: SplitSpec,
    *,
    batch_rows: int,
) -> Split:
    """Make a split of a store, or take the one that is there.

    Parameters
    ----------
    location : Location
    store : StoreSpec
    epoch, split
        Its names.
    spec : SplitSpec
        Rows, features, columns and origin; the nonce is drawn here.
    batch_rows : int
        Rows that are computed at once.

    Raises
    ------
    SpecMismatchError
        When an existing split differs; both values are shown.
    """
    if store.dim not in (None, spec.dim):
        raise SpecMismatchError(
            f"{location} holds features of dimension {store.dim}, got {spec.dim}"
        )
    wanted = _with_shape(spec, store, batch_rows)
    path, put = layout.split_path(epoch, split), location.put_if_absent
    with error_context(f"{split} at epoch {epoch} cannot be stored"):
        SplitSpec.from_dict(wanted.to_dict())  # as every reader of it will
    # The epoch's document comes first: a split in a group without one would count as a foreign folder.
    put(layout.document_key(layout.epoch_path(epoch)), EMPTY)
    document = put(layout.document_key(path), split_document(path, wanted))
    with error_context(str(location)):
        made = Split(location, layout.as_epoch(epoch), split, split_spec(document, path))
    remedy = "give it another store"
    if wanted.dataset is not None and wanted.rows > made.spec.rows:
        remedy += ", or append=True if samples were added behind the ones that are stored"
    check_equal(made.spec, wanted, f"{location}: {split} at epoch {epoch}", remedy)
    check_settings(made.spec.settings, wanted.settings, f"{location}: {split} at epoch {epoch}")
    with error_context(f"{location}: {split} at epoch {epoch}"):
        made.spec.check_of(store)
    # With its own nonce, this process made the split, in which nothing is written yet.
    if made.spec.nonce == wanted.nonce:
        # A slow writer may have committed a block after a drop had listed the markers.
        BlockWriter(made).sweep()
    _make_arrays(made)
    return made


def _with_shape(spec: SplitSpec, store: StoreSpec, batch_rows: int) -> SplitSpec:
    """Return the spec with the shape of its blocks, a nonce, and fields that follow from the store."""
    shape = spec_shape(spec, store.dtype, batch_rows)
    # Commit records and reasons of bad rows are arrays but no data: xarray is told to set them aside.
    aside = f"{layout.SAMPLE_ID} {layout.WRITTEN} {layout.SKIPPED}"
    return replace(
        spec,
        keep_bits=store.keep_bits,
        nonce=secrets.randbits(32),
        coordinates=aside,
        of_spec=store.rows_digest,
        **vars(shape),
    )


def _make_arrays(split: Split) -> None:
    """Write the documents of a split's arrays where there are none, and check those that exist."""
    for name, own in array_documents(split.spec).items():
        there = split.location.put_if_absent(layout.document_key(split.path, name), own)
        # The arrays may be longer than this: an append writes the arrays' documents before the split's
        # own, and may have been stopped in between.
        if _without_shape(there) != _without_shape(own):
            raise SpecMismatchError(
                f"{split.location}: the array {layout.child(split.path, name)} was made by another "
                f"version of trakstore or zarr; finish the split with that one, or write to another "
                f"store"
            )


def _without_shape(document: bytes) -> dict[str, Any]:
    try:
        return {**parsed(document), "shape": None}
    except TypeError as error:
        raise DamagedError(f"an array's metadata document is damaged ({error})") from error
