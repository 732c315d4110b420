"""A projection that another program made, and that cannot be made again here."""

from __future__ import annotations

from typing import ClassVar

from trakstore.spec.projections.kind import Unseeded


class External(Unseeded):
    """A P that is unknown, and of which nothing can be tested."""

    name = "external"
    # It must have a version like all others, and gives no numbers to compare.
    test_vectors: ClassVar = {1: ()}
