"""Projectors: how a gradient becomes a short vector, one kind a file."""

from __future__ import annotations

from trakstore.features.projectors.base import Projector
from trakstore.features.projectors.identity import Identity
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.features.projectors.rademacher import Rademacher
from trakstore.features.projectors.sjlt import SJLT
from trakstore.spec import ParameterSpec, ProjectionKind, ProjectionSpec

__all__ = [
    "SJLT",
    "Gathered",
    "Identity",
    "Outer",
    "Piece",
    "Projector",
    "Rademacher",
    "Rows",
    "make_projector",
]

_KINDS: dict[ProjectionKind, type[Projector]] = {
    "sjlt": SJLT,
    "rademacher": Rademacher,
    "identity": Identity,
}


def make_projector(spec: ProjectionSpec, parameters: ParameterSpec) -> Projector:
    """The projector that a spec describes, after it gave the published test vector."""
    projector = _KINDS[spec.kind](spec, parameters)
    projector.check()
    return projector
