"""Options of a projection, and the checks that most kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole


class Options(NamedTuple):
    """Options of a projection, as given by a user or completed by a kind."""

    dim: Any
    seed: Any
    s: Any
    side: Any


class Kind:
    """A random projection with a dimension and a seed; other kinds change what differs.

    Attributes
    ----------
    name : str
    test_vectors : mapping of int to tuple of float
        By version: P times the gradient 1, 2, ... 15 of a parameter "weight" of shape (3, 5). A
        projector with other numbers is another version: it must not write to a store with these in its
        attributes, nor be compared with it.
    test_options : mapping of str to int
        Options of that P, in addition to seed 0.
    """

    name: ClassVar[str]
    test_vectors: ClassVar[Mapping[int, tuple[float, ...]]]
    test_options: ClassVar[Mapping[str, int]] = {"dim": 8}

    def complete(self, given: Options) -> Options:
        """Fill in defaults and return Python's own numbers; raise for options that the kind lacks."""
        return Options(
            self.dim(given.dim), self.seed(given.seed), self.s(given.s), self.side(given.side)
        )

    def dim(self, given: Any) -> int | None:
        """Return the number of features, which is required."""
        if given is None:
            raise TrakStoreError(f"projection {self.name!r} needs dim, the number of features")
        needed = "must be an integer from 1 to 2**31 - 1"
        return as_whole(given, "dim", 1, 2**31 - 1, needed=needed)

    def seed(self, given: Any) -> int | None:
        """Return the seed, 0 by default."""
        needed = "must be an integer from 0 to 2**64 - 1"
        return 0 if given is None else as_whole(given, "seed", 0, 2**64 - 1, needed=needed)

    def s(self, given: Any) -> int:
        """Return 1, since only a sparse projection counts its non-zeros."""
        return as_whole(given, "s", 1, 1, needed="counts an sjlt's non-zeros a column (>= 1)")

    # Options of single kinds are fields of every spec, so that each kind says which values it accepts.
    def side(self, given: Any) -> int | None:
        """Return None, since only a two-sided projection has sides."""
        if given is not None:
            raise TrakStoreError(f"side is a kronecker's (>= 1), got {given} for {self.name}")
        return None

    def features(self, dim: int | None, parameters: int | None) -> int | None:  # noqa: ARG002
        """Return the number of features for so many scalars in the parameters, if it is known."""
        return dim


class Unseeded(Kind):
    """A projection that is not drawn here."""

    def complete(self, given: Options) -> Options:
        """Raise for a seed and for s; see :meth:`Kind.complete`."""
        # A meaningless seed would make two specs of the same projection differ.
        if given.seed is not None or given.s != 1:
            raise TrakStoreError(f"the {self.name} projection takes no seed and no s")
        return super().complete(given)

    def seed(self, given: Any) -> None:
        """Return None: there is nothing to draw."""
