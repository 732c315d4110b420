"""Both ends of one target's scores in one pass: the lists of two, whatever the number of stages."""

from __future__ import annotations

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NumericsError, TrakStoreError
from trakstore.passes.rows import ArrayRows
from trakstore.scores.both_ends import BothEnds, both_ends
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part


def check(ends: BothEnds, scores: Scores, k: int) -> None:
    for listed, order in ((ends.largest, "largest"), (ends.smallest, "smallest")):
        whole = ts.top_k(scores, k, order=order)  # type: ignore[arg-type]
        assert listed.equals(whole) and listed.attrs == whole.attrs


@pytest.mark.parametrize("stages", [1, 2, 5, 13, 99])
@pytest.mark.parametrize("k", [1, 7, 101])
def test_the_end_is_top_k(stages: int, k: int, make_scores) -> None:
    scores = make_scores()[0].isel(target=[4])
    every = list(both_ends(scores, k, stages=stages))
    check(every[-1], scores, k)
    shares = [one.share for one in every]
    assert shares == sorted(set(shares)) and shares[-1] == 1
    assert len(every) == {1: 1, 2: 2, 5: 5, 13: 13, 99: 13}[stages]


def test_a_stage_lists_what_was_seen(make_scores) -> None:
    scores = make_scores()[0].isel(target=[0])
    first = next(both_ends(scores, 20, stages=13))  # of one tile, which has 8 rows
    assert first.share == 8 / 101
    places = first.largest["position"].values[0]
    assert sorted(places[:8]) == list(range(8)) and (places[8:] == -1).all()
    assert np.isnan(first.smallest["score"].values[0, 8:]).all()
    whole = np.asarray(scores)[0, :8]
    np.testing.assert_array_equal(first.largest["score"].values[0, :8], np.sort(whole)[::-1])


def test_equal_scores_are_ordered_by_position() -> None:
    part = Part(
        0, ArrayRows(np.ones((1, 1), np.float32)), ArrayRows(np.ones((40, 1), np.float32), 8)
    )
    scores = Scores("plain", (part,), ArrayRows(np.zeros(1)), ArrayRows(np.arange(40)))
    *_, last = both_ends(scores, 5, stages=3)
    assert last.largest["position"].values[0].tolist() == [0, 1, 2, 3, 4]
    assert last.smallest["position"].values[0].tolist() == [0, 1, 2, 3, 4]


def test_a_cluster_gives_the_same(make_scores) -> None:
    distributed = pytest.importorskip("distributed")
    scores = make_scores()[0].isel(target=[2])
    with distributed.Client(processes=False, dashboard_address=None, n_workers=1):
        *_, last = both_ends(scores, 9, stages=3)
    check(last, scores, 9)


def test_what_is_refused(make_scores, draw) -> None:
    scores = make_scores()[0]
    with pytest.raises(TrakStoreError, match="of one target, got 9"):
        next(both_ends(scores, 3))
    with pytest.raises(TrakStoreError, match=r"1\.\.101"):
        next(both_ends(scores.isel(target=[0]), 102))
    for stages in (0, -1, 1.5):
        with pytest.raises(TrakStoreError, match="stages must be an integer, 1 or more"):
            next(both_ends(scores.isel(target=[0]), 3, stages=stages))  # type: ignore[arg-type]
    train = draw(40, 2)
    train[17, 0] = np.inf
    part = Part(0, ArrayRows(draw(1, 2)), ArrayRows(train, 8))
    bad = Scores("plain", (part,), ArrayRows(np.zeros(1)), ArrayRows(np.arange(40)))
    with pytest.raises(NumericsError, match="train row 17"):
        list(both_ends(bad, 3, stages=2))
