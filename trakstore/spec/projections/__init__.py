"""Kinds of projections without torch: options, their checks, and published test vectors, a kind a file.

The file of the same name in ``features/projectors/`` computes the projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from trakstore.spec.projections.external import External
from trakstore.spec.projections.gaussian import Gaussian
from trakstore.spec.projections.identity import Identity
from trakstore.spec.projections.kind import Kind, Options
from trakstore.spec.projections.kronecker import Kronecker
from trakstore.spec.projections.rademacher import Rademacher
from trakstore.spec.projections.sjlt import SJLT

__all__ = ["KINDS", "Kind", "Options", "ProjectionKind"]

ProjectionKind = Literal["sjlt", "kronecker", "rademacher", "gaussian", "identity", "external"]

_CLASSES = (SJLT, Kronecker, Rademacher, Gaussian, Identity, External)
KINDS: Mapping[str, Kind] = {one.name: one() for one in _CLASSES}
