"""Making splits: safe when any number of writers start at once.

Every document is published only where there is none, the parent first, and read back: what is there
decides, and whoever differs in more than the shape of blocks is refused.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import numpy as np

from trakstore.documents import parsed
from trakstore.errors import DamagedError, SpecMismatchError, error_context
from trakstore.planning import BlockShape, block_shape
from trakstore.spec import SplitSpec, check_equal
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document
from trakstore.storage.growth import sweep_stale_markers
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split, split_document, split_spec

__all__ = ["settle_split", "spec_shape"]


def spec_shape(spec: SplitSpec, dtype: str, batch_rows: int) -> BlockShape:
    """The shape of a split's blocks and chunks: of its features, or activations that are wider."""
    shape = block_shape(
        spec.rows,
        max(spec.dim, *(width for _, width in spec.widths), 1),
        np.dtype(dtype).itemsize,
        at_least=batch_rows,
        block_rows=spec.block_rows if spec.block_rows > 1 else None,
    )
    return replace(shape, chunk_columns=min(shape.chunk_columns, spec.dim))


def settle_split(location: Location, epoch: Epoch, split: str, wanted: SplitSpec) -> Split:
    """Make a split, or adopt the one that is there.

    Parameters
    ----------
    location : Location
    epoch, split
        Its names.
    wanted : SplitSpec
        What it is to be; the nonce is drawn here.

    Raises
    ------
    SpecMismatchError
        When the one that is there differs; both values are shown.
    """
    path, put = layout.split_path(epoch, split), location.put_if_absent
    proposed = replace(wanted, nonce=secrets.randbits(32))
    with error_context(f"{split} at epoch {epoch} cannot be stored"):
        SplitSpec.from_dict(proposed.to_dict())  # as whoever reads it will
    put(layout.document_key(layout.epoch_path(epoch)), group_document({}))
    settled = put(layout.document_key(path), split_document(path, proposed))
    with error_context(str(location)):
        made = Split(location, layout.as_epoch(epoch), split, split_spec(settled, path))
    remedy = "give it another store"
    if wanted.dataset is not None and wanted.rows > made.spec.rows:
        remedy += ", or append=True if samples were added behind the ones that are stored"
    check_equal(made.spec, wanted, f"{location}: {split} at epoch {epoch}", remedy)
    if made.spec.nonce == proposed.nonce:
        sweep_stale_markers(made)
    for name, document in array_documents(made.spec).items():
        found = put(layout.document_key(path, name), document)
        if _without_shape(found) != _without_shape(document):  # an append may have been stopped
            raise SpecMismatchError(
                f"{location}: the array {path}/{name} was made by another version of trakstore or "
                f"zarr; finish the split with that one, or write to another store"
            )
    return made


def _without_shape(document: bytes) -> dict[str, Any]:
    try:
        return {**parsed(document), "shape": None}
    except TypeError as error:
        raise DamagedError(f"an array's metadata document is damaged ({error})") from error
