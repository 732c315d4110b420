"""Sparse Johnson-Lindenstrauss transform; s non-zeros a column, each ±1/√s."""

from __future__ import annotations

from typing import Any, ClassVar

from trakstore.quantities import as_whole
from trakstore.spec.projections.kind import Kind


class SJLT(Kind):
    """Sparse random signs, of any number a column."""

    name = "sjlt"
    test_vectors: ClassVar = {1: (-13.0, 14.0, -20.0, -5.0, -5.0, 5.0, -16.0, -12.0)}

    def s(self, given: Any) -> int:
        """Return the number of non-zeros a column."""
        return as_whole(given, "s", 1, needed="counts an sjlt's non-zeros a column (>= 1)")
