"""Columns of a block as they are stored: checked, in the stored dtypes, bad rows refused or masked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.features.bad_rows import BadRows, need_classes
from trakstore.spec import StoreSpec
from trakstore.storage import layout
from trakstore.storage.columns import stored_activations, stored_rows

__all__ = ["Columns", "StoredBlock"]

log = logging.getLogger("trakstore")

Columns: TypeAlias = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredBlock:
    """Maker of the stored columns of blocks.

    Attributes
    ----------
    spec : StoreSpec
    ids : ndarray, shape (rows of the split,)
    classes : int or None
        Number that labels must be below.
    activations : tuple of str
        Columns that are activations.
    where : str
        Name of the split, for messages.
    """

    spec: StoreSpec
    ids: NDArray[Any]
    classes: int | None
    activations: tuple[str, ...]
    where: str

    def refusing(self, columns: Columns, start: int, stop: int) -> Columns:
        """Convert computed columns of some rows, in order, which are all good.

        Raises
        ------
        NumericsError
            When a column is not finite or the stored dtype cannot hold it.
        TrakStoreError
            When a label is out of range.
        """
        if "label" in columns:
            need_classes(columns["label"], self.classes, start, self.ids)
        BadRows.of(columns, self.ids[start:stop], start).refuse()
        return self._converted(columns, start, stop)

    def masked(self, columns: Columns, start: int, stop: int) -> Columns:
        """Convert them with fill values in rows that are bad, or cannot be stored."""
        spec = self.spec
        bad = BadRows.of(
            columns,
            self.ids[start:stop],
            start,
            classes=self.classes,
            dtype=spec.dtype,
            keep_bits=spec.keep_bits,
        )
        if not bad:
            return self._converted(columns, start, stop)
        stored = self._converted(bad.blanked(columns), start, stop)
        log.warning("%s: %s: stored as masked", self.where, bad.message)
        return bad.marked(stored)

    def _converted(self, columns: Columns, start: int, stop: int) -> Columns:
        """Convert columns to the stored dtypes, beside the ids; features are let go on the way."""
        if "label" in columns:
            columns["label"] = columns["label"].astype(np.int64)
        features = columns.pop(layout.FEATURES)
        for name in self.activations:
            columns[name] = stored_activations(columns[name], self.spec.dtype, start)
        stored = stored_rows(features, self.spec.dtype, start, self.spec.keep_bits)
        return {**columns, **stored, layout.SAMPLE_ID: self.ids[start:stop]}
