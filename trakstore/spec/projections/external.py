"""A projection that another program made, and that cannot be made again here."""

from __future__ import annotations

from typing import ClassVar

from trakstore.spec.projections.kind import Unseeded


class External(Unseeded):
    """An unknown P, of which nothing can be tested."""

    name = "external"
    # It needs a version like all kinds, but has no numbers to compare.
    test_vectors: ClassVar = {1: ()}
