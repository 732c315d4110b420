"""The HTML that a notebook shows of a store."""

from __future__ import annotations

from trakstore.markup import card, facts_markup, table_markup
from trakstore.spec import StoreSpec
from trakstore.storage.catalogue import Catalogue
from trakstore.storage.layout import Epoch

SHOWN_EPOCHS = 12


def store_markup(place: str, spec: StoreSpec, catalogue: Catalogue) -> str:
    """Return HTML: place, projection, and rows by epoch and split, as far as they are known."""
    epochs, splits = catalogue.epochs, catalogue.splits
    shown = f", the last {SHOWN_EPOCHS} shown" if len(epochs) > SHOWN_EPOCHS else ""
    facts = {
        "store": place,
        "projection": f"{spec.projection.kind}, dim {spec.dim}, {spec.dtype}",
        "epochs": f"{len(epochs)}{shown}" if epochs else "none",
    }
    lines = [
        [epoch, *(_cell(catalogue, epoch, split) for split in splits)]
        for epoch in epochs[-SHOWN_EPOCHS:]
    ]
    table = table_markup(["epoch", *splits], lines) if lines else ""
    return card("FeatureStore", facts_markup(facts), table)


def _cell(catalogue: Catalogue, epoch: Epoch, split: str) -> str:
    if split not in catalogue.splits_of(epoch):
        return "-"
    seen = catalogue.seen(epoch, split)
    if seen is None:
        return "there"
    return f"{seen.rows:,} rows" + ("" if seen.complete else ", not all written")
