"""The formula on the page is that of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import scores_by_name
from trakstore.report.formula import Formula, method_formula
from trakstore.spec import OutputSpec


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng, spec = np.random.default_rng(0), ts.ProjectionSpec("sjlt", dim=3)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=spec, output=OutputSpec("margin"))
    for epoch in (1, 2):
        for split in ("train", "test"):
            features, q = rng.normal(size=(5, 3)).astype("f4"), rng.uniform(size=5)
            made.write_split(epoch, split, features, out_to_loss=q)
    return made


def formula(store: ts.FeatureStore, method: str, damping: str = "c = 1", **how: Any) -> Formula:
    if method == "tracin":
        how["learning_rates"] = 0.1
    return method_formula(scores_by_name(method, store, **how), "margin", damping)


SCORES = {
    "trak": "τ(t, z) = mean over epochs of φ(t)ᵀ (K + λI)⁻¹ φ(z) · Q(z)",
    "published-trak": "τ(t, z) = [mean over epochs of φ(t)ᵀ (K + λI)⁻¹ φ(z)] · "
    "[mean over epochs of Q(z)]",
    "influence": "τ(t, z) = mean over epochs of g(t)ᵀ (K + λI)⁻¹ g(z)",
    "tracin": "τ(t, z) = sum over epochs of η g(t)ᵀ g(z)",
    "grad-dot": "τ(t, z) = mean over epochs of g(t)ᵀ g(z)",
    "grad-cos": "τ(t, z) = mean over epochs of cos(g(t), g(z))",
    "whitened-cos": "τ(t, z) = mean over epochs of cos(A g(t), A g(z))",
}


@pytest.mark.parametrize("method", SCORES)
def test_each_method(store: ts.FeatureStore, method: str) -> None:
    found = formula(store, method)
    assert found.score == SCORES[method]
    # Each symbol of the score is explained, and nothing else.
    named = "".join(symbol for symbol, _ in found.symbols)
    symbols = {"trak": "τKφλQp", "influence": "τKφgλp", "tracin": "τgη", "whitened-cos": "τAKφgλ"}
    symbols |= {"published-trak": "τKφλQp", "grad-dot": "τg", "grad-cos": "τg"}
    assert named == symbols[method]
    kernelled = method in ("trak", "published-trak", "influence", "whitened-cos")
    assert found.damping == ("c = 1" if kernelled else None)


def test_the_temperature(store: ts.FeatureStore) -> None:
    found = formula(store, "trak")
    assert found.temperature == "2"
    symbols = dict(found.symbols)
    assert symbols["K"] == "Σ p (1 − p) φφᵀ over the train samples" and symbols["Q"] == "1 − p"
    assert symbols["p"].endswith("at temperature 2")
    published = formula(store, "published-trak")
    assert published.temperature == "none"
    assert dict(published.symbols)["K"] == "Σ φφᵀ over the train samples"
    assert dict(published.symbols)["p"] == "the model's probability of the right answer"
    assert formula(store, "influence").temperature is None


def add_sampled_rows(store: ts.FeatureStore) -> None:
    rng = np.random.default_rng(1)
    ids = [f"{row}~0" for row in range(5)]
    for epoch in (1, 2):
        features, q = rng.normal(0, epoch, (5, 3)).astype("f4"), rng.uniform(size=5)
        store.write_split(epoch, "train~sampled", features, out_to_loss=q, ids=ids)


def test_the_rows_of_the_kernel(store: ts.FeatureStore) -> None:
    add_sampled_rows(store)
    of_train = ts.influence_scores(store, hessian="loss", kernel="train")
    train = dict(method_formula(of_train, "margin", "c = 1").symbols)
    sampled = dict(formula(store, "influence", kernel="sampled").symbols)
    assert train["K"] == "Σ g gᵀ over the train samples"
    assert sampled["K"] == "Σ g gᵀ over labels drawn from the model, by the number of draws"


def test_the_mean_of_a_sampled_kernel_is_weighed(store: ts.FeatureStore) -> None:
    add_sampled_rows(store)
    found = formula(store, "trak", kernel="sampled")
    assert (
        found.score == "τ(t, z) = mean weighed by 1/√λ over epochs of φ(t)ᵀ (K + λI)⁻¹ φ(z) · Q(z)"
    )
    # A λ that is given is that of all epochs.
    given = ts.trak_scores(store, kernel="sampled", damping=Damping(absolute=1.0))
    assert method_formula(given, "margin", "λ = 1").score == SCORES["trak"]


def test_one_epoch_has_no_mean(store: ts.FeatureStore) -> None:
    found = formula(store, "trak", epochs=[2])
    assert found.score == "τ(t, z) = φ(t)ᵀ (K + λI)⁻¹ φ(z) · Q(z)"


def test_a_damping_that_is_given_needs_no_symbol(store: ts.FeatureStore) -> None:
    found = formula(store, "trak", "λ = 0.5")
    assert found.damping == "λ = 0.5" and "λ" not in dict(found.symbols)


def test_scores_of_another_kind_have_no_formula(store: ts.FeatureStore) -> None:
    from dataclasses import replace

    scores = replace(ts.trak_scores(store), method="own")
    assert method_formula(scores, None, "c = 1") == Formula("own")
