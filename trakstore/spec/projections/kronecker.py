"""Both sides of each weight projected to a small size, then sketched."""

from __future__ import annotations

from typing import Any, ClassVar

from trakstore.quantities import as_whole
from trakstore.spec.projections.kind import Kind


class Kronecker(Kind):
    """Two-sided random signs, of a size that can be chosen."""

    name = "kronecker"
    test_vectors: ClassVar = {1: (-10.0, 13.0, 0.0, 0.0, 0.0, 0.0, -30.0, 39.0)}
    # With a side of 2, both sides of (3, 5) are projected; the default would leave them unchanged.
    test_options: ClassVar = {"dim": 8, "side": 2}

    def side(self, given: Any) -> int:
        """Return the size of a projected side, 32 by default."""
        return 32 if given is None else as_whole(given, "side", 1, needed="is a kronecker's (>= 1)")
