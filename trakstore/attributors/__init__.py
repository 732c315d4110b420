"""Class front-ends that people know: thin, built from the public functions."""

from __future__ import annotations

from trakstore.attributors.tracin import TracInAttributor
from trakstore.attributors.trak import TRAKAttributor, compute_attribution_stability
from trakstore.attributors.traker import ModelIDException, TRAKer

__all__ = [
    "ModelIDException",
    "TRAKAttributor",
    "TRAKer",
    "TracInAttributor",
    "compute_attribution_stability",
]
