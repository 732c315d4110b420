"""Train rows that a list may name, found a piece of a column at a time."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from trakstore.errors import MemoryLimitError, NotFoundError
from trakstore.passes.rows import ArrayRows
from trakstore.scores import classes
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.selection import train_groups
from trakstore.scores.sums import group_scores
from trakstore.scores.top_k import top_k

ROWS = 300_000


@pytest.fixture
def scores() -> Scores:
    """Scores of one target with rows of ids 0, 2, 4, ... and of seven labels, in chunks of 1000."""
    right = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None]
    part = Part(0, ArrayRows(np.ones((1, 1), np.float32)), ArrayRows(right, 1000))
    ids, labels = 2 * np.arange(ROWS), np.arange(ROWS) % 7
    made = Scores("test", (part,), ArrayRows(np.arange(1)), ArrayRows(ids, 1000))
    return replace(made, train_labels=ArrayRows(labels, 1000))


@pytest.mark.parametrize("piece", [1, 2500, ROWS])
def test_groups_do_not_depend_on_the_pieces(
    scores: Scores, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(classes, "_PIECE", piece)
    ids = np.array([0, 1000, 2 * ROWS - 2])
    groups = train_groups(scores, {"id": ids})
    assert groups is not None and groups.counts == (3,)
    assert np.flatnonzero(groups.of == 0).tolist() == (ids // 2).tolist()
    mask = np.arange(ROWS) % 7 != 3
    groups = train_groups(scores, mask, per_class=True)
    assert groups is not None and groups.labels.tolist() == [0, 1, 2, 4, 5, 6]
    assert (groups.of[~mask] == -1).all()
    np.testing.assert_array_equal(groups.labels[groups.of[mask]], np.arange(ROWS)[mask] % 7)
    assert groups.counts == tuple(np.bincount(groups.of[mask]))
    with pytest.raises(NotFoundError, match="no train row has the id 5"):
        train_groups(scores, {"id": [4, 5]})


@pytest.mark.parametrize("how", [{"where": {"id": [4]}}, {"where": None, "per_class": True}])
def test_groups_take_the_memory_that_is_planned(scores: Scores, how: dict[str, object]) -> None:
    train_groups(scores, **how)  # type: ignore[arg-type]
    tracemalloc.start()
    train_groups(scores, **how)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 5 * ROWS < peak < 5 * ROWS + classes._VALUE_BYTES * classes._PIECE
    with pytest.raises(MemoryLimitError, match="a choice among 300000 rows by ids or labels needs"):
        top_k(scores, 1, memory_limit=5 * ROWS, **how)  # type: ignore[arg-type]


def test_groups_of_labels_are_those_of_the_labels_themselves(scores: Scores) -> None:
    labels = np.arange(ROWS) % 7
    by_name, given = (group_scores(scores, train=one) for one in ("label", labels))
    assert by_name.train_ids.read(0, 7).tolist() == list(range(7))
    np.testing.assert_allclose(np.asarray(by_name), np.asarray(given), rtol=1e-6)
    sums = np.bincount(labels, np.linspace(0, 1, ROWS))
    np.testing.assert_allclose(np.asarray(by_name)[0], sums, rtol=1e-5)
    with pytest.raises(MemoryLimitError, match="a choice among 300000 rows by ids or labels needs"):
        group_scores(scores, train="label", memory_limit=5 * ROWS)
