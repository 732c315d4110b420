"""Selection of targets and train rows by their ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.passes.rows import ArrayRows
from trakstore.scores import places
from trakstore.scores.places import places_of_ids

TRAIN = 30


@pytest.fixture
def scores(tmp_path: Any) -> ts.Scores:
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 4))
    for split, rows, ids in (
        ("train", TRAIN, np.arange(TRAIN)[::-1] * 10),  # train row 0 is of id 290
        ("test", 5, [f"img{at}" for at in range(5)]),
    ):
        X: Any = rng.integers(-9, 10, (rows, 4)).astype(np.float32)  # exact products
        store.write_split(0, split, X, out_to_loss=np.ones(rows), ids=ids, block_rows=8)
    return ts.grad_dot_scores(store)


def test_scores_are_selected_by_the_ids_of_samples(scores: ts.Scores) -> None:
    whole = np.asarray(scores)
    one = scores.sel(target_id="img3")
    np.testing.assert_array_equal(one, whole[3:4])
    some = scores.sel(target_id=["img4", "img0"], train_id=[290, 0, 280])
    np.testing.assert_array_equal(some, whole[[4, 0]][:, [0, TRAIN - 1, 1]])
    assert some.to_xarray()["train_id"].values.tolist() == [290, 0, 280]
    assert some.to_xarray()["target_id"].values.tolist() == ["img4", "img0"]
    assert scores.sel().shape == whole.shape
    first = ts.top_k(scores.sel(target_id="img2"), 3)
    again = scores.sel(target_id="img2", train_id=first["train"].values[0])
    np.testing.assert_array_equal(np.asarray(again)[0], first["score"].values[0])


def test_saved_scores_are_selected_by_the_same_names(scores: ts.Scores, tmp_path: Any) -> None:
    store = ts.open_store(tmp_path / "s.zarr")
    ts.save_scores(scores, store, "all")
    saved = ts.open_scores(store, "all").sel(target_id="img1").sel(train_id=[20, 10])
    np.testing.assert_array_equal(np.asarray(scores.sel("img1", [20, 10]))[0], saved)


BAD = {
    "a slip": ({"target_id": "imgg3"}, "no target has the id 'imgg3'; did you mean 'img3'"),
    "a number": ({"train_id": [10, 11]}, "no train row has the id 11; there are 290, 280"),
    "a text for a number": ({"train_id": "10"}, "no train row has the id '10'; there are 290"),
    "a mask": ({"target_id": [True] * 5}, "ids must be integers or strings"),
    "a slice": ({"target_id": slice(2)}, "ids must be integers or strings"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_id_is_refused(scores: ts.Scores, case: str) -> None:
    asked, message = BAD[case]
    with pytest.raises(ts.TrakStoreError, match=message.replace("(", r"\(")):
        scores.sel(**asked)


def test_among_very_many_ids_no_near_one_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SEARCHED", 4)
    with pytest.raises(
        ts.TrakStoreError, match="no target has the id 9; its 5 ids begin with 0, 1, 2"
    ):
        places_of_ids(ArrayRows(np.arange(5), 2), 9, "target")
