"""Splits of one epoch that were made with different weights are not scored by accident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.kernels.solvers import Damping
from trakstore.methods.epochs import epoch_pairs
from trakstore.spec import OutputSpec

METHODS: dict[str, Callable[..., Any]] = {
    "trak": ts.trak_scores,
    "influence": ts.influence_scores,
    "tracin": lambda store, **how: ts.tracin_scores(store, learning_rates=0.1, **how),
    "grad_dot": ts.grad_dot_scores,
    "grad_cos": ts.grad_cos_scores,
    "whitened_cos": ts.whitened_cos_scores,
    "neighbours": lambda store, **how: ts.neighbours(store, k=2, **how)["distance"],
}


def made(path: Path, train: str | None, test: str | None) -> ts.FeatureStore:
    output = OutputSpec("margin")
    spec = ts.ProjectionSpec("sjlt", 8)
    store = ts.FeatureStore.create(path, projection=spec, output=output)
    rng = np.random.default_rng(0)
    for split, rows, weights in (("train", 30, train), ("test", 4, test)):
        X, q = rng.normal(size=(rows, 8)).astype("f"), rng.uniform(size=rows)
        store.write_split(0, split, X, out_to_loss=q, checkpoint=weights)
    return store


@pytest.mark.parametrize("method", METHODS)
def test_different_weights_are_refused_with_both_values(tmp_path: Path, method: str) -> None:
    scores = METHODS[method]
    mixed = made(tmp_path / "mixed", "a" * 64, "b" * 64)
    with pytest.raises(SpecMismatchError, match=r"b{12}, .*a{12}: .*allow_other_weights=True"):
        scores(mixed)
    allowed = np.asarray(scores(mixed, allow_other_weights=True))
    np.testing.assert_array_equal(allowed, scores(made(tmp_path / "same", "c" * 64, "c" * 64)))


@pytest.mark.parametrize(
    ("train", "test"), [(None, "b" * 64), ("a" * 64, None), ("features:1", "features:2")]
)
def test_weights_that_the_store_does_not_know_are_no_others(
    tmp_path: Path, train: str | None, test: str | None
) -> None:
    store = made(tmp_path / "store", train, test)
    assert ts.trak_scores(store, damping=Damping()).shape == (4, 30)


def test_a_single_epoch_of_several_is_named(tmp_path: Path) -> None:
    store = made(tmp_path / "store", "a", "a")
    X = np.ones((30, 8), dtype="f")
    store.write_split(7, "train", X, checkpoint="other")
    store.write_split(7, "test", X[:4], checkpoint="a")
    with pytest.raises(SpecMismatchError, match=r"'test' of epoch 7 .* 'train' of epoch 7"):
        epoch_pairs(store, "test", "train")
    assert len(epoch_pairs(store, "test", "train", 0)) == 1
