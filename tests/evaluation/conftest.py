"""What tests of evaluations share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Each test draws its own numbers, whichever others run."""
    return np.random.default_rng(0)
