"""An engine that is wrong for some samples of a data set, wherever they are, but not alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from features.engines import plain
from features.models import Samples, mlp
from torch import Tensor

import trakstore as ts
from trakstore.features import featurize
from trakstore.features.blockcheck import checked_rows
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import as_output

BLOCK, BATCH = 16, 8
OPTIONS: dict[str, Any] = {
    "projector": ts.ProjectionSpec("identity"),
    "progress": False,
    "batch_size": BATCH,
    "block_rows": BLOCK,
}


def not_compared(block: int) -> int:
    """Return a row of a block that is not among those which are compared, nor the first two of all."""
    start = block * BLOCK
    compared = checked_rows(start, start + BLOCK, BATCH)
    return next(row for row in range(start + 2, start + BLOCK) if row not in compared)


def rows_of(block: int) -> range:
    return range(block * BLOCK, (block + 1) * BLOCK)


@contextmanager
def wrong_in(rows: Collection[int], data: Samples) -> Iterator[None]:
    """Within, features of these rows of the data are too large where they are not computed alone."""
    right = FactorisedEngine.rows

    def wrong(engine: FactorisedEngine, batch: Any, **options: Any) -> Any:
        computed = right(engine, batch, **options)
        for at, x in enumerate(batch[0]):
            row = int((data.x == x).all(1).nonzero()[0])
            computed.features[at] *= 1.3 if row in rows and len(batch[0]) > 2 else 1
        return computed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorisedEngine, "rows", wrong)
        yield


def run(data: Any, where: Any, **options: Any) -> None:
    featurize(mlp(), data, where, **OPTIONS | options)


def truth(data: Samples) -> Tensor:
    return plain(mlp(), (data.x, data.y), as_output("margin")).float()


def assert_right(where: Any, data: Samples) -> None:
    """All rows are there and right, and nothing in the store is wrong."""
    store = ts.open_store(where)
    torch.testing.assert_close(torch.from_numpy(store.features(0, "train").values), truth(data))
    assert store.split(0, "train").status().complete and ts.verify_store(where).ok
