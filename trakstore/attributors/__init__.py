"""Class front-ends that people know: thin, built from the public functions."""

from __future__ import annotations

from trakstore.attributors.tracin import TracInAttributor
from trakstore.attributors.trak import TRAKAttributor, compute_attribution_stability

__all__ = ["TRAKAttributor", "TracInAttributor", "compute_attribution_stability"]
