"""Comparison of two indexes, to the bit."""

from __future__ import annotations

import numpy as np

import trakstore as ts


def assert_equal(one: ts.TrainIndex, other: ts.TrainIndex) -> None:
    for own, their in zip(one.parts, other.parts, strict=True):
        np.testing.assert_array_equal(own.coder.directions, their.coder.directions)
        np.testing.assert_array_equal(own.checksums, their.checksums)
        for mine, yours in zip(own.codes, their.codes, strict=True):
            np.testing.assert_array_equal(mine, yours)
