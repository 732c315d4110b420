"""Names that examples in docstrings have, beside those of their module.

``ts`` and ``np``, and a small ``store``, which the documentation describes: 24 train samples and 6
targets of three classes at the epochs 2, 5 and 15. Where the module uses torch, also ``torch``, ``nn``,
a ``model``, and as many samples for it, ``train`` and ``test``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import trakstore as ts

ROWS = {"train": 24, "test": 6}
EPOCHS, CLASSES, DIM = (2, 5, 15), 3, 8


@pytest.fixture(autouse=True)
def _names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(ts=ts, np=np, store=request.getfixturevalue("_example_store"))
    if "torch" in sys.modules:
        doctest_namespace.update(request.getfixturevalue("_example_model"))


@pytest.fixture(scope="session")
def _example_store() -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    projection = ts.ProjectionSpec("sjlt", dim=DIM)
    store = ts.FeatureStore.create("memory://examples", projection=projection)
    centres = rng.normal(size=(CLASSES, DIM))
    for epoch in EPOCHS:
        for split, rows in ROWS.items():
            labels = np.arange(rows) % CLASSES
            features = centres[labels] + rng.normal(scale=0.5, size=(rows, DIM))
            store.write_split(
                epoch,
                split,
                features.astype(np.float32),
                out_to_loss=rng.uniform(0.1, 0.9, rows).astype(np.float32),
                ids=[f"{split}-{row}" for row in range(rows)],
                labels=labels,
                learning_rate=0.1,
            )
    return store


@pytest.fixture(scope="session")
def _example_model() -> dict[str, Any]:
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    samples = {
        split: [(torch.randn(4, generator=generator), row % CLASSES) for row in range(rows)]
        for split, rows in ROWS.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(4, CLASSES)
    return {"torch": torch, "nn": nn, "model": model, **samples}
