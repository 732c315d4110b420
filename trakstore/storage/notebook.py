"""What a notebook shows of a store."""

from __future__ import annotations

from collections.abc import Sequence

from trakstore.markup import card, facts_markup, table_markup
from trakstore.spec import StoreSpec
from trakstore.storage.backends.location import Location
from trakstore.storage.layout import Epoch
from trakstore.storage.split import SplitStatus

__all__ = ["SHOWN_EPOCHS", "store_markup"]

SHOWN_EPOCHS = 12


def store_markup(
    location: Location, spec: StoreSpec, epochs: Sequence[Epoch], status: Sequence[SplitStatus]
) -> str:
    """HTML: place, projection, and rows by epoch and split; ``status`` is of the last epochs."""
    shown = f", the last {SHOWN_EPOCHS} shown" if len(epochs) > SHOWN_EPOCHS else ""
    facts = {
        "store": location,
        "projection": f"{spec.projection.kind}, dim {spec.dim}, {spec.dtype}",
        "epochs": f"{len(epochs)}{shown}" if epochs else "none",
    }
    splits = sorted({one.split for one in status})
    cells = {(one.epoch, one.split): _rows(one) for one in status}
    lines = [
        [epoch, *(cells.get((epoch, split), "-") for split in splits)]
        for epoch in epochs[-SHOWN_EPOCHS:]
    ]
    table = table_markup(["epoch", *splits], lines) if lines else ""
    return card("FeatureStore", facts_markup(facts), table)


def _rows(status: SplitStatus) -> str:
    if status.complete:
        return f"{status.rows:,} rows"
    return f"{status.written_rows:,} of {status.rows:,} rows"
