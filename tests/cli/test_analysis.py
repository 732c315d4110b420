"""Commands over epochs, groups and training give the numbers that the library gives."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import trakstore as ts
from trakstore.analysis.evolution import evolution
from trakstore.analysis.transition import transition
from trakstore.attributors import TrainingDynamicsTracker
from trakstore.cli.output import print_csv


@pytest.fixture
def epochs(tmp_path: Path) -> ts.FeatureStore:
    return fill(tmp_path / "e.zarr", 0)


def fill(where: Path, seed: int) -> ts.FeatureStore:
    rng = np.random.default_rng(seed)
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=6, seed=seed))
    for epoch in (10, 20, 30):
        for split, rows in (("train", 40), ("test", 7)):
            features = rng.normal(size=(rows, 6)).astype(np.float32)
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            ids = [f"{split}{i}" for i in range(rows)]
            labels = np.arange(rows) % 3
            store.write_split(epoch, split, features, out_to_loss=q, ids=ids, labels=labels)
    return store


def test_evolve(run: Any, epochs: ts.FeatureStore) -> None:
    asked = ["evolve", epochs.location, "--k", "3", "--target", "test4", "--target", "@1"]
    found = json.loads(run(*asked, "--json").out)
    wanted = evolution(ts.trak_scores(epochs).isel(target=[4, 1]), 3)
    assert found["epoch"] == [10, 20, 30] and found["target_id"] == ["test4", "test1"]
    assert found["train"] == wanted["train"].values.tolist()
    assert found["spearman"][0] == [None, None]
    table = run(*asked).out
    first = wanted["train"].values[2, 0, 0]
    label = int(first.removeprefix("train")) % 3
    assert found["label"][2][0][0] == label and found["target_label"] == [1, 1]
    assert "target test4 (1)" in table and f"{first} ({label})" in table
    assert "more target" not in table
    assert "target_loss" not in found and "loss" not in table  # no such column in the store
    every = run("evolve", epochs.location).out  # five of seven
    assert every.endswith("2 more targets: choose with --target, or --json for all\n")
    mean = json.loads(run("evolve", epochs.location, "--together", "--json").out)
    dense = np.asarray(ts.trak_scores(epochs).epoch(20)).mean(0)
    assert mean["max"][1][0] == pytest.approx(float(dense.max()), rel=1e-5)
    assert mean["target_id"] == ["mean of 7"] and "target_label" not in mean
    names = np.char.lstrip(np.array(mean["train"], dtype=str), "train").astype(int)
    np.testing.assert_array_equal(mean["label"], names % 3)


def test_evolve_has_outputs_and_losses_of_targets(run: Any, tmp_path: Path) -> None:
    from features.models import Samples, mlp

    from trakstore.features import featurize

    train, test, where = Samples(12), Samples(4, seed=1), tmp_path / "l.zarr"
    for epoch in (1, 2):
        for split, data in (("train", train), ("test", test)):
            model: Any = mlp(epoch)
            featurize(model, data, where, epoch=epoch, split=split, progress=False)
    store, drawn = ts.open_store(where), np.random.default_rng(0)
    for split, rows in (("train", 12), ("test", 4)):  # an epoch without these columns
        features = drawn.normal(size=(rows, store.spec.dim)).astype("f")
        store.write_split(9, split, features, out_to_loss=np.full(rows, 0.5, "f"))
    store.mask("test", [1])
    logits = torch.stack([mlp(epoch)(test.x) for epoch in (1, 2)]).double()
    loss = -logits.log_softmax(2)[:, range(4), test.y]
    wanted = {"loss": loss.detach(), "output": -torch.log(torch.expm1(loss)).detach()}
    asked = ["evolve", where, "--k", "2", "--target", "3", "--target", "0"]
    found = json.loads(run(*asked, "--json").out)
    lines = list(csv.DictReader(io.StringIO(run(*asked, "--csv").out)))
    for name, values in wanted.items():
        *numbers, last = found[f"target_{name}"]
        np.testing.assert_allclose(numbers, values[:, [3, 0]], rtol=1e-4)
        assert last == [None, None] and found["epoch"] == [1, 2, 9]
        (line,) = [
            one for one in lines if (one["epoch"], one["target_id"], one["rank"]) == ("2", "0", "1")
        ]
        assert float(line[f"target_{name}"]) == pytest.approx(float(values[1, 0]), rel=1e-4)
    table = run(*asked).out
    assert table.count("output") == table.count("loss") == 2
    shown = [line.split()[:3] for line in table.splitlines() if line.split()[:1] in (["2"], ["9"])]
    three, nought = ([f"{float(values[1, at]):.3g}" for values in wanted.values()] for at in (3, 0))
    none = ["9", "-", "-"]
    assert shown == [["2", *three[::-1]], none, ["2", *nought[::-1]], none]
    mean = json.loads(run("evolve", where, "--k", "2", "--together", "--json").out)
    expected = wanted["loss"][:, [0, 2, 3]].mean(1, keepdim=True)
    np.testing.assert_allclose(mean["target_loss"][:2], expected, rtol=1e-4)


def test_transitions(run: Any, epochs: ts.FeatureStore, tmp_path: Path) -> None:
    other = fill(tmp_path / "o.zarr", 1)
    asked = ["transitions", epochs.location, "--before", "10", "--after", "20", "--k", "4"]
    null = ["--null", "20,30", "--other-seed", other.location]
    found = json.loads(run(*asked, *null, "--json").out)
    mine, theirs = ts.trak_scores(epochs), ts.trak_scores(other)
    pairs = [(mine.epoch(20), mine.epoch(30))]
    pairs += [(mine.epoch(e), theirs.epoch(e)) for e in (10, 20)]
    wanted = transition(mine.epoch(10), mine.epoch(20), pairs, k=4)
    assert found["null_pairs"] == 3
    for side in ("gained", "lost"):
        for name in ("train", "change", "p", "q", "low", "high"):
            assert found[side][name] == getattr(wanted, side)[name].values.tolist(), name
    table = run(*asked).out
    ids = [found["gained"]["train"][0], found["lost"]["train"][0]]
    labels = [found[side]["label"][0] for side in ("gained", "lost")]
    assert labels == [int(one.removeprefix("train")) % 3 for one in ids]
    assert all(f"{one} ({label})" in table for one, label in zip(ids, labels, strict=True))
    assert "gained: train (label)" in table and "no p-values: give --null" in table
    assert json.loads(run(*asked, "--json").out)["lost"]["p"] == [None] * 4
    for pair in ("10,20", "20,10"):
        refused = run(*asked, "--null", "20,30", "--null", pair)
        assert f"the null {pair} is the transition itself" in refused.error
    assert "got one twice" in run(*asked, "--null", "30,30").error
    assert "same scores twice" in run(*asked, "--other-seed", epochs.location).error
    one = run(*asked, "--target", "test3").out
    rows = [line.split() for line in one.splitlines() if line.lstrip().startswith("train")]
    assert len(rows) == 8 and all(row[3:] == ["-", "-", "-"] for row in rows)
    bad = run(*asked, "--null", "20")
    assert bad.code == 2 and "a null takes two epochs" in bad.err


def test_groups(run: Any, epochs: ts.FeatureStore, tmp_path: Path) -> None:
    found = json.loads(run("groups", epochs.location, "--json").out)
    scores = ts.trak_scores(epochs)
    dense, own = np.asarray(scores, "f8"), np.arange(7)[:, None] % 3 == np.arange(40) % 3
    assert found["mean_score"][1][2] == pytest.approx(dense[1::3, 2::3].mean(), rel=1e-3)
    positive = np.maximum(dense, 0)
    share = ((positive * own).sum(1) / positive.sum(1)).mean()
    assert found["same_class_share"] == pytest.approx(share)
    table = run("groups", epochs.location).out
    assert "columns: train classes" in table and "target class" in table
    assert f"same class share         {share:.3g} of positive score" in table
    assert "(0 even, 1 one sample has all)" in table and "(1 has all, 40 all alike)" in table
    sizes = np.abs(dense)
    ratio = (sizes.sum(1) ** 2 / (sizes**2).sum(1)).mean()
    assert found["participation_ratio"] == pytest.approx(ratio)
    first = -np.sort(-positive, axis=1)[:, :4]
    assert found["positive_mass_top_tenth"] == pytest.approx(
        (first.sum(1) / positive.sum(1)).mean()
    )
    columns = read_csv(run("groups", epochs.location, "--csv"))
    assert list(columns) == ["target_class", "train_class", "mean_score"]
    np.testing.assert_array_equal(columns["mean_score"], np.ravel(found["mean_score"]))
    assert "exclude each other" in run("groups", epochs.location, "--csv", "--json").err
    bare = ts.FeatureStore.create(tmp_path / "b", projection=ts.ProjectionSpec("sjlt", dim=3))
    for split in ("train", "test"):
        bare.write_split(0, split, np.eye(5, 3, dtype="f4"), out_to_loss=np.ones(5))
    ran = run("groups", bare.location)
    assert ran.code == 2 and "has no labels" in ran.err


def read_csv(ran: Any) -> dict[str, Any]:
    """Columns of what a command printed, as integers, floats or texts."""
    assert ran.code == 0, ran.err
    head, *lines = csv.reader(io.StringIO(ran.out))
    columns = {}
    for name, texts in zip(head, zip(*lines, strict=True), strict=True):
        columns[name] = np.array([text or "nan" for text in texts])
        for kind in ("int64", "float64"):
            with suppress(ValueError):
                columns[name] = columns[name].astype(kind)
                break
    return columns


def test_lists_as_lines_of_values(run: Any, epochs: ts.FeatureStore) -> None:
    scores = ts.trak_scores(epochs)
    top = ts.top_k(scores, 3)
    found = read_csv(run("topk", epochs.location, "--k", "3", "--csv"))
    assert len(found["rank"]) == 21  # of all seven targets
    assert found["train"].tolist() == top["train"].values.ravel().tolist()
    np.testing.assert_array_equal(found["score"].astype("f4"), top["score"].values.ravel())
    assert found["target_id"].tolist() == [f"test{i}" for i in range(7) for _ in range(3)]
    assert found["label"].tolist() == [int(one.removeprefix("train")) % 3 for one in found["train"]]
    near = read_csv(run("neighbours", epochs.location, "--epoch", "10", "--k", "2", "--csv"))
    assert len(near["rank"]) == 14 and (near["distance"] > 0).all()
    over = read_csv(run("evolve", epochs.location, "--k", "2", "--csv"))
    assert len(over["rank"]) == 3 * 7 * 2 and set(over["epoch"]) == {10, 20, 30}
    pair = ["--before", "10", "--after", "20", "--k", "4", "--csv"]
    change = read_csv(run("transitions", epochs.location, *pair))
    wanted = transition(scores.epoch(10), scores.epoch(20), k=4)
    assert change["list"].tolist() == ["gained"] * 4 + ["lost"] * 4
    assert change["change"].tolist()[4:] == wanted.lost["change"].values.tolist()


def test_dynamics(run: Any, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    with TrainingDynamicsTracker(None, 2, tmp_path / "d.zarr") as tracker:
        for epoch in range(3):
            logits = torch.randn(9, 3, generator=rng)
            tracker.update(epoch, 0, None, torch.arange(9) % 3, logits, ids=range(9))
        wanted = tracker.analyze()
    asked = ["dynamics", tmp_path / "d.zarr", "--k", "4", "--by", "el2n", "--largest"]
    found = json.loads(run(*asked, "--json").out)
    order = np.argsort(-wanted["el2n"].values)[:4]
    assert found["sample_id"] == order.tolist() and found["samples"] == 9
    assert found["aum"] == wanted["aum"].values[order].tolist()
    assert "forgot" in run(*asked).out
    assert read_csv(run(*asked, "--csv"))["aum"].tolist() == found["aum"]
    ran = run("dynamics", tmp_path / "d.zarr", "--by", "eln")
    assert ran.code == 2 and "did you mean 'el2n'" in ran.err


def test_lines_of_values_quote_ids_and_steer_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a,b", "two\nlines", "\x1b[2J", '"']
    table = xr.Dataset({"score": ("rank", [0.1, 1 / 3, 2.0, 1e-20])}, {"id": ("rank", names)})
    print_csv(table)
    printed = capsys.readouterr().out
    head, *lines = csv.reader(io.StringIO(printed, newline=""))
    assert head == ["rank", "id", "score"] and [line[1] for line in lines] == names
    assert [float(line[2]) for line in lines] == [0.1, 1 / 3, 2.0, 1e-20]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_csv(table)
    assert "\x1b" not in capsys.readouterr().out
