"""Ids of a split's samples, held in memory and searched."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.methods.epochs import UnmaskedSplit
from trakstore.passes.rows import whole_column


class SampleIds:
    """Rows of samples by their ids, in 8 bytes a row beside the ids themselves."""

    def __init__(self, split: UnmaskedSplit) -> None:
        self.values: NDArray[Any] = whole_column(split.column("sample_id"))
        self._order = np.argsort(self.values, kind="stable")

    def row(self, name: int | str) -> int | None:
        """Return the row of a sample; for ``"@N"``, row N; None if there is none."""
        wanted: Any = _as_whole(name) if self.values.dtype.kind in "iu" else str(name)
        if wanted is not None:
            # NumPy's own searchsorted fails on long strings of StringDType.
            at = bisect_left(self._order, wanted, key=self.values.__getitem__)
            if at < len(self.values) and self.values[self._order[at]] == wanted:
                return int(self._order[at])
        # If a sample has the id "@3", that is meant: ids of the data come before our notation.
        if isinstance(name, str) and name.startswith("@"):
            row = _as_whole(name[1:])
            return row if row is not None and 0 <= row < len(self.values) else None
        return None


def _as_whole(name: int | str) -> int | None:
    """Return a number of at most 18 digits; None for anything else."""
    text = str(name)
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
