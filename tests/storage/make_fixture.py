"""Make the store of a format version that must open for ever; run once for each version.

python tests/storage/make_fixture.py tests/data/format-2
"""

from __future__ import annotations

import sys

import numpy as np

import trakstore as ts
from trakstore.evaluation import add_retrained
from trakstore.kernels.stored_grams import split_gram
from trakstore.spec import SplitSpec
from trakstore.storage.columns import stored_rows
from trakstore.storage.tables.training_records import MEASURES, TrainingRun, add_part
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
    save_tables(store)


def save_tables(store: ts.FeatureStore) -> None:
    """What format 1 had no promises for."""
    split_gram(store.split(1, "train"))
    scores = ts.grad_dot_scores(store, targets="train", train="train", epochs=[1, 2], of="output")
    ts.save_scores(scores, store, "whole")
    ts.save_scores(scores, store, "top", top=2)
    subsets = np.arange(2 * ROWS).reshape(2, ROWS) % 3 == 0
    add_retrained(store, "again", subsets, np.arange(4, dtype=np.float32).reshape(2, 2))
    measures = np.arange(3 * len(MEASURES), dtype=np.float32).reshape(3, -1)
    run = TrainingRun("a", "2026-01-01T00:00:00", 0, 1)
    add_part(store.location, "train", run, 0, np.arange(3), np.zeros(3, dtype=np.int64), measures)


if __name__ == "__main__":
    main(sys.argv[1])
