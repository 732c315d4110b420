"""Dense random signs, ±1/√dim."""

from __future__ import annotations

from typing import ClassVar

from trakstore.spec.projections.kind import Kind


class Rademacher(Kind):
    """Dense random signs, without options of their own."""

    name = "rademacher"
    # Sums of the gradient's 15 entries with signs, times 1/√8.
    test_vectors: ClassVar = {
        1: tuple(total / 8**0.5 for total in (12, 38, 40, -32, -20, 6, -8, 34))
    }
