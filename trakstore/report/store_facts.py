"""Facts about a store, in words: its content, its origin, and the epochs that can be used."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trakstore.planning import counted, human_bytes
from trakstore.report.terminal_tables import span
from trakstore.storage.layout import Epoch
from trakstore.storage.skipped import SkippedRow, skipped_rows
from trakstore.storage.split import Split, SplitStatus
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.runs import Run, planned_runs

_NAMED = 3  # most splits that a line names


@dataclass(frozen=True)
class StoreContents:
    """Splits and records of a store, read once.

    Attributes
    ----------
    store : FeatureStore
        The store.
    splits : sequence of (Split, SplitStatus)
        Each split with its status.
    planned : sequence of Run
        For each split that is planned and not begun, the record of the run that was to write it.
    runs : sequence of Run
        Records of the runs that wrote the splits.
    """

    store: FeatureStore
    splits: Sequence[tuple[Split, SplitStatus]]
    planned: Sequence[Run]
    runs: Sequence[Run]

    @classmethod
    def of(cls, store: FeatureStore) -> StoreContents:
        """Read the contents of a store."""
        splits = [(store.split(one.epoch, one.split), one) for one in store.status()]
        return cls(store, splits, planned_runs(store.location), store.runs())

    @property
    def status(self) -> list[SplitStatus]:
        """Status of each split."""
        return [status for _, status in self.splits]

    @property
    def complete(self) -> bool:
        """True if every split is complete, and none is still planned."""
        return bool(self.splits) and all(s.complete for s in self.status) and not self.planned

    @property
    def usable_epochs(self) -> list[Epoch]:
        """Epochs at which every split of the store, planned ones included, exists and is complete."""
        # Planned splits count, since without them a half-written epoch would look complete.
        whole = {(one.epoch, one.split) for one in self.status if one.complete}
        names = {one.split for one in self.status} | {one.split for one in self.planned}
        return [e for e in self.store.epochs if names and all((e, name) in whole for name in names)]


def store_facts(contents: StoreContents) -> dict[str, str]:
    """Describe a store: its projection, output, columns, size and origin."""
    store, spec = contents.store, contents.store.spec
    facts = {"store": str(store.location), "features": _features(contents)}
    if spec.output is not None:
        facts["output"] = spec.output.name
    if spec.parameters is not None:
        count = len(spec.parameters.shapes)
        facts["parameters"] = f"{spec.parameters.count:,} in {count} tensors"
    if contents.splits:
        itemsize = np.dtype(spec.dtype).itemsize
        kept = [(split, s) for split, s in contents.splits if not split.dropped]
        size = sum(s.written_rows * split.dim * itemsize for split, s in kept)
        facts["columns"] = _columns([split for split, _ in contents.splits])
        facts["size"] = f"{human_bytes(size)} of features"
        facts |= _origin(contents)
    return facts


def _origin(contents: StoreContents) -> dict[str, str]:
    """Describe the sources of the features, and the run; hashes are shortened."""
    facts, splits = {}, [split for split, _ in contents.splits]
    datasets = {s.name: s.spec.dataset.partition(":")[2][:12] for s in splits if s.spec.dataset}
    if datasets:
        facts["data sets"] = ", ".join(f"{name} {short}" for name, short in datasets.items())
    # Bad rows that were skipped when written are masked too, and counted among masked rows.
    masked = sum(len(split.masked) for split in splits)
    if masked:
        facts["masked"] = f"{masked:,} rows are left out"
    skipped = [(split, one) for split in splits for one in skipped_rows(split)]
    if skipped:
        facts["bad rows"] = f"{len(skipped):,} of the masked rows: {_reasons(skipped)}"
    dropped = Counter(split.name for split in splits if split.dropped)
    if dropped:
        parts = [f"of {name} at {counted(n, 'epoch')}" for name, n in sorted(dropped.items())]
        facts["dropped rows"] = f"{', '.join(parts)}, on purpose: their gram is kept"
    if contents.runs:
        last = contents.runs[-1]
        workers = counted(last.world_size, "worker")
        names = ("trakstore", "torch")
        versions = ", ".join(f"{name} {last.versions.get(name, 'unknown')}" for name in names)
        facts["last run"] = f"{last.job}, {last.ended}, {workers} on {last.device}, {versions}"
    return facts


def _reasons(skipped: list[tuple[Split, SkippedRow]]) -> str:
    """Write the reasons why rows are left out, with the first row of each."""
    counts = Counter(one.reason for _, one in skipped)
    first = {one.reason: (split, one) for split, one in reversed(skipped)}
    parts = [
        f"{count:,} with {reason} (first {one.id} of {split.name} at epoch {split.epoch})"
        for reason, count in counts.most_common()
        for split, one in [first[reason]]
    ]
    return "; ".join(parts)


def _features(contents: StoreContents) -> str:
    spec = contents.store.spec
    dim = spec.dim or (contents.splits[0][0].dim if contents.splits else None)
    seed = "" if spec.projection.seed is None else f", seed {spec.projection.seed}"
    seed += ", another each epoch" if spec.projection.per_epoch else ""
    seed += "" if spec.scale is None else f", gradients scaled by {spec.scale.source}"
    bits = "" if spec.keep_bits is None else f", mantissas rounded to {spec.keep_bits} bits"
    bits += " with a scale for each row" if spec.dtype == "int8" else ""
    return f"{spec.projection.kind}, dim {dim or 'not known yet'}{seed}, {spec.dtype}{bits}"


def _columns(splits: list[Split]) -> str:
    every = set.intersection(*(set(split.columns) for split in splits))
    some = set.union(*(set(split.columns) for split in splits)) - every
    text = ", ".join(sorted(every))
    return f"{text}; in some splits {', '.join(sorted(some))}" if some else text


def store_verdict(contents: StoreContents) -> list[str]:
    """Write which epochs can be used, then whether the whole store can, or the remedy."""
    status, planned = contents.status, contents.planned
    where = shlex.quote(str(contents.store.location))
    if not status:
        return [
            f"empty: no split was written yet; write one: trakstore featurize JOB --store {where}"
        ]
    rows, written = sum(one.rows for one in status), sum(one.written_rows for one in status)
    if contents.complete:
        said = (
            f"complete: all {rows:,} rows of {counted(len(status), 'split')} are there; to check that "
            f"nothing changed since: trakstore verify {where}"
        )
    else:
        missing = [f"{rows - written:,} of {rows:,} rows are missing"] if written < rows else []
        missing += [_not_begun(planned)] if planned else []
        said = f"incomplete: {', '.join(missing)}; go on with: {_next_command(contents)}"
    return [f"epochs with every split whole: {span(contents.usable_epochs) or 'none'}", said]


def _not_begun(planned: Sequence[Run]) -> str:
    """Write that some splits are not begun, a few of them by name."""
    names = [f"{one.split} at epoch {one.epoch}" for one in planned]
    if len(names) > _NAMED:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more splits"]
    return f"{', '.join(names)} {'is' if len(planned) == 1 else 'are'} not begun"


def _next_command(contents: StoreContents) -> str:
    """Write the command that computes what is missing."""
    missing = {(one.epoch, one.split) for one in contents.status if not one.complete}
    missing |= {(run.epoch, run.split) for run in contents.planned}
    # The command takes only a job that was recorded as file.py:name.
    named = [run for run in (*contents.runs, *contents.planned) if ":" in run.job]
    jobs = [run.job for run in named if (run.epoch, run.split) in missing]
    # A killed run left no record, but the records of other splits name the job too.
    jobs = jobs or [run.job for run in named]
    if not jobs:
        return "the call that wrote the rows that are there (featurize or write_split)"
    where = shlex.quote(str(contents.store.location))
    return f"trakstore featurize {shlex.quote(jobs[-1])} --store {where}"
