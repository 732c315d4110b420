"""``trakstore info``: what is in a store, and whether it is complete."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from trakstore.cli.options import Json, StorePath
from trakstore.cli.output import console, print_json
from trakstore.planning import counted, human_bytes
from trakstore.report.tables import completeness_table, facts_table, missing_lines, span
from trakstore.scores.saving import names_of_scores
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.skipped import SkippedRow, skipped_rows
from trakstore.storage.split import Split, SplitStatus
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.plans import planned_runs
from trakstore.storage.tables.retrained import sets_of_models
from trakstore.storage.tables.runs import Run

__all__ = ["info", "store_facts", "store_verdict"]

_NAMED = 3  # splits that a line names


def info(store: StorePath, as_json: Json = False) -> None:
    """Show what a store holds on one screen; the last line says whether it can be used now."""
    opened = open_store(store)
    status = opened.status()
    splits = [opened.split(one.epoch, one.split) for one in status]
    if as_json:
        print_json(_document(opened, splits, status))
        return
    out = console()
    out.print(facts_table(store_facts(opened, splits, status)))
    if status:
        out.print(completeness_table(status))
    for line in (*missing_lines(status), *_saved_lines(opened), *store_verdict(opened, status)):
        out.print(line, soft_wrap=True)


def usable_epochs(store: FeatureStore, status: tuple[SplitStatus, ...]) -> list[Epoch]:
    """Epochs that have every split of the store, whole, also those that are still to come."""
    whole = {(one.epoch, one.split) for one in status if one.complete}
    splits = {one.split for one in status} | {r.split for r in planned_runs(store.location)}
    return [e for e in store.epochs if splits and all((e, split) in whole for split in splits)]


def _document(
    store: FeatureStore, splits: list[Split], status: tuple[SplitStatus, ...]
) -> dict[str, Any]:
    planned = planned_runs(store.location)
    return {
        "location": str(store.location),
        "format": store.format,
        "complete": bool(status) and all(one.complete for one in status) and not planned,
        "usable_epochs": usable_epochs(store, status),
        "spec": store.spec.to_dict(),
        "planned": [{"epoch": one.epoch, "split": one.split} for one in planned],
        "splits": [_split_document(*pair) for pair in zip(splits, status, strict=True)],
        "runs": [asdict(run) for run in store.runs()],
        **_saved(store),
    }


def _saved(store: FeatureStore) -> dict[str, list[str]]:
    """Names of what was saved beside the features."""
    return {
        "scores": names_of_scores(store.location),
        "retrained_models": sets_of_models(store.location),
    }


def _saved_lines(store: FeatureStore) -> list[str]:
    found = _saved(store)
    told = {"saved scores": found["scores"], "models trained again": found["retrained_models"]}
    return [f"{what}: {', '.join(names)}" for what, names in told.items() if names]


def _split_document(split: Split, status: SplitStatus) -> dict[str, Any]:
    return {
        "epoch": status.epoch,
        "split": status.split,
        "complete": status.complete,
        "rows": status.rows,
        "written_rows": status.written_rows,
        "blocks": status.blocks,
        "written_blocks": status.written_blocks,
        "missing": [list(one) for one in status.missing],
        "dim": split.dim,
        "columns": dict(split.spec.columns),
        "widths": dict(split.spec.widths),
        "checkpoint": split.spec.checkpoint,
        "dataset": split.spec.dataset,
        "learning_rate": split.spec.learning_rate,
        "masked": len(split.masked),
        "skipped": [asdict(one) for one in skipped_rows(split)],
    }


def store_facts(
    store: FeatureStore, splits: list[Split], status: tuple[SplitStatus, ...]
) -> dict[str, str]:
    """Its projection, output, columns, size and origin, in words."""
    spec, itemsize = store.spec, np.dtype(store.spec.dtype).itemsize
    size = sum(
        s.written_rows * split.dim * itemsize for split, s in zip(splits, status, strict=True)
    )
    facts = {"store": str(store.location), "features": _features(store, splits)}
    if spec.output is not None:
        facts["output"] = spec.output.name
    if spec.parameters is not None:
        count = len(spec.parameters.shapes)
        facts["parameters"] = f"{spec.parameters.count:,} in {count} tensors"
    if splits:
        facts["columns"] = _columns(splits)
        facts["size"] = f"{human_bytes(size)} of features"
        facts |= _origin(store, splits)
    return facts


def _origin(store: FeatureStore, splits: list[Split]) -> dict[str, str]:
    """What the features were made from, and by whom; hashes in short, --json has them whole."""
    facts = {}
    made = {s.name: s.spec.dataset.partition(":")[2][:12] for s in splits if s.spec.dataset}
    if made:
        facts["data sets"] = ", ".join(f"{name} {short}" for name, short in made.items())
    masked = sum(len(split.masked) for split in splits)
    if masked:
        facts["masked"] = f"{masked:,} rows are left out"
    skipped = [(split, one) for split in splits for one in skipped_rows(split)]
    if skipped:
        facts["bad rows"] = f"{len(skipped):,} of these: {_reasons(skipped)}"
    runs = store.runs()
    if runs:
        last = runs[-1]
        workers = counted(last.world_size, "worker")
        told = {name: last.versions.get(name, "unknown") for name in ("trakstore", "torch")}
        versions = ", ".join(f"{name} {one}" for name, one in told.items())
        facts["last run"] = f"{last.job}, {last.ended}, {workers} on {last.device}, {versions}"
    return facts


def _reasons(skipped: list[tuple[Split, SkippedRow]]) -> str:
    """Why rows are left out, and the first of each reason."""
    counts = Counter(one.reason for _, one in skipped)
    first = {one.reason: (split, one) for split, one in reversed(skipped)}
    told = [
        f"{count:,} with {reason} (first {one.id} of {split.name} at epoch {split.epoch})"
        for reason, count in counts.most_common()
        for split, one in [first[reason]]
    ]
    return "; ".join(told)


def _features(store: FeatureStore, splits: list[Split]) -> str:
    projection = store.spec.projection
    dim = store.spec.dim or (splits[0].dim if splits else None)
    seed = "" if projection.seed is None else f", seed {projection.seed}"
    bits = "" if store.spec.keep_bits is None else f" rounded to {store.spec.keep_bits} bits"
    return f"{projection.kind}, dim {dim or 'open'}{seed}, {store.spec.dtype}{bits}"


def _columns(splits: list[Split]) -> str:
    every = set.intersection(*(set(split.columns) for split in splits))
    some = set.union(*(set(split.columns) for split in splits)) - every
    text = ", ".join(sorted(every))
    return f"{text}; in some splits {', '.join(sorted(some))}" if some else text


def store_verdict(store: FeatureStore, status: tuple[SplitStatus, ...]) -> list[str]:
    """Which epochs can be used; then whether all of it can, or what to do."""
    if not status:
        where = shlex.quote(str(store.location))
        return [f"empty: no split was written yet; trakstore featurize JOB --store {where} does"]
    rows, written = sum(one.rows for one in status), sum(one.written_rows for one in status)
    usable = span(usable_epochs(store, status)) or "none"
    planned = planned_runs(store.location)
    if written < rows or planned:
        missing = [f"{rows - written:,} of {rows:,} rows are missing"] if written < rows else []
        missing += [f"{_names(planned)} not begun"] if planned else []
        said = f"incomplete: {', '.join(missing)}; go on with: {_next(store, status, planned)}"
    else:
        said = (
            f"complete: all {rows:,} rows of {counted(len(status), 'split')} are there; whether they "
            f"are still what was written: trakstore verify {shlex.quote(str(store.location))}"
        )
    return [f"epochs with every split whole: {usable}", said]


def _names(planned: tuple[Run, ...]) -> str:
    """Splits that are still to come, a few of them by name."""
    named = [f"{one.split} at epoch {one.epoch}" for one in planned]
    if len(named) > _NAMED:
        named = [*named[:_NAMED], f"{len(named) - _NAMED} more splits"]
    return f"{', '.join(named)} {'is' if len(planned) == 1 else 'are'}"


def _next(
    store: FeatureStore, status: tuple[SplitStatus, ...], planned: tuple[Run, ...] = ()
) -> str:
    """The command that writes what is missing."""
    missing = {(one.epoch, one.split) for one in status if not one.complete}
    named = [run for run in (*store.runs(), *planned) if ":" in run.job]  # as on a command line
    missing |= {(run.epoch, run.split) for run in planned}
    jobs = [run.job for run in named if (run.epoch, run.split) in missing]
    jobs = jobs or [run.job for run in named]  # killed before it could leave a record
    if not jobs:
        return "the call that wrote the others (featurize or write_split)"
    return f"trakstore featurize {shlex.quote(jobs[-1])} --store {shlex.quote(str(store.location))}"
