"""``trakstore info``: the contents of a store, and whether it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from trakstore.cli.options import Json, StorePath
from trakstore.cli.output import print_result
from trakstore.report.store_facts import StoreContents, store_facts, store_verdict
from trakstore.report.terminal_tables import completeness_table, facts_table, missing_lines
from trakstore.scores.saving import names_of_scores
from trakstore.storage.opening import open_store
from trakstore.storage.skipped import skipped_rows
from trakstore.storage.split import Split, SplitStatus
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.retrained import sets_of_models


def info(store: StorePath, as_json: Json = False) -> None:
    """Show what a store holds on one screen; the last line says whether it can be used now."""
    contents = StoreContents.of(open_store(store))
    # Only one of the two: each reads parts that the other does not need, which is slow on object
    # storage.
    print_result(as_json, _document(contents) if as_json else {}, _shown(contents))


def _shown(contents: StoreContents) -> Iterator[RenderableType]:
    yield facts_table(store_facts(contents))
    if contents.splits:
        yield completeness_table(contents.status)
    yield from missing_lines(contents.status)
    saved = _saved(contents.store)
    names_of = {"saved scores": saved["scores"], "models trained again": saved["retrained_models"]}
    yield from (f"{what}: {', '.join(names)}" for what, names in names_of.items() if names)
    yield from store_verdict(contents)


def _document(contents: StoreContents) -> dict[str, Any]:
    store = contents.store
    return {
        "location": str(store.location),
        "format": store.format,
        "complete": contents.complete,
        "usable_epochs": contents.usable_epochs,
        "spec": store.spec.to_dict(),
        "planned": [{"epoch": one.epoch, "split": one.split} for one in contents.planned],
        "splits": [_split_document(*pair) for pair in contents.splits],
        "runs": [asdict(run) for run in contents.runs],
        **_saved(store),
    }


def _saved(store: FeatureStore) -> dict[str, list[str]]:
    """Return the names of scores and models saved beside the features."""
    return {
        "scores": names_of_scores(store.location),
        "retrained_models": sets_of_models(store.location),
    }


def _split_document(split: Split, status: SplitStatus) -> dict[str, Any]:
    return {
        **asdict(status),
        "complete": status.complete,
        "dim": split.dim,
        "columns": dict(split.spec.columns),
        "widths": dict(split.spec.widths),
        "checkpoint": split.spec.checkpoint,
        "dataset": split.spec.dataset,
        "learning_rate": split.spec.learning_rate,
        "masked": len(split.masked),
        "skipped": [asdict(one) for one in skipped_rows(split)],
    }
