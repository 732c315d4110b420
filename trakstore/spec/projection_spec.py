"""The projection of a store: its kind and options."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from trakstore import documents
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.quantities import is_one_of
from trakstore.spec.projections import KINDS, Options, ProjectionKind
from trakstore.spec.whole_fields import set_whole

_FIELDS = {
    "kind": documents.text(),
    "dim": documents.optional(documents.whole(1, 2**31 - 1)),
    "seed": documents.optional(documents.whole(0, 2**64 - 1)),
    "s": documents.whole(1, 2**31 - 1),
    "version": documents.whole(1),
    "side": documents.optional(documents.whole(1, 2**31 - 1)),
    "per_epoch": documents.one_of(True, False),
    "test_vector": documents.optional(documents.each(documents.number())),
}


@dataclass(frozen=True)
class ProjectionSpec:
    """Projection of gradients g to features φ = P·g, with E[PᵀP] = I.

    Parameters
    ----------
    kind : {"sjlt", "kronecker", "rademacher", "gaussian", "identity", "external"}
        In this order: the sparse Johnson-Lindenstrauss transform; both sides of each weight projected,
        then sketched (fastest, with at least twice the error); dense random signs; dense normal
        numbers; no projection; or a projection by another program, which cannot be computed here, may
        differ from epoch to epoch, and may lack the scale of E[PᵀP] = I.
    dim : int, optional
        Number of features; not for ``"identity"``, whose dimension is the number of parameters.
    seed : int, optional
        Seed of the random P, 0 by default; not for ``"identity"`` and ``"external"``.
    s : int
        Non-zeros of each column of an ``"sjlt"``; each is ±1/√s.
    version : int
        Version of the projection's definition; see ``storage/FORMAT.md``.
    side : int, optional
        Size to which ``"kronecker"`` projects each side of a weight, by default 32; only for that kind.
    per_epoch : bool
        Whether each epoch has its own P, whose seed follows from this one. What one projection loses
        another keeps, so that means over checkpoints are closer to those of whole gradients at the same
        size (``benchmarks/accuracy.py lm``). Products between features of different epochs then have no
        meaning.

    Raises
    ------
    TrakStoreError
        For another kind or version, or an option that the kind cannot have.

    Examples
    --------
    >>> spec = ProjectionSpec("sjlt", dim=512)
    >>> spec
    ProjectionSpec(kind='sjlt', dim=512, seed=0, s=1, version=1, side=None, per_epoch=False)
    >>> ProjectionSpec.from_dict(spec.to_dict()) == spec
    True
    """

    kind: ProjectionKind
    dim: int | None = None
    seed: int | None = None
    s: int = 1
    version: int = 1
    side: int | None = None
    per_epoch: bool = False

    def __post_init__(self) -> None:
        if not is_one_of(self.kind, get_args(ProjectionKind)):
            known = ", ".join(get_args(ProjectionKind))
            raise TrakStoreError(f"unknown projection {self.kind!r}; there are {known}")
        set_whole(self, "version")
        kind = KINDS[self.kind]
        if self.version not in kind.test_vectors:
            raise TrakStoreError(
                f"projection {self.kind!r} has no version {self.version} in this trakstore; "
                f"install the version that wrote the store"
            )
        options = kind.complete(Options(self.dim, self.seed, self.s, self.side))
        for name, value in options._asdict().items():
            object.__setattr__(self, name, value)
        if not isinstance(self.per_epoch, bool):
            raise TrakStoreError(f"per_epoch is True or False, got {self.per_epoch!r}")
        if self.per_epoch and self.seed is None:
            raise TrakStoreError(
                f"per_epoch draws a projection for each epoch, and {self.kind!r} is not drawn: leave "
                f"per_epoch out"
            )

    def at(self, epoch: int | str) -> ProjectionSpec:
        """Return the projection of one epoch: this one, or with ``per_epoch`` one with its own seed.

        That seed is the first 8 bytes, little-endian, of the SHA-256 of ``seed:epoch``.
        """
        if not self.per_epoch:
            return self
        digest = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:8], "little"), per_epoch=False)

    @property
    def test_vector(self) -> tuple[float, ...]:
        """Features of this kind and version on the published test (``storage/FORMAT.md``)."""
        return KINDS[self.kind].test_vectors[self.version]

    @property
    def of_published_test(self) -> ProjectionSpec:
        """The projection of this kind and version that gives the test vector."""
        options: Any = KINDS[self.kind].test_options
        return ProjectionSpec(self.kind, version=self.version, **options)

    def features(self, parameters: int | None) -> int | None:
        """Return the number of features for so many scalars in the parameters, if it is known."""
        return KINDS[self.kind].features(self.dim, parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with the test vector."""
        document = {**asdict(self), "test_vector": list(self.test_vector)}
        # The field is younger than the format: without it, the document must stay as it was before.
        return {name: v for name, v in document.items() if name != "per_epoch" or v}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ProjectionSpec:
        """Read a result of :meth:`to_dict`.

        Parameters
        ----------
        document : mapping
            Fields of the spec, and the test vector if it was stored.

        Raises
        ------
        DamagedError
            When a field has a value that no writer produces.
        SpecMismatchError
            When this version does not give the document's test vector.
        """
        known = documents.fields(document, _FIELDS, _FIELDS.keys() - {"kind"}, "a projection")
        vector = known.pop("test_vector", None)
        spec = cls(**known)
        if vector is not None and vector != spec.test_vector:
            raise SpecMismatchError(
                f"the store's {spec.kind} version {spec.version} gives {vector} on the published "
                f"test, this trakstore's gives {list(spec.test_vector)}: they are not one projection"
            )
        return spec
