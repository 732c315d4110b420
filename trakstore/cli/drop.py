"""``trakstore drop``: deletion of saved scores, and of rows whose gram is kept."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from trakstore.cli.options import Epochs, Json, MemoryLimit, StorePath, chosen_epochs
from trakstore.cli.output import print_result
from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.methods.sampled_kernel import store_sampled_gram
from trakstore.planning import human_bytes
from trakstore.scores.saving import drop_scores
from trakstore.storage import layout
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore


def drop(
    store: StorePath,
    scores: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Name of saved scores, also of a save that was stopped; repeatable.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        Option(
            metavar="SPLIT",
            help="Split of rows with drawn labels, such as train~sampled: the gram that kernels are "
            "made of is computed and kept, the rows go.",
        ),
    ] = None,
    epoch: Epochs = None,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Delete saved scores, or rows with drawn labels whose gram is kept, from a store.

    Scores can be computed again. To have dropped rows again, their split is featurized anew.
    """
    if not scores and rows is None:
        raise TrakStoreError(
            "Missing option '--scores' (a name), or '--rows' (a split, such as train~sampled)"
        )
    opened = open_store(store)
    for name in scores or []:
        drop_scores(opened, name)
    epochs = [] if rows is None else _drop_rows(opened, rows, chosen_epochs(epoch), memory_limit)
    document: dict[str, Any] = {"location": str(opened.location), "dropped": scores or []}
    lines = [f"dropped from {opened.location}: {', '.join(scores)}"] if scores else []
    if rows is not None:
        document |= {"rows": rows, "epochs": epochs}
        named = ", ".join(map(str, epochs))
        lines.append(f"dropped from {opened.location}: rows of {rows} at epochs {named}")
    print_result(as_json, document, lines)


def _drop_rows(
    store: FeatureStore, split: str, epochs: list[Epoch] | None, memory_limit: str | None
) -> list[Epoch]:
    """Drop the rows of a split at some epochs, after storing their grams; return the epochs."""
    chosen = list(store.open_splits(epochs, (split,)))
    if not chosen:
        raise NotFoundError(f"no epoch has a split {split!r}{did_you_mean(split, store.splits)}")
    for one in chosen:
        there = store.split(one, split)
        if split.endswith(layout.SAMPLED) and not there.dropped:
            _refuse_larger(there)
            train = split.removesuffix(layout.SAMPLED)
            store_sampled_gram(store, one, train, memory_limit=memory_limit)
        store.drop_rows(one, split)
    return chosen


def _refuse_larger(split: Split) -> None:
    """Raise a :class:`TrakStoreError` if the gram would take more space than the rows."""
    gram, rows = 8 * split.dim**2, split.rows * split.row_bytes
    if gram > rows:
        raise TrakStoreError(
            f"the gram of {split.name} at epoch {split.epoch} takes {human_bytes(gram)}, its rows take "
            f"{human_bytes(rows)}: to keep the rows is less"
        )
