"""Dense normal numbers of variance 1/dim."""

from __future__ import annotations

from typing import ClassVar

from trakstore.spec.projections.kind import Kind


class Gaussian(Kind):
    """Dense normal numbers, without options of their own."""

    name = "gaussian"
    test_vectors: ClassVar = {
        1: (
            11.767250122991292,
            5.037858486431188,
            -32.219765060166125,
            0.3384857037142547,
            13.348187868498323,
            8.816744106712456,
            -15.487892648885575,
            2.2782084141128798,
        )
    }
