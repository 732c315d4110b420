"""Methods by name, on a device: torch's own CPU, by its other name, stands for a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.kernels import many_epochs, stored_grams
from trakstore.methods.by_name import METHODS, scores_by_name
from trakstore.spec import OutputSpec


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_a_device_give_the_numbers_of_the_cpu(
    name: str, columns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, whole = [], stored_grams.gram

    def noted(*given: Any, device: str = "cpu", **how: Any) -> Any:
        used.append(device)
        return whole(*given, device=device, **how)

    for module in (stored_grams, many_epochs):
        monkeypatch.setattr(module, "gram", noted)
    options: dict[str, Any] = {"learning_rates": 0.1} if name == "tracin" else {}
    scores = []
    for device in ("cpu", "cpu:0"):
        # In a store of its own, which has no grams yet.
        store = ts.FeatureStore.create(
            MemoryStore(), projection=ts.ProjectionSpec("identity"), output=OutputSpec("margin")
        )
        for (epoch, split), given in columns.items():
            store.write_split(epoch, split, **given)
        scores.append(scores_by_name(name, store, device=device, **options))
    expected, found = scores
    assert (expected.device, found.device) == ("cpu", "cpu:0")
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-3, atol=1e-5)
    kernels = "memory_limit" in METHODS[name].options
    assert used == (["cpu"] * 2 + ["cpu:0"] * 2 if kernels else [])
