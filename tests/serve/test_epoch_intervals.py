"""Intervals of means over epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trakstore.serve.epoch_intervals import intervals


def test_an_epoch_that_weighs_most_decides_wherever_it_was_drawn() -> None:
    each = np.array([[9.0], [0], [0], [0], [0]], dtype=np.float32)
    alike: Any = SimpleNamespace(reduce="mean", scale_apart=None, shares=(0.2,) * 5)
    # Drawn three times of five, which 5.8% of resamples reach and 0.7% pass.
    assert intervals(alike, each) == [(0, pytest.approx(9 * 3 / 5))]
    shares = (1 - 4e-6, *[1e-6] * 4)
    one: Any = SimpleNamespace(reduce="mean", scale_apart=None, shares=shares)
    assert intervals(one, each) == [(0, pytest.approx(9, rel=1e-4))]
