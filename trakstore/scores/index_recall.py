"""Recall of an index: which lists it was measured on, and of which it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from trakstore.passes.rows import Rows, TakenRows, UnmaskedRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32
from trakstore.scores.running_lists import Lists, Order
from trakstore.scores.top_k import plan_top_k, top_k
from trakstore.scores.train_index import TrainIndex, usual_candidates
from trakstore.storage import layout
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import IndexDocument, Recall, codes_digest

MEASURED_ORDER: Order = "largest"
# λ follows the rows: some that are masked or appended change it by about their share.
_DAMPING_SHARE = 0.2
# New rows that vary as those of before cost less, though the candidates are a smaller share of all.
_FAR_LESS = 0.1
_Kind: TypeAlias = tuple[str, str, tuple[str, ...]]
_ROUNDING = 1e-5  # share of a list's largest score by which equal scores may differ


def measured(
    index: TrainIndex, scores: Scores, k: int, checked: int, memory_limit: int | str | None
) -> IndexDocument:
    """Return the first document of an index with the recall of lists of some targets, evenly spaced.

    What is known of other scores stays, and all of it where nothing is measured. Of a selection of
    train rows nothing is: the index is of all rows, and more of a short list is found.
    """
    targets, columns = scores.shape
    document = index.parts[0].document
    chosen = np.unique(np.linspace(0, targets - 1, min(checked, targets)).astype(int))
    if not len(chosen) or not _has_all_rows(scores):
        return document
    few, k = scores.isel(target=chosen), min(k, columns)
    count = usual_candidates(k, columns)
    of_these = [one for one in document.recalls if _is_of(one, scores)]
    current = [one for one in of_these if one in index.recalls]
    # Where all rows are candidates the recall is 1, which tells nothing of the codes.
    if count == columns and any(one.candidates < columns for one in current):
        return document
    exact = top_k(few, k, memory_limit=memory_limit)
    own, positions = _listed(index, few, k, count, memory_limit)
    share = _share(exact["score"].values, exact["position"].values, own, positions)
    codes = codes_digest(part.document for part in index.parts)
    made = Recall(*_kind_of(scores), _dampings(scores), codes, k, count, len(chosen), share)
    others = tuple(one for one in document.recalls if one not in of_these)
    return replace(document, recalls=(*others, made))


def _share(exact: F32, rows: Any, own: F32, own_rows: Any) -> float:
    """Return the share of entries of an index's lists that are as good as those of the exact lists.

    All have shape (m, k), the exact scores in order. Where rows have equal scores, as copies of a
    sample have, or those that a threshold makes 0, each of them is as good as another: an entry counts
    if its row is listed, or its score is no less than the k-th.
    """
    # Both are of one product each, summed up in other orders.
    rounding = _ROUNDING * np.abs(exact).max(axis=1, keepdims=True)
    listed = np.stack([np.isin(*pair) for pair in zip(own_rows, rows, strict=True)])
    return float(np.mean(listed | (own >= exact[:, -1:] - rounding)))


def has_fallen(before: Sequence[Recall], made: IndexDocument, scores: Scores) -> bool:
    """Tell whether the recall of such scores is far below that of before rows were added."""
    pairs = [
        (old, new)
        for old in before
        for new in made.recalls
        # New rows may change λ.
        if _kind(old) == _kind(new) == _kind_of(scores) and old.k == new.k
    ]
    return any(new.recall < old.recall - _FAR_LESS for old, new in pairs)


def _listed(
    index: TrainIndex, few: Scores, k: int, count: int, memory_limit: int | str | None
) -> tuple[F32, Any]:
    """Return the scores and stored positions in the lists of an index, shape (m, k) each."""
    plan = plan_top_k(few.sizes, k, None, memory_limit)
    lists = Lists.joined(
        [
            index.lists(few, few.window(*at, plan.ahead), at[0], k, count, MEASURED_ORDER)
            for at in plan.windows(few.shape[0])
        ]
    )
    positions = index.positions(few)
    return lists.score, lists.position if positions is None else positions[lists.position]


def recall_of(index: TrainIndex, scores: Scores, order: Order) -> Recall | None:
    """Return the recall that was measured on such scores; None where none was."""
    if order != MEASURED_ORDER or not _has_all_rows(scores):
        return None
    return next((one for one in index.recalls if _is_of(one, scores)), None)


def _kind(recall: Recall) -> _Kind:
    return recall.method, recall.scaling, recall.epochs


def _kind_of(scores: Scores) -> _Kind:
    epochs = tuple(str(part.epoch) for part in scores.parts)
    return scores.method, _scaling(scores), epochs


def _is_of(recall: Recall, scores: Scores) -> bool:
    same = _kind(recall) == _kind_of(scores)
    return same and all(map(_near, recall.dampings, _dampings(scores)))


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _DAMPING_SHARE * max(abs(one), abs(other))


def _dampings(scores: Scores) -> tuple[float | None, ...]:
    factors = (part.factor for part in scores.parts)
    return tuple(None if one is None else float(one.damping) for one in factors)


def _scaling(scores: Scores) -> str:
    """Name the kernel and what becomes of the products, by which scores of one method differ."""
    # By names and not by tokens: those change with each mask, and where λ is rounded otherwise.
    part = scores.parts[0]
    average = f"{scores.average}: " if len(scores.parts) > 1 else ""
    # As learning rates are: by their ratios, which alone change a ranking.
    weights = [abs(one.weight) for one in scores.parts]
    if max(weights) > min(weights):
        average += f"weights {', '.join(f'{one / max(weights):.2g}' for one in weights)}: "
    threshold = f", threshold {scores.soft_threshold}" if scores.soft_threshold else ""
    kernel = f"kernel {part.kernel}, " if part.kernel else ""
    if part.sampled:
        kernel = "kernel of sampled rows, "
    return average + kernel + _name(part.column_scale) + threshold


def _name(rows: Any) -> str:
    while isinstance(rows, TakenRows | UnmaskedRows):
        rows = rows.base
    if isinstance(rows, StoredColumn):
        return layout.last_part(rows.path)
    if not is_dataclass(rows):
        return "" if isinstance(rows, np.ndarray) or rows is None else str(rows)
    inner = (_name(getattr(rows, field.name)) for field in fields(rows))
    return f"{type(rows).__name__}({', '.join(one for one in inner if one)})"


def _has_all_rows(scores: Scores) -> bool:
    """Tell whether scores are with all train rows that are not masked."""
    rows: Rows = scores.parts[0].train
    while isinstance(rows, UnmaskedRows):
        rows = rows.base
    return isinstance(rows, StoredColumn)
