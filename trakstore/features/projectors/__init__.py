"""Projectors: how a gradient becomes a short vector, one kind a file."""

from __future__ import annotations

from trakstore.errors import TrakStoreError
from trakstore.features.projectors.collecting import Collecting
from trakstore.features.projectors.gaussian import Gaussian
from trakstore.features.projectors.identity import Identity
from trakstore.features.projectors.kronecker import Kronecker
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows, part
from trakstore.features.projectors.projector import Projector
from trakstore.features.projectors.rademacher import Rademacher
from trakstore.features.projectors.sjlt import SJLT
from trakstore.features.projectors.sliced import Sliced
from trakstore.spec import ParameterSpec, ProjectionKind, ProjectionSpec

__all__ = [
    "SJLT",
    "Collecting",
    "Gathered",
    "Gaussian",
    "Identity",
    "Kronecker",
    "Outer",
    "Piece",
    "Projector",
    "Rademacher",
    "Rows",
    "Sliced",
    "make_projector",
    "part",
]

# The spec's kinds but ``external``, of which nobody knows the matrix.
_KINDS: dict[ProjectionKind, type[Projector]] = {
    "sjlt": SJLT,
    "kronecker": Kronecker,
    "rademacher": Rademacher,
    "gaussian": Gaussian,
    "identity": Identity,
}


def make_projector(spec: ProjectionSpec, parameters: ParameterSpec) -> Projector:
    """Make the projector that a spec describes, and see that it gives the published test vector."""
    if spec.kind not in _KINDS:
        raise TrakStoreError(
            f"projection {spec.kind!r} was made by another program and cannot be continued here; "
            f"give another store"
        )
    if spec.per_epoch:
        raise TrakStoreError(
            f"a projection that is another at each epoch is made for one: give {spec.kind!r} without "
            f"per_epoch, or spec.at(epoch)"
        )
    projector = _KINDS[spec.kind](spec, parameters)
    projector.check()
    return projector
