"""Gathering of a report's findings: every number is computed by analysis, methods and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import trakstore
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.epochs import EpochPair
from trakstore.methods.influence import self_scores
from trakstore.methods.kernel_report import KernelReport, kernel_report
from trakstore.passes.rows import Rows, TakenRows, whole_column
from trakstore.report.contents import Classes, Findings, TargetFindings
from trakstore.report.labels import with_labels
from trakstore.report.sample_source import SampleSource
from trakstore.report.store_facts import StoreContents
from trakstore.report.units import evenly_spaced
from trakstore.scores.factored import Scores
from trakstore.scores.sums import group_scores
from trakstore.scores.top_k import top_k
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.runs import now

if TYPE_CHECKING:
    from trakstore.analysis.transition import Transition

T = TypeVar("T")
KERNELS, CLASSES, SUSPECTS, PATHS = 8, 20, 24, 5  # the most that a page shows of each


@dataclass
class Gathering:
    """Report that is being put together.

    Attributes
    ----------
    store : FeatureStore
        The store.
    scores : Scores
        Scores of all targets.
    pairs : sequence of EpochPair
        Splits of each epoch of the scores.
    rows : ndarray of int64
        Targets that are shown.
    k : int
        Length of their lists.
    ends : (before, after) or None
        Epochs of the transition.
    null : sequence of (epoch, epoch)
        Pairs of epochs between which nothing happened.
    damping : Damping
        Damping of the kernels.
    memory_limit : int, str or None
        Bytes of one process.
    left_out : dict of str to str
        Sections that cannot be there, and why.
    """

    store: FeatureStore
    scores: Scores
    pairs: Sequence[EpochPair]
    rows: NDArray[np.int64]
    k: int
    ends: tuple[Epoch, Epoch] | None
    null: Sequence[tuple[Epoch, Epoch]]
    damping: Damping
    memory_limit: int | str | None
    left_out: dict[str, str] = field(default_factory=dict)

    def findings(self, samples: SampleSource, asked: dict[str, str]) -> Findings:
        """Compute every section of the page that the store has the columns and epochs for."""
        pair = self.pairs[-1]
        return Findings(
            location=str(self.store.location),
            contents=StoreContents.of(self.store),
            asked=asked,
            targets=pair.target.stored.name,
            train=pair.train.stored.name,
            answers=self._answers(samples),
            kernels=self._section("Kernels", self._kernels) or [],
            transition=self._section("Transition", self._transition),
            classes=self._section("Classes", self._classes),
            suspects=self._section("Suspects", self._suspects),
            left_out=self.left_out,
            show=samples,
            made=f"made by trakstore {trakstore.__version__}, {now()}",
        )

    def _section(self, name: str, compute: Callable[[], T]) -> T | None:
        """Compute a section that this store may not have; the page says why it is not there."""
        try:
            return compute()
        except TrakStoreError as error:
            # A fault of trakstore is another error, and ends the report.
            self.left_out[name] = str(error)
            return None

    def _answers(self, samples: SampleSource) -> TargetFindings:
        from trakstore.analysis.distribution import distribution

        chosen, limit = self.scores.isel(target=self.rows), self.memory_limit
        ups = top_k(chosen, self.k, order="largest", memory_limit=limit)
        downs = top_k(chosen, self.k, order="smallest", memory_limit=limit)
        pair = self.pairs[-1]
        rows = _taken(pair.target.positions, self.rows)
        ask = partial(samples.predict, pair.epoch, pair.target.stored.name, rows)
        return TargetFindings(
            rows=rows,
            total=self.scores.shape[0],
            proponents=with_labels(ups, self.pairs[0], self.rows),
            opponents=with_labels(downs, self.pairs[0], self.rows),
            spread=distribution(chosen, memory_limit=limit),
            paths=self._paths(chosen, ups, downs),
            path_length=min(PATHS, self.k),
            measured=self._measured(),
            predicted=self._section("Predictions", ask),
        )

    def _paths(self, chosen: Scores, ups: xr.Dataset, downs: xr.Dataset) -> xr.Dataset | None:
        from trakstore.analysis.trajectories import trajectories

        if len(chosen.epochs) < 2:
            self.left_out["Over epochs"] = "the scores are of one epoch only"
            return None
        first = [top["position"].values[:, :PATHS] for top in (ups, downs)]
        return trajectories(chosen, np.concatenate(first, 1), memory_limit=self.memory_limit)

    def _measured(self) -> dict[str, NDArray[Any]]:
        split = self.pairs[-1].target
        names = [name for name in ("output", "loss") if name in split.stored.columns]
        return {name: _taken(split.column(name), self.rows) for name in names}

    def _kernels(self) -> list[KernelReport]:
        # The damped kernels of the scores: rows are weighted as the method weights them.
        some = evenly_spaced(len(self.pairs), KERNELS)
        splits = [self.pairs[at].train.stored for at in some]
        weighting, limit = self.scores.parts[0].kernel or "none", self.memory_limit
        return [
            kernel_report(
                self.store, s.epoch, s.name, self.damping, weighting=weighting, memory_limit=limit
            )
            for s in splits
        ]

    def _transition(self) -> tuple[Epoch, Epoch, Transition]:
        from trakstore.analysis.transition import transition

        if self.ends is None:
            raise NotFoundError("it takes two epochs, the scores are of one")
        before, after = (self.scores.epoch(epoch) for epoch in self.ends)
        null = [(self.scores.epoch(a), self.scores.epoch(b)) for a, b in self.null]
        change = transition(before, after, null, k=self.k, memory_limit=self.memory_limit)
        gained, lost = (with_labels(one, self.pairs[0]) for one in (change.gained, change.lost))
        return (*self.ends, replace(change, gained=gained, lost=lost))

    def _classes(self) -> Classes:
        from trakstore.analysis.group_influence import same_class_share

        scores, limit = self.scores, self.memory_limit
        if scores.target_labels is None or scores.train_labels is None:
            raise NotFoundError("a split has no labels, so that there are no classes")
        train, target = (whole_column(one) for one in (scores.train_labels, scores.target_labels))
        count = max(len(np.unique(train)), len(np.unique(target)))
        if count > CLASSES:
            raise TrakStoreError(f"{count} classes are too many for a table: `trakstore groups`")
        means = group_scores(scores, targets="label", train="label", how="mean", memory_limit=limit)
        chosen = scores.isel(target=self.rows)
        share, base = same_class_share(chosen, train, target[self.rows], limit)
        return Classes(
            whole_column(means.target_ids).tolist(),
            whole_column(means.train_ids).tolist(),
            np.asarray(means, dtype=np.float64),
            float(np.nanmean(share)),
            float(base.mean()),
        )

    def _suspects(self) -> xr.Dataset:
        split, epochs = self.pairs[0].train.stored, [pair.epoch for pair in self.pairs]
        scores = self_scores(
            self.store, split.name, epochs, self.damping, memory_limit=self.memory_limit
        )
        first = scores[np.argsort(-scores.values, kind="stable")[:SUSPECTS]]
        columns = {"score": first, "train": first["train_id"], "position": first["position"]}
        listed = xr.Dataset({name: ("rank", one.values) for name, one in columns.items()})
        return with_labels(listed, self.pairs[0])


def _taken(column: Rows, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read some rows of a column."""
    return TakenRows(column, rows).read(0, len(rows))
