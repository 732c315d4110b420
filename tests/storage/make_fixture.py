"""Make the store of a format version that must open for ever; run once for each version.

python tests/storage/make_fixture.py tests/data/format-1
"""

from __future__ import annotations

import sys

import numpy as np

import trakstore as ts
from trakstore.spec import SplitSpec
from trakstore.storage.columns import stored_rows
from trakstore.storage.writer import BlockWriter

ROWS, DIM = 11, 6


def features(epoch: int) -> np.ndarray:
    """Exact in float16, another sign for each epoch."""
    values = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM) / 8 + 0.5
    return (-1) ** epoch * values


def main(where: str) -> None:
    store = ts.FeatureStore.create(
        where, projection=ts.ProjectionSpec("sjlt", dim=DIM, seed=7, s=2), dtype="float16"
    )
    ids = [f"sämple {i}" for i in range(ROWS)]
    for epoch in (1, 2):
        store.write_split(
            epoch,
            "train",
            features(epoch),
            out_to_loss=np.linspace(0, 1, ROWS),
            ids=ids,
            labels=np.arange(ROWS) % 3,
            block_rows=4,
        )
    store.write_split("final", "test", features(0)[:3])
    store.mask("train", ids[5:6])
    columns = (("features", "float16"), ("norm", "float32"), ("sample_id", "int64"))
    half = store.create_split("final", "half", SplitSpec(ROWS, DIM, columns, block_rows=4))
    rows = stored_rows(features(0)[4:8], "float16", 4) | {"sample_id": np.arange(4, 8)}
    BlockWriter(half).write(1, rows)


if __name__ == "__main__":
    main(sys.argv[1])
