"""Defaults for a question's targets, the ends of a transition, and its null."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.methods.epochs import UnmaskedSplit
from trakstore.quantities import shown
from trakstore.report.units import evenly_spaced
from trakstore.storage.layout import Epoch, as_epoch


def named_rows(split: UnmaskedSplit, names: Sequence[object] | None) -> NDArray[np.int64]:
    """Find the rows of targets that are named by their ids or as @N; all rows if none are named.

    Raises
    ------
    NotFoundError
        When there is no such sample; the message lists some of the ids.
    TrakStoreError
        When a target is named twice.
    """
    count = split.rows
    if not names:
        return np.arange(count)
    ids = [str(one) for one in split.column("sample_id").read(0, count).tolist()]
    # If a sample has the id "@3", that is meant: ids of the data come before our notation.
    rows = {f"@{row}": row for row in range(count)} | {one: row for row, one in enumerate(ids)}
    chosen: list[int] = []
    for name in map(str, names):
        if name not in rows:
            some = ", ".join(ids[:3]) + (", ..." if count > 3 else "")
            raise NotFoundError(
                f"{split.stored.name} has no sample id {name!r}; its ids are {some}; @N names row "
                f"N, from @0 to @{count - 1}"
            )
        if rows[name] in chosen:
            raise TrakStoreError(f"one target is named twice: {name!r}, row {rows[name]}")
        chosen.append(rows[name])
    return np.array(chosen, dtype=np.int64)


def default_rows(split: UnmaskedSplit, count: int) -> NDArray[np.int64]:
    """Choose rows of ``count`` targets: half by largest loss where it is stored, the others spread."""
    # People mostly ask about the model's mistakes; the others show what is usual.
    first = np.empty(0, dtype=np.int64)
    if "loss" in split.stored.columns:
        loss = split.column("loss").read(0, split.rows)
        first = np.argsort(-loss, kind="stable")[: count // 2]
    others = np.setdiff1d(np.arange(split.rows), first)
    return np.concatenate([first, others[evenly_spaced(len(others), count - len(first))]])


def check_list_length(k: int, train: UnmaskedSplit) -> None:
    """Refuse lists that are longer than the split, before a kernel is computed."""
    if k > train.rows:
        raise TrakStoreError(
            f"k must be in 1..{train.rows}, the rows of {train.stored.name}, got {k}"
        )


def transition_ends(
    epochs: Sequence[Epoch], before: Epoch | None, after: Epoch | None
) -> tuple[Epoch, Epoch] | None:
    """Choose the ends of a report's transition, by default the first and the last of ``epochs``.

    Return None if there is only one epoch, and none is named.
    """
    first = epochs[0] if before is None else known_epochs([before], epochs)[0]
    last = epochs[-1] if after is None else known_epochs([after], epochs)[0]
    if first == last and not (before is None and after is None):
        raise TrakStoreError(f"a transition takes two epochs, got {first!r} twice")
    return None if first == last else (first, last)


def null_pairs(
    given: Iterable[Sequence[Epoch]], ends: tuple[Epoch, Epoch] | None
) -> list[tuple[Epoch, Epoch]]:
    """Read pairs of epochs that can be the null of a transition between the ``ends``.

    Raises
    ------
    TrakStoreError
        When a pair is not two epochs, is named twice, or is the transition itself.

    Examples
    --------
    >>> null_pairs([(50, 100), ("100", "final")], ends=(100, 1000))
    [(50, 100), (100, 'final')]
    """
    pairs = []
    for one in given:
        if isinstance(one, str) or not isinstance(one, Sequence) or len(one) != 2:
            got = ", ".join(map(str, one)) if isinstance(one, list | tuple) else shown(one)
            raise TrakStoreError(f"a null takes two epochs, like 100 and 200, got {got}")
        pair = (as_epoch(one[0]), as_epoch(one[1]))
        if pair[0] == pair[1]:
            raise TrakStoreError(f"a null takes two epochs, got one twice: {pair[0]!r}")
        if ends is not None and set(pair) == set(ends):
            raise TrakStoreError(
                f"the null {pair[0]},{pair[1]} is the transition itself: name two epochs between "
                f"which nothing happened"
            )
        pairs.append(pair)
    return pairs


def known_epochs(named: Sequence[Epoch], known: Sequence[Epoch]) -> list[Epoch]:
    """Read named epochs, all of which must be ``known``."""
    epochs = [as_epoch(one) for one in named]
    for epoch in epochs:
        if epoch not in known:
            raise NotFoundError(f"no epoch {epoch!r} among the scores{did_you_mean(epoch, known)}")
    return epochs
