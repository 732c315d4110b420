"""No projection: features are the gradients themselves."""

from __future__ import annotations

from typing import Any, ClassVar

from trakstore.spec.projections.kind import Unseeded


class Identity(Unseeded):
    """P = I, whose dimension is the number of scalars in the parameters."""

    name = "identity"
    test_vectors: ClassVar = {1: tuple(float(i) for i in range(1, 16))}
    test_options: ClassVar = {}

    def dim(self, given: Any) -> int | None:
        """Return the dimension, which may be left out."""
        # It is then the number of scalars in the parameters, once these are known.
        return None if given is None else super().dim(given)

    def features(self, dim: int | None, parameters: int | None) -> int | None:
        """Return the number of scalars in the parameters, if these are known."""
        return dim if parameters is None else parameters
