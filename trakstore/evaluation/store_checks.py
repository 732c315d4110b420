"""Checks of stored rows: completeness, soundness, copies, and the conditioning of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trakstore.evaluation.verdicts import Check, Verdict, pass_if
from trakstore.kernels.solvers import CONDITION_LIMIT
from trakstore.methods.kernel_report import kernel_report
from trakstore.passes.rows import whole_column
from trakstore.planning import ranges
from trakstore.storage import layout
from trakstore.storage.eight_bits import LARGEST
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

# Share of the largest eigenvalue below which others are rounding errors of float32 products.
_NOISE = 1e-6
# Number of float32 roundings by which rows of equal samples may differ, relative to their norm.
_ROUNDINGS = 16
# Number of following rows with which each is compared, in the order of one product: rows that agree in
# that product by chance may stand between two equal rows.
_NEIGHBOURS = 8


def check_rows(split: Split) -> Iterator[Check]:
    """Check that every row is there, finite, not zero and unique; the caller fills in the epoch."""
    of = split.name
    missing = sum(stop - start for start, stop in split.status().missing)
    remedy = "run the same featurize command again: it computes what is missing"
    yield pass_if(not missing, "all rows are there", of, missing, "rows missing", remedy)
    if missing:
        return
    norm = np.delete(whole_column(split.column("norm")), split.skipped)
    bad, zero = int((~np.isfinite(norm)).sum()), int((norm == 0).sum())
    remedy = "the model gives NaN or inf for these samples: look at them, drop and featurize again"
    yield pass_if(not bad, "rows are finite", of, bad, "rows that are not finite", remedy)
    remedy = "the output does not depend on the parameters there: mask these rows, or look why"
    yield pass_if(not zero, "no rows of zeros", of, zero, "rows of zeros", remedy, "warn")
    if not of.endswith(layout.SAMPLED):  # two draws of the same label give equal rows
        copies, first = _copies(split)
        remedy = (
            f"rows {first[0]} and {first[1]} are equal: samples that stand twice share their "
            f"influence, and held-out ones among train rows are found as their own cause; mask the "
            f"copies"
        )
        yield pass_if(not copies, "no row stands twice", of, copies, "copies", remedy, "warn")
    ids = whole_column(split.column("sample_id"))
    again = len(ids) - len(np.unique(ids))
    remedy = "give each sample an id of its own: lists of scores name samples by id"
    yield pass_if(not again, "ids are different", of, again, "ids that stand twice", remedy)


def check_kernel(
    store: FeatureStore,
    epoch: Epoch,
    split: str,
    damping: float = 1.0,
    memory_limit: int | str | None = None,
) -> Check:
    """Check how well the damped kernel of a split can be inverted; the caller fills in the epoch."""
    report = kernel_report(store, epoch, split, damping, memory_limit=memory_limit)
    largest = report.eigenvalues[0]
    # Directions above rounding. The damped condition, not the rank, decides whether K can be inverted.
    rank = int((report.eigenvalues > _NOISE * largest).sum())
    verdict: Verdict = "pass"
    remedy = ""
    if report.damped_condition > CONDITION_LIMIT:
        verdict, remedy = "fail", "the kernel is singular: give a damping of 0.1 to 10"
    elif rank < report.dim / 2:
        verdict = "warn"
        remedy = "the kernel is damped, so scores are usable; a smaller dim would take less room"
    numbers = f"rank {rank} of {report.dim:,}, {report.n:,} rows"
    meaning = f"condition with damping {damping:g}; {numbers}"
    return Check("kernel", split, verdict, report.damped_condition, meaning, remedy)


def _copies(split: Split) -> tuple[int, tuple[int, int]]:
    """Count rows that are copies of another one, and find the first such pair.

    Equal samples give rows that are equal up to rounding, which depends on the place in the batch. A
    row is recognised by its norm and its products with four random directions: rows that agree in all
    of these count as copies. About 100 bytes a row are held.
    """
    features, rows = split.column("features"), split.spec.rows
    near = float(max(_ROUNDINGS * np.finfo(np.float32).eps, 2 * np.finfo(features.dtype).eps))
    if features.scale is not None:  # rounding to 8 bits may move a number by one step
        near = 0.5 / LARGEST
    directions = np.random.default_rng(0).choice([-1.0, 1.0], (features.shape[1], 4))
    marks = np.empty((rows, 5))
    for start, stop in ranges(rows, features.chunk_rows):
        tile = features.read(start, stop).astype(np.float64)
        marks[start:stop, 0] = np.linalg.norm(tile, axis=1)
        marks[start:stop, 1:] = tile @ directions
    order = np.flatnonzero(np.isfinite(marks).all(axis=1) & (marks[:, 0] > 0))
    # Sorted by one product, copies are neighbours, so that each row is compared with a few others.
    order = order[np.argsort(marks[order, 1], kind="stable")]
    copies, pair = np.zeros(rows, dtype=bool), (0, rows)
    for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
        left, right = order[:-step], order[step:]
        # If rows differ by d, their products with random signs differ by about ‖d‖, and their norms by
        # no more. Within twice the rounding they count as equal.
        close = np.abs(marks[left] - marks[right]) <= 2 * near * marks[left, :1]
        same = close.all(axis=1)
        copies[right[same]] = True
        later = np.maximum(left[same], right[same])
        if len(later) and later.min() < pair[1]:
            first = int(later.argmin())
            pair = int(min(left[same][first], right[same][first])), int(later[first])
    return int(copies.sum()), pair
