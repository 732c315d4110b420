"""Sections of a report and their content: all numbers come from analysis, methods and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import trakstore
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.epochs import EpochPair, UnmaskedSplit
from trakstore.methods.influence import self_scores
from trakstore.methods.kernel_report import KernelReport, kernel_report
from trakstore.methods.sampled_kernel import SampledKernel
from trakstore.passes.rows import Rows, TakenRows, whole_column
from trakstore.progress import begin_step
from trakstore.report.dominance import dominants
from trakstore.report.labels import with_labels, with_outputs
from trakstore.report.sample_source import SampleSource
from trakstore.report.store_facts import StoreContents
from trakstore.report.token_lists import TokenLists
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
# Sections of the page, in the order of page.html, as its navigation names them.
SECTIONS = ("Targets", "Transition", "Classes", "Suspects", "Scores", "Kernels", "Store")
KERNELS, CLASSES, SUSPECTS, PATHS = 8, 20, 24, 5  # the most of each that a page shows


@dataclass(frozen=True)
class Classes:
    """Mean scores between classes, and the share of the targets' scores from their own class.

    Attributes
    ----------
    targets, train : sequence
        Names of the classes.
    means : ndarray of float64, shape (targets, train)
    share, base : float
        Share of positive score from the own class, and share of train samples that are in that class.
    """

    targets: Sequence[object]
    train: Sequence[object]
    means: NDArray[np.float64]
    share: float
    base: float


@dataclass
class Findings:
    """Content of one page, computed when it is made.

    A section for which the store lacks columns or epochs is None or empty, and is named in
    ``left_out``.

    Attributes
    ----------
    store : FeatureStore
        The store.
    scores : Scores
        Scores of all targets.
    pairs : sequence of EpochPair
        Splits of each epoch of the scores.
    rows : ndarray of int64, shape (m,)
        Targets that the page shows, as rows of the scores.
    k : int
        Length of their lists.
    ends : (before, after) or None
        Epochs of the transition.
    null : sequence of (epoch, epoch)
        Pairs of epochs between which nothing changed.
    damping : Damping
        Damping of the kernels.
    memory_limit : int, str or None
        Bytes of one process.
    show : SampleSource
        Source of the samples that the page shows.
    asked : mapping of str to str
        Epochs, damping and choice of targets, in words.
    provenance : mapping of str to str
        Sources of the samples, in words.
    sampled : SampledKernel, optional
        Rows of the kernels, if they are not the train rows.
    tokens : TokenLists, optional
        Shading of the texts of each list's first entries by the scores of their tokens.
    left_out : dict of str to str
        Names of missing sections, with the reason.
    contents : StoreContents
        Contents of the store.
    targets, train : str
        Names of the splits.
    stored_rows : ndarray of int64, shape (m,)
        Rows of the targets in the stored split.
    proponents, opponents : Dataset
        From ``top_k``, largest and smallest first, with ``label`` and ``target_label`` where known.
    spread : Dataset
        From ``analysis.distribution``.
    paths : Dataset or None
        From ``analysis.trajectories``: the first samples of each list, list by list.
    ranks : Dataset or None
        From ``analysis.evolution``: agreement of each epoch's proponents with those of the epoch
        before, and the targets' own ``target_output`` and ``target_loss``, if stored.
    dominant, dominant_opponent : list of Dominant or None
        For each target, the first entry of its list if it dominates the list.
    measured : mapping of str to array, shape (m,)
        Stored columns of the targets at the last epoch, such as their loss; the output under its own
        name.
    predicted : array of int64, shape (m,), or None
        Classes predicted by the model of the last epoch.
    kernels : list of KernelReport
        Kernels of some epochs.
    transition : (before, after, Transition) or None
        Change of influence between the ``ends``.
    classes : Classes or None
        Mean scores between classes.
    suspects : Dataset or None
        Dimension ``rank``: ``train`` (ids), ``position``, ``score`` (on itself) and, if known,
        ``label`` and ``predicted``, the class predicted by the model of the last epoch.
    made : str
        Time and version of the program.
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
    show: SampleSource
    asked: Mapping[str, str]
    provenance: Mapping[str, str]
    sampled: SampledKernel | None = None
    tokens: TokenLists | None = None
    left_out: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        from trakstore.analysis.distribution import distribution

        chosen, limit = self.scores.isel(target=self.rows), self.memory_limit
        last, split = self.pairs[-1], self.pairs[-1].target
        self.contents = StoreContents.of(self.store)
        self.targets, self.train = split.stored.name, last.train.stored.name
        # Scores leave masked rows out, but samples are found by their row in the stored split.
        self.stored_rows = _taken(split.positions, self.rows)
        begin_step(f"report: lists of {len(self.rows)} targets")
        ups = top_k(chosen, self.k, order="largest", memory_limit=limit)
        downs = top_k(chosen, self.k, order="smallest", memory_limit=limit)
        self.proponents = with_labels(ups, self.pairs[0], self.rows)
        self.opponents = with_labels(downs, self.pairs[0], self.rows)
        begin_step("report: spread of the scores")
        self.spread = distribution(chosen, memory_limit=limit)
        begin_step("report: scores over the epochs")
        self.paths = self._paths(chosen)
        self.ranks = self._ranks(chosen)
        self.dominant = dominants(self.proponents, last, self.rows)
        self.dominant_opponent = dominants(self.opponents, last, self.rows)
        self.measured = self._measured(split)
        ask = partial(self.show.predict, last.epoch, self.targets, self.stored_rows)
        self.predicted = self._section("Predictions", ask)
        self.kernels = self._section("Kernels", self._kernels) or []
        self.transition = self._section("Transition", self._transition)
        self.classes = self._section("Classes", self._classes)
        self.suspects = self._section("Suspects", self._suspects)
        self.made = f"made by trakstore {trakstore.__version__}, {now()}"

    def _section(self, name: str, compute: Callable[[], T]) -> T | None:
        """Compute a section that this store may lack; the page says why it is missing."""
        begin_step(f"report: {name.lower()}")
        try:
            return compute()
        except TrakStoreError as error:
            # Only the user's errors are caught: any other ends the report.
            self.left_out[name] = str(error)
            return None

    def _paths(self, chosen: Scores) -> xr.Dataset | None:
        from trakstore.analysis.trajectories import trajectories

        if len(chosen.epochs) < 2:
            self.left_out["Over epochs"] = "the scores are of one epoch only"
            return None
        first = [top["position"].values[:, :PATHS] for top in (self.proponents, self.opponents)]
        return trajectories(chosen, np.concatenate(first, 1), memory_limit=self.memory_limit)

    def _ranks(self, chosen: Scores) -> xr.Dataset | None:
        from trakstore.analysis.evolution import evolution

        if len(chosen.epochs) < 2:
            return None
        ranks = evolution(chosen, self.k, memory_limit=self.memory_limit)
        return with_outputs(ranks, self.pairs, self.rows)

    @property
    def column_names(self) -> dict[str, str]:
        """Names of a target's columns on the page: the output has the name of its kind."""
        output = self.store.spec.output
        return {"output": "output" if output is None else f"output ({output.name})", "loss": "loss"}

    def _measured(self, split: UnmaskedSplit) -> dict[str, NDArray[Any]]:
        names = self.column_names.items()
        there = {stored: name for stored, name in names if stored in split.stored.columns}
        return {name: _taken(split.column(stored), self.rows) for stored, name in there.items()}

    def _kernels(self) -> list[KernelReport]:
        # The damped kernels of the scores, whose rows have the weights of the method.
        some = evenly_spaced(len(self.pairs), KERNELS)
        splits, damping = [self.pairs[at].train.stored for at in some], self.damping
        if self.sampled is not None:
            splits = [self.sampled.rows[at].stored for at in some]
            damping = self.sampled.damping(damping)
        weighting, limit = self.scores.parts[0].kernel or "none", self.memory_limit
        return [
            kernel_report(
                self.store, s.epoch, s.name, damping, weighting=weighting, memory_limit=limit
            )
            for s in splits
        ]

    def _transition(self) -> tuple[Epoch, Epoch, Transition]:
        from trakstore.analysis.transition import transition

        if self.ends is None:
            raise NotFoundError("a transition takes two epochs, and the scores are of one")
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
        # If the model cannot predict the targets, the page says so once.
        if self.predicted is not None:
            rows = listed["position"].values.astype(np.int64)
            predicted = self.show.predict(self.pairs[-1].epoch, split.name, rows)
            if predicted is not None:
                listed["predicted"] = ("rank", predicted)
        return with_labels(listed, self.pairs[0])


def _taken(column: Rows, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read some rows of a column."""
    return TakenRows(column, rows).read(0, len(rows))
