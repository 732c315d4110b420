"""Every method by its name on the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.methods.by_name import METHODS
from trakstore.spec import OutputSpec

FUNCTIONS: dict[str, Any] = {
    "trak": ts.trak_scores,
    "published-trak": partial(ts.trak_scores, temperature=None),
    "influence": ts.influence_scores,
    "tracin": ts.tracin_scores,
    "grad-dot": ts.grad_dot_scores,
    "grad-cos": ts.grad_cos_scores,
    "whitened-cos": ts.whitened_cos_scores,
}


@pytest.fixture
def rated(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    spec = ts.ProjectionSpec("sjlt", dim=6)
    store = ts.FeatureStore.create(tmp_path / "r", projection=spec, output=OutputSpec("margin"))
    for epoch in (1, 2):
        for split, rows in (("train", 30), ("test", 4)):
            features = rng.normal(size=(rows, 6)).astype(np.float32)
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            store.write_split(epoch, split, features, out_to_loss=q, learning_rate=0.1)
    return store


def test_the_list_is_complete() -> None:
    assert FUNCTIONS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_method_by_name(method: str, run: Any, rated: ts.FeatureStore) -> None:
    wanted = FUNCTIONS[method](rated)
    asked = ["--method", method, "--json"]
    found = json.loads(run("topk", rated.location, "--k", "3", *asked).out)
    assert found["method"] == wanted.method
    top = ts.top_k(wanted, 3)
    for row, one in enumerate(found["targets"]):
        assert [entry["position"] for entry in one["top"]] == top["position"].values[row].tolist()
    asked = ["--method", method.replace("-", "_"), "--json"]  # of old scripts
    saved = json.loads(run("score", rated.location, "--save", "m", *asked).out)
    assert saved["method"] == wanted.method
    np.testing.assert_array_equal(ts.open_scores(rated, "m").values, np.asarray(wanted))


@pytest.mark.parametrize(
    ("given", "rates"), [(["0.3"], 0.3), (["1=0.3", "2=0.01"], {1: 0.3, 2: 0.01})]
)
def test_learning_rates_may_be_given(
    given: list[str], rates: Any, run: Any, rated: ts.FeatureStore
) -> None:
    asked = [word for one in given for word in ("--learning-rate", one)]
    run("score", rated.location, "--save", "t", "--method", "tracin", *asked)
    wanted = np.asarray(ts.tracin_scores(rated, learning_rates=rates))
    np.testing.assert_array_equal(ts.open_scores(rated, "t").values, wanted)
    assert np.abs(wanted - np.asarray(ts.tracin_scores(rated))).max() > 1e-3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--method", "tracin", "--learning-rate", "fast"], "a number, or EPOCH=RATE like 5=0.1"),
        (["--method", "tracin", "--learning-rate", "0.1", "--learning-rate", "1=2"], "one for all"),
        (["--learning-rate", "0.1"], "learning rates are for tracin, got the method 'trak'"),
    ],
)
def test_bad_learning_rates(asked: list[str], said: str, run: Any, rated: ts.FeatureStore) -> None:
    ran = run("topk", rated.location, *asked)
    assert ran.code == 2 and said in ran.err


def test_an_index_of_few_rows(run: Any, rated: ts.FeatureStore) -> None:
    """All rows are candidates, so that nothing is asked of an index, which need not be there."""
    asked = ["topk", rated.location, "--k", "3", "--approximate"]
    found = json.loads(run(*asked, "--json").out)
    exact = ts.top_k(ts.trak_scores(rated), 3)
    assert found["recall"] == 1 and "checked" not in found
    for row, one in enumerate(found["targets"]):
        assert [entry["position"] for entry in one["top"]] == exact["position"].values[row].tolist()
    assert "these are the true lists" in run(*asked).out


def test_an_index_is_built_and_asked(
    run: Any, rated: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.scores import train_index

    scored = ["--damping", "2"]
    monkeypatch.setattr(train_index, "LEAST_CANDIDATES", 3)
    monkeypatch.setattr(train_index, "CANDIDATES_PER_ENTRY", 2)
    asked = ["topk", rated.location, "--k", "2", "--approximate", *scored]
    ran = run(*asked)
    assert ran.code == 2 and "run `trakstore index`" in ran.err
    built = json.loads(run("index", rated.location, *scored, "--json").out)
    assert built["rows"] == rated.split(1, "train").rows and built["method"] == "trak"
    assert 0 < built["recall"] <= 1 and built["checked"] == 4
    assert "of the true top-" in run("index", rated.location, *scored).out
    found = json.loads(run(*asked, "--json").out)
    wanted = ts.approximate_top_k(ts.trak_scores(rated, damping=2.0), 2)
    assert found["recall"] == wanted.attrs["recall"] == built["recall"]
    for row, one in enumerate(found["targets"]):
        assert [entry["position"] for entry in one["top"]] == wanted["position"].values[
            row
        ].tolist()
    assert "lists of 4 targets were found" in run(*asked).out
    # JSON has no NaN: what was not measured is null.
    run("index", rated.location, "--method", "grad-dot", "--checked", "0")
    asked[-2:] = "--method", "grad-dot"
    assert json.loads(run(*asked, "--json").out)["recall"] is None
    assert "recall was not measured" in run(*asked).out


def test_an_index_is_built_anew_and_a_low_recall_is_told(
    run: Any, rated: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.cli import lists
    from trakstore.scores import train_index

    monkeypatch.setattr(train_index, "LEAST_CANDIDATES", 3)
    monkeypatch.setattr(train_index, "CANDIDATES_PER_ENTRY", 2)
    asked = ["topk", rated.location, "--k", "2", "--approximate", "--damping", "2"]
    built = ["index", rated.location, "--damping", "2"]
    run(*built)
    # What was measured of other scores stays, unless the index is built anew.
    for more, count in (([], 2), (["--anew"], 1)):
        run(*built[:-1], "20", *more)
        known = ts.open_index(ts.trak_scores(rated)).recalls
        assert [one.method for one in known] == ["trak"] * count
    for low, says in ((2.0, True), (0.0, False)):
        monkeypatch.setattr(lists, "LOW_RECALL", low)
        for ran in (run(*built), run(*asked)):
            assert ran.code == 0
            assert ("that is low: `trakstore index --anew`" in " ".join(ran.out.split())) is says


def test_neighbours_by_activations(run: Any, tmp_path: Path) -> None:
    from features.models import Samples, mlp

    from trakstore.features import featurize

    for split, rows in (("train", 20), ("test", 3)):
        options: Any = {"split": split, "activations": "2.input", "progress": False}
        featurize(mlp(), Samples(rows), tmp_path / "a.zarr", **options)
    asked = ["neighbours", tmp_path / "a.zarr", "--activations", "2.input", "--k", "2", "--json"]
    found = json.loads(run(*asked).out)
    wanted = ts.neighbours(ts.open_store(tmp_path / "a.zarr"), k=2, activations="2.input")
    assert found["column"] == "activations.2.input"
    assert [e["distance"] for e in found["targets"][1]["top"]] == wanted["distance"][
        1
    ].values.tolist()
    ran = run("neighbours", tmp_path / "a.zarr", "--activations", "2")
    assert ran.code != 0 and "did you mean 'activations.2.input'" in ran.err


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_neighbours(metric: Any, run: Any, rated: ts.FeatureStore) -> None:
    asked = ["--epoch", "2", "--metric", metric, "--k", "4"]
    found = json.loads(run("neighbours", rated.location, *asked, "--json").out)
    wanted = ts.neighbours(rated, epoch=2, k=4, metric=metric)
    assert (found["metric"], found["epoch"], found["k"]) == (metric, 2, 4)
    for row, one in enumerate(found["targets"]):
        for name in ("train", "position", "distance"):
            assert [entry[name] for entry in one["top"]] == wanted[name].values[row].tolist()
    table = run("neighbours", rated.location, *asked, "--target", "@2").out
    assert "distance, nearest first" in table
    some = json.loads(run("neighbours", rated.location, *asked, "--target", "3", "--json").out)
    assert some["targets"] == found["targets"][3:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one (--epoch) of 1, 2"),
        (["--epoch", "1", "--metric", "l1"], "metric must be"),
        (["--epoch", "1", "--k", "31"], "k must be in 1..30"),
        (["--epoch", "3"], "no epoch 3"),
        (["--epoch", "1", "--target", "9"], "no sample id '9'"),
    ],
)
def test_neighbours_refuse(
    arguments: list[str], said: str, run: Any, rated: ts.FeatureStore
) -> None:
    assert said in run("neighbours", rated.location, *arguments).error


@pytest.mark.parametrize(
    "command",
    [
        ["score", "--save", "m"],
        ["topk", "--k", "2"],
        ["neighbours", "--epoch", "1", "--k", "2"],
        ["evolve", "--k", "2"],
        ["transitions", "--before", "1", "--after", "2", "--k", "2"],
        ["groups"],
        ["evaluate", "stability", "--k", "2"],
    ],
)
def test_splits_of_different_weights_are_refused(
    command: list[str], run: Any, tmp_path: Path
) -> None:
    store = ts.FeatureStore.create(tmp_path / "r", projection=ts.ProjectionSpec("sjlt", dim=6))
    rng = np.random.default_rng(0)
    for epoch in (1, 2):
        for split, rows in (("train", 30), ("test", 4)):
            X, q = rng.normal(size=(rows, 6)).astype("f"), rng.uniform(size=rows)
            weights = f"weights of {split}"
            labels = np.arange(rows) % 2
            store.write_split(epoch, split, X, out_to_loss=q, labels=labels, checkpoint=weights)
    words = command[:2] if command[0] == "evaluate" else command[:1]
    asked = [*words, store.location, *command[len(words) :]]
    assert "--allow-other-weights" in run(*asked).error
    assert run(*asked, "--allow-other-weights").code == 0


def test_commands_work_on_a_device(run: Any, rated: ts.FeatureStore) -> None:
    wanted = json.loads(run("topk", rated.location, "--k", "3", "--json").out)
    asked = ["--device", "cpu:0", "--json"]  # torch's own CPU stands for a GPU
    found = json.loads(run("topk", rated.location, "--k", "3", *asked).out)
    for one, other in zip(found["targets"], wanted["targets"], strict=True):
        assert [e["position"] for e in one["top"]] == [e["position"] for e in other["top"]]
    run("score", rated.location, "--save", "there", *asked)
    saved = ts.open_scores(rated, "there").values
    np.testing.assert_allclose(saved, np.asarray(ts.trak_scores(rated)), rtol=1e-4, atol=1e-6)
