"""Products of levels with numbers: those of integers, by instructions and one by one."""

from __future__ import annotations

import numpy as np
import pytest

from trakstore.machine_code import has_x86_feature
from trakstore.scores import level_products as own


@pytest.mark.parametrize("by_one", [True, False])
@pytest.mark.parametrize("size", [32, 96, 1024])
def test_products_are_those_of_integers(
    size: int, by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_one:
        monkeypatch.setattr(own, "has_x86_feature", lambda _: False)
    elif not has_x86_feature("avx2"):
        pytest.skip("needs an x86 processor with AVX2, as CI has")
    rng = np.random.default_rng(size)
    levels = rng.integers(0, 256, (37, size), dtype=np.uint8)
    targets = rng.integers(-127, 128, (7, 2 * size)).astype(np.int8)
    # The largest products that there are.
    levels[0], levels[1] = 255, 255
    targets[0], targets[5] = 127, -127
    both = np.concatenate([levels & 15, levels >> 4], axis=1).astype(np.int64)
    wanted = targets.astype(np.int64) @ both.T
    for count in (1, 3, 4, 7):
        out = np.empty((count, 37), np.int32)
        own.level_products(out, levels, targets[:count])
        np.testing.assert_array_equal(out, wanted[:count])
