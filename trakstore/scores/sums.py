"""Scores of groups: sums over targets or train rows, without the matrix that they are sums of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import Pass
from trakstore.passes.rows import ArrayRows, Rows
from trakstore.passes.scheduler import WAITING, tile_rows
from trakstore.quantities import is_one_of
from trakstore.scores.classes import Groups, classes_of, need_class_memory
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores

Grouping: TypeAlias = Literal["label"] | Sequence[Any] | NDArray[Any] | None
How: TypeAlias = Literal["sum", "mean"]


def group_scores(
    scores: Scores,
    *,
    targets: Grouping = None,
    train: Grouping = None,
    how: How = "sum",
    memory_limit: int | str | None = None,
) -> Scores:
    r"""Compute scores between groups of targets and groups of train rows.

    Scores are linear in the features of both sides, so that features are summed rather than scores:
    :math:`\sum_{t \in G} \sum_{z \in H} \tau(t, z)` costs a pass over each side, and no product of all
    targets with all train rows.

    Parameters
    ----------
    scores : Scores
        Scores whose targets or train rows are grouped.
    targets, train : "label", or sequence with a group for each row, optional
        ``"label"``: by the stored classes. Groups may be numbers or strings, and come sorted. None
        leaves the rows as they are.
    how : {"sum", "mean"}
        Reduction of the scores of a group's rows.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Scores
        Scores (target, train) with groups in place of rows, and the groups' names as ids; they hold 8·k
        bytes in memory for each group and epoch.

    Raises
    ------
    TrakStoreError
        For a grouping of another length, ``"label"`` without labels, or scores with a soft threshold.
    NumericsError
        When a feature or scale is not finite.
    MemoryLimitError
        When the sums do not fit.

    Examples
    --------
    >>> classes = ts.group_scores(ts.grad_cos_scores(store), targets="label", train="label", how="mean")
    >>> np.asarray(classes).round(1)
    array([[ 0.7, -0.3, -0.1],
           [-0.2,  0.9,  0.1],
           [-0. ,  0.3,  0.7]], dtype=float32)
    """
    need_scores(scores)
    if not is_one_of(how, get_args(How)):
        raise TrakStoreError(f"how must be 'sum' or 'mean', got {how!r}")
    if scores.soft_threshold:
        raise TrakStoreError("scores with a soft threshold are not linear: group them without it")
    # The sum over targets of L = q T (K + λI)⁻¹ is the solution for the sum of q T, which is therefore
    # summed first and solved once. Scales that are averaged separately are the same for all epochs, and
    # may enter each epoch's sum over train rows.
    if targets is not None:
        groups = _groups(scores, targets, "targets", memory_limit)
        parts = tuple(
            replace(
                part,
                target=_sum_rows(part.target, part.row_scale, groups, how, memory_limit),
                row_scale=None,
            )
            for part in scores.parts
        )
        ids = ArrayRows(groups.labels)
        scores = replace(
            scores, parts=parts, target_ids=ids, target_positions=None, target_labels=None
        )
    if train is not None:
        groups, apart = _groups(scores, train, "train", memory_limit), scores.scale_apart
        parts = tuple(
            replace(
                part,
                train=_sum_rows(part.train, apart or part.column_scale, groups, how, memory_limit),
                column_scale=None,
            )
            for part in scores.parts
        )
        ids = ArrayRows(groups.labels)
        scores = replace(
            scores, parts=parts, train_ids=ids, train_positions=None, train_labels=None
        )
    return scores


def _groups(scores: Scores, given: Grouping, side: str, memory_limit: int | str | None) -> Groups:
    count = scores.shape[0 if side == "targets" else 1]
    if isinstance(given, str):
        labels = scores.target_labels if side == "targets" else scores.train_labels
        if given != "label" or labels is None:
            raise TrakStoreError(
                f"{side}= takes 'label' where the split has labels, or a group for each of its "
                f"{count} rows; got {given!r}"
            )
        need_class_memory(count, memory_limit)
        return classes_of(labels)
    try:
        groups = np.asarray(given)
    except ValueError:  # ragged lists
        groups = np.empty(0)
    if groups.shape != (count,):
        raise TrakStoreError(
            f"{side}= has shape {groups.shape}, needed a group for each of {count}"
        )
    names, of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return Groups(of.astype(np.int32), tuple(counts.tolist()), names)


def _sum_rows(
    rows: Rows, scale: Rows | None, groups: Groups, how: How, memory_limit: int | str | None
) -> ArrayRows:
    """Compute Σ scaleᵢ·rowᵢ over the rows of each group, or their mean; (groups, k), float64."""
    step, count = tile_rows(rows), len(groups.labels)
    waiting = 8 * count * rows.shape[1]
    what = f"sums of {count} groups of rows"
    each = waiting + step * rows.shape[1] * (rows.dtype.itemsize + 8)
    workers = fitting_slots(
        WAITING * waiting + groups.of.nbytes, each, memory_budget(memory_limit), what
    )
    total = _SumPass(step, rows, scale, groups.of, count).run(rows.shape[0], workers=workers)
    if not np.isfinite(total).all():
        raise NumericsError("features or scales hold NaN or inf: featurize them again")
    return ArrayRows(total / np.array(groups.counts)[:, None] if how == "mean" else total)


@dataclass(frozen=True, eq=False)
class _SumPass(Pass[NDArray[np.float64], NDArray[np.float64]]):
    rows: Rows
    scale: Rows | None
    of: NDArray[np.int32]
    groups: int

    def start(self) -> NDArray[np.float64]:
        return np.zeros((self.groups, self.rows.shape[1]))

    def visit(self, state: NDArray[np.float64], low: int, high: int) -> NDArray[np.float64]:
        tile = np.asarray(self.rows.read(low, high), dtype=np.float64)
        scale = np.ones(high - low) if self.scale is None else self.scale.read(low, high)
        which = (self.of[low:high], np.arange(high - low))
        # A sparse matrix sums rows by a product: each of its columns has the row's scale in the group's
        # row.
        pick = csr_array((np.asarray(scale, dtype=np.float64), which), (self.groups, high - low))
        state += pick @ tile
        return state
