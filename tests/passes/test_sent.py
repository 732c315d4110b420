from __future__ import annotations

import pickle

import numpy as np
import pytest

from trakstore.kernels.solvers import CholeskyFactor
from trakstore.passes.rows import ArrayRows
from trakstore.scores.parts import Window


def brought(value):
    """The value as a message brings it: its arrays lie where the message has them."""
    buffers = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    message = [b"!" + one.raw() for one in buffers]
    return pickle.loads(content, buffers=[memoryview(one)[1:] for one in message])  # noqa: S301


LEFT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("value", "arrays"),
    [
        (ArrayRows(LEFT), lambda found: [found.array]),
        (Window((LEFT,), (ArrayRows(LEFT),), (None,), None), lambda found: list(found.lefts)),
        (CholeskyFactor(3, 1.0, 2.0, np.eye(3)), lambda found: [found.lower]),
    ],
    ids=["rows", "window", "factor"],
)
def test_arrays_that_were_sent_lie_at_aligned_addresses(value, arrays):
    assert not brought(LEFT).flags.aligned
    for own, found in zip(arrays(value), arrays(brought(value)), strict=True):
        assert found.flags.aligned
        np.testing.assert_array_equal(found, own)
