"""A writer of blocks: rows are checked, encoded, stored, and committed by a marker that comes last."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import LocationError, SpecMismatchError, TrakStoreError
from trakstore.spec import Doubt, SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import (
    array_documents,
    block_keys,
    column_form,
    column_shape,
    encode,
    marker_entries,
    row_document,
)
from trakstore.storage.backends.chunks import TAIL, ChunkForm
from trakstore.storage.group_documents import attributes
from trakstore.storage.split import Split, written_blocks

ATTEMPTS = 8


class WithdrawnError(SpecMismatchError):
    """Rows are of a split that was withdrawn since it was opened: another worker doubts them."""


@dataclass(frozen=True)
class BlockWriter:
    """A writer of whole blocks of a split; any number may write the same split at once.

    Attributes
    ----------
    split : Split
        The split, whose documents exist.

    Notes
    -----
    A block counts when its marker is there. The marker holds the number of rows, the split's nonce
    and the checksum that ends each chunk; it is written after all chunks, and read back together
    with the chunks' ends: should another writer have stored the same block with other bytes in the
    meantime, this one waits and writes it again.
    """

    split: Split

    @cached_property
    def _documents(self) -> dict[str, bytes]:
        return array_documents(self.spec)

    @property
    def spec(self) -> SplitSpec:
        """Spec of the split."""
        return self.split.spec

    def is_written(self, block: int) -> bool:
        """Tell whether the block's marker is there."""
        return self.split.location.get(layout.marker_key(self.split.path, block)) is not None

    def marker_nonce(self, block: int) -> int | None:
        """Return the nonce in the block's marker; None where there is no marker."""
        marker = self.split.location.get(layout.marker_key(self.split.path, block))
        return None if marker is None else int.from_bytes(marker[4:8], "little")

    def withdraw(self, block: int) -> None:
        """Delete the marker of a block that is to be written again, and the note of its bad rows.

        It is missing until then, so that neither a kill nor a reader meets a half of each.
        """
        path = self.split.path
        self.split.location.delete(
            [layout.marker_key(path, block), layout.skipped_key(path, block)]
        )

    def doubt(self) -> Doubt:
        """Return why the rows of the split are doubted now, by whichever worker: one request."""
        document = self.split.location.get(layout.document_key(self.split.path))
        known = {} if document is None else attributes(document, self.split.path)
        return self._more_doubt(known) or self.spec.doubted

    def _more_doubt(self, known: Mapping[str, Any]) -> Doubt:
        """Return why rows were withdrawn since, as the attributes of the split's document say."""
        then = self.spec.withdrawn(known.get("doubted", ""))
        return "" if then is self.spec or known.get("nonce") != then.nonce else then.doubted

    def sweep(self) -> None:
        """Delete markers of before: of a split that was dropped, or of rows that were withdrawn.

        No reader takes them, since their nonce is another one; but for writers, who look for the keys
        alone, their blocks would be committed.
        """
        place, path = self.split.location, self.split.path
        stale = [
            block
            for block in written_blocks(place, path)
            if self.marker_nonce(block) not in (None, self.spec.nonce)
        ]
        # A kill between the two leaves markers, by which the next sweep finds the blocks again.
        place.delete([layout.skipped_key(path, block) for block in stale])
        place.delete([layout.marker_key(path, block) for block in stale])

    def write(self, block: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write and commit a block.

        Parameters
        ----------
        block : int
            Its number.
        columns : mapping of name to array
            Every column of the split, with the block's rows in the stored dtypes; and, where rows are
            bad, ``skipped``: their reasons, as bits.

        Raises
        ------
        TrakStoreError
            When a column is missing, or has the wrong shape or dtype.
        SpecMismatchError
            When the split was dropped or replaced since it was opened.
        LocationError
            When the bytes cannot be stored.
        """
        reasons = columns.get(layout.SKIPPED)
        columns = {name: column for name, column in columns.items() if name != layout.SKIPPED}
        self._check(block, columns)
        chunks = encode(self._documents, self.spec.block_range(block), columns)
        tails = [chunks[key][-TAIL:] for key in block_keys(self.spec, block)]
        marker = self._marker(block, tails)
        reason_chunks = self._reasons(block, reasons)
        for attempt in range(ATTEMPTS):
            self._store_reasons(reason_chunks)
            self._store(block, chunks, marker)
            if self._is_stored(block, tails, marker, reason_chunks):
                return
            # Another writer stored other bytes for this block in between. Random waits let one of them
            # come to its end alone.
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise LocationError(
            f"another writer stored other bytes for block {block} of {self.split.path} during each of "
            f"{ATTEMPTS} attempts to commit it; end the other run, then start this one again"
        )

    def _store(self, block: int, chunks: Mapping[str, bytes], marker: bytes) -> None:
        place, path = self.split.location, self.split.path
        keys = {layout.child(path, key): value for key, value in chunks.items()}
        try:
            self.refuse_replaced()
            # A kill from here to the marker leaves chunks that no marker commits: the block is missing,
            # and is written again, over them.
            place.put(keys)
            # The split may have been dropped meanwhile, or started again with other values
            # (`give_again`): the marker would commit these chunks to the new split.
            self.refuse_replaced(written=list(keys))
            place.put({layout.marker_key(path, block): marker})
        except LocationError as error:
            with suppress(LocationError):
                # If the split was dropped meanwhile, that is what is said: this raises another error,
                # which is not suppressed.
                self.refuse_replaced(written=list(keys))
            cause = getattr(error.__cause__, "errno", None)
            full = "; free some space" if cause in (errno.ENOSPC, errno.EDQUOT) else ""
            raise LocationError(
                f"cannot write block {block} of {path} to {place}: {error}; {self._kept()}{full}, "
                f"and the same command goes on from there"
            ) from error

    def _reasons(self, block: int, reasons: NDArray[Any] | None) -> dict[str, bytes]:
        """Return the chunk of reasons why rows of the block are bad, and the note of it, by key.

        Empty where no row is bad. The note stands among the markers.
        """
        if reasons is None:
            return {}
        path, array = self.split.path, layout.child(self.split.path, layout.SKIPPED)
        content, tail = column_form(self.spec, layout.SKIPPED).encode(reasons)
        key = layout.chunk_key(array, (block,))
        return {key: content + tail, layout.skipped_key(path, block): tail}

    def _store_reasons(self, chunks: Mapping[str, bytes]) -> None:
        """Store why rows of the block are bad: before its marker, without which they say nothing."""
        if chunks:
            key = layout.document_key(self.split.path, layout.SKIPPED)
            self.split.location.put_if_absent(key, row_document(self.spec, layout.SKIPPED))
            self.split.location.put(chunks)

    def _kept(self) -> str:
        with suppress(OSError):
            left = len(self.split.missing_blocks())
            return f"{self.spec.blocks - left} of {self.spec.blocks} blocks are committed and safe"
        return "what was committed before is safe"

    def _is_stored(
        self, block: int, tails: list[bytes], marker: bytes, reason_chunks: Mapping[str, bytes]
    ) -> bool:
        """Tell whether all that is stored of the block is this writer's own."""
        place, path = self.split.location, self.split.path
        keys = [layout.child(path, key) for key in block_keys(self.spec, block)]
        stored = place.get_tails([*keys, *reason_chunks], TAIL)
        wanted = [*tails, *(chunk[-TAIL:] for chunk in reason_chunks.values())]
        return stored == wanted and place.get(layout.marker_key(path, block)) == marker

    def _marker(self, block: int, tails: list[bytes]) -> bytes:
        """Return the marker: rows, nonce, then the tail of each chunk; 0 where there is no chunk."""
        start, stop = self.spec.block_range(block)
        entries = np.zeros((1, marker_entries(self.spec)), np.uint32)
        entries[0, :2] = stop - start, self.spec.nonce
        entries[0, 2 : 2 + len(tails)] = np.frombuffer(b"".join(tails), "<u4")
        return b"".join(ChunkForm(entries.shape, "uint32").encode(entries))

    def refuse_replaced(self, written: Sequence[str] = ()) -> None:
        """Raise unless the split is still the one that was opened.

        Chunks that were written below a split that is gone are deleted: the drop may have gone through
        its folders before they came, and nobody else would take them away.
        """
        document = self.split.location.get(layout.document_key(self.split.path))
        if document is not None:
            known = attributes(document, self.split.path)
            same_values = self.spec.given in (None, known.get("given"))
            if same_values and known.get("nonce") == self.spec.nonce:
                return
            if self._more_doubt(known):
                raise WithdrawnError(
                    f"a worker met a block of {self.split.path} that was wrong, and withdrew all rows, "
                    f"while these were being written; start the run again"
                )
        else:
            self.split.location.delete(list(written))
        raise SpecMismatchError(
            f"{self.split.path} was dropped or replaced while it was being written; start the run again"
        )

    def _check(self, block: int, columns: Mapping[str, NDArray[Any]]) -> None:
        start, stop = self.spec.block_range(block)
        if not 0 <= block < self.spec.blocks:
            raise TrakStoreError(f"block {block} is not in 0..{self.spec.blocks - 1}")
        wanted = dict(self.spec.columns)
        if set(columns) != set(wanted):
            raise TrakStoreError(
                f"a block needs the columns {sorted(wanted)}, got {sorted(columns)}"
            )
        for name, dtype in wanted.items():
            shape = (stop - start, *column_shape(self.spec, name)[0][1:])
            got = columns[name]
            if got.shape != shape or (dtype != "str" and got.dtype != np.dtype(dtype)):
                raise TrakStoreError(
                    f"column {name} of block {block} must have shape {shape} and dtype {dtype}, "
                    f"got {got.shape} and {got.dtype}"
                )
