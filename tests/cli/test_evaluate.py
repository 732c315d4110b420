"""Evaluations from the command line give what the library gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.evaluation.agreement import stability
from trakstore.evaluation.lds import lds
from trakstore.evaluation.retraining import retrained_models
from trakstore.evaluation.wrong_labels import detection
from trakstore.features import featurize_job, load_job
from trakstore.methods.influence import self_scores

TRAINERS = """
import numpy as np
from trakstore.evaluation.retraining import Retrained
from trakstore.evaluation.training import SubsetTrainer
from jobs import small


def trainer():
    job = small()
    make = lambda: __import__("torch").nn.Linear(4, 3)
    return SubsetTrainer(make, job.datasets["train"], job.datasets["test"], epochs=2, batch_size=5)


weights = np.random.default_rng(0).normal(size=(20, 6))


def linear(subsets, seeds):
    return Retrained((subsets @ weights).astype(np.float32), None)


number = 3
"""
NOTED = """
from pathlib import Path


class Told:
    def count_targets(self):
        return 6

    def __call__(self, subsets, seeds):
        Path({noted!r}).touch()
        return linear(subsets, seeds)


told = Told()
"""


@pytest.fixture
def made(jobs: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A store of the small job, and a file with trainers."""
    place = tmp_path / "run.zarr"
    featurize_job(load_job(f"{jobs}:small"), place, progress=False, device="cpu")
    path = jobs.with_name("trainers.py")
    path.write_text(TRAINERS)
    return place, path


def test_lds_trains_what_is_missing(run: Any, made: tuple[Path, Path]) -> None:
    store, trainers = made
    asked = ["evaluate", "lds", store, "--models", "halves"]
    more = ["--method", "trak", "--method", "grad-cos", "--json"]
    few = json.loads(run(*asked, "--trainer", f"{trainers}:trainer", "--count", 10, *more).out)
    assert (few["models"], few["subsets"]) == (10, 10)
    found = json.loads(run(*asked, "--trainer", f"{trainers}:trainer", "--count", 24, *more).out)
    models = retrained_models(store, "halves")
    assert found["models"] == 24
    wanted = {
        "trak": ts.trak_scores(store_of(store)),
        "grad-cos": ts.grad_cos_scores(store_of(store)),
    }
    for told in found["lds"]:
        dense = np.asarray(wanted[told["scores"]])
        one = lds(dense, models["subset"].values, models["output"].values)
        assert told["lds"] == pytest.approx(one.mean)
        assert (told["low"], told["high"]) == pytest.approx((one.low, one.high))
    ts.save_scores(wanted["trak"], store, "kept")
    changed = trainers.with_name("changed.py")
    changed.write_text(trainers.read_text().replace("batch_size=5", "batch_size=7"))
    refused = run(*asked, "--trainer", f"{changed}:trainer", "--count", 24, *more)
    assert "batch_size: theirs has 5, this one 7" in refused.error
    again = json.loads(run(*asked, "--scores", "kept", "--json").out)  # no trainer is needed now
    assert again["lds"][0]["lds"] == pytest.approx(found["lds"][0]["lds"])
    assert "95%" in run(*asked).out
    assert "did you mean 'halves'" in run("evaluate", "lds", store, "--models", "halfs").error


def test_lds_of_few_models_says_so(run: Any, made: tuple[Path, Path]) -> None:
    store, trainers = made
    asked = ["evaluate", "lds", store, "--models", "drawn", "--trainer", f"{trainers}:linear"]
    assert "note: 49 models are few: train 200" in run(*asked, "--count", 49).err
    assert "are few" not in run(*asked, "--count", 50).err


def test_masked_rows_are_in_no_subset(run: Any, made: tuple[Path, Path]) -> None:
    """Models are trained on subsets of the data set, scores have no masked rows, saved ones neither."""
    place, trainers = made
    store = store_of(place)
    store.mask("train", [3, 11])
    store.mask("test", [2])
    scores = ts.trak_scores(store)
    ts.save_scores(scores, store, "kept")
    asked = ["evaluate", "lds", place, "--models", "halves", "--method", "trak", "--scores", "kept"]
    found = json.loads(run(*asked, "--trainer", f"{trainers}:linear", "--count", 30, "--json").out)
    models = retrained_models(place, "halves")
    subsets, outputs = models["subset"].values, models["output"].values
    assert subsets.shape == (30, 20) and outputs.shape == (30, 6)
    assert not subsets[:, [3, 11]].any()
    assert (subsets.sum(1) == 9).all()
    rows, targets = np.delete(np.arange(20), [3, 11]), [0, 1, 3, 4, 5]
    wanted = lds(np.asarray(scores), subsets[:, rows], outputs[:, targets])
    for told in found["lds"]:
        assert told["per_target"] == pytest.approx(wanted.per_target.tolist())
    gone = ["evaluate", "counterfactual", place, "--models", "gone", "--size", 2, "--repeats", 1]
    run(*gone, "--trainer", f"{trainers}:linear", "--target", "@2")
    subsets = retrained_models(place, "gone")["subset"].values
    removed = [np.setdiff1d(np.flatnonzero(~one), [3, 11]).tolist() for one in subsets]
    assert removed[0] == []
    assert removed[1] == sorted(ts.top_k(scores, 2)["position"].values[2].tolist())
    assert not subsets[:, [3, 11]].any()


REFUSED = {
    "kernel": ("--method influence --damping -1", "damping"),
    "saved": ("--scores none", "no scores 'none'"),
    "lists": ("--scores lists", "are lists or sparse"),
    "subsets": ("--share 1", "three different subsets, got 1"),
    "repeats": ("--repeats 10", "three different subsets, got 2"),
    "targets": ("--targets train", "of 6 targets: needed 20"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_so_before_training(
    case: str, run: Any, made: tuple[Path, Path], tmp_path: Path
) -> None:
    place, trainers = made
    store, (options, said) = store_of(place), REFUSED[case]
    ts.save_scores(ts.trak_scores(store), store, "lists", top=3)
    noted = tmp_path / "trained"
    with trainers.open("a") as file:
        file.write(NOTED.format(noted=str(noted)))
    asked = ["evaluate", "lds", place, "--models", "m", "--trainer", f"{trainers}:told"]
    assert said in run(*asked, "--count", 20, *options.split()).error
    assert not noted.exists()
    assert run(*asked, "--count", 20).code == 0
    assert noted.exists()


def store_of(place: Path) -> ts.FeatureStore:
    return ts.open_store(place)


def test_counterfactual(run: Any, made: tuple[Path, Path]) -> None:
    store, trainers = made
    asked = ["evaluate", "counterfactual", store, "--models", "gone", "--trainer"]
    options = ["--size", 2, "--size", 3, "--repeats", 2, "--target", "@1", "--target", "@4"]
    found = json.loads(run(*asked, f"{trainers}:trainer", *options, "--json").out)
    assert found["removal"] == ["top", "random", "same_class"]
    assert (found["size"], found["target"]) == ([2, 3], [1, 4])
    assert np.array(found["flips"]).shape == np.array(found["change"]).shape == (3, 2, 2)
    table = run(*asked, f"{trainers}:trainer", *options).out
    assert "nothing, another seed" in table
    assert "same class 3" in table
    plain = run("evaluate", "counterfactual", store, "--models", "b", "--trainer",
                f"{trainers}:linear", "--size", 2, "--repeats", 1)  # fmt: skip
    assert "class changes" not in plain.out
    assert "must be or return a SubsetTrainer" in run(*asked, f"{trainers}:number").error


def test_mislabels(run: Any, made: tuple[Path, Path], tmp_path: Path) -> None:
    store, _ = made
    scores = self_scores(store_of(store))
    (tmp_path / "wrong.txt").write_text("3\n\n17\n")
    found = json.loads(run("evaluate", "mislabels", store, "--wrong", tmp_path / "wrong.txt",
                           "--k", 4, "--json").out)  # fmt: skip
    wanted = detection(scores.values, np.isin(np.arange(20), [3, 17]))
    assert found["detection"]["auc"] == pytest.approx(wanted.auc)
    assert found["suspects"]["train"] == np.argsort(-scores.values, kind="stable")[:4].tolist()
    assert "ROC" in run("evaluate", "mislabels", store, "--wrong", tmp_path / "wrong.txt").out
    assert "self-score" in run("evaluate", "mislabels", store).out
    (tmp_path / "wrong.txt").write_text("20\n")
    asked = ["evaluate", "mislabels", store, "--wrong"]
    assert "train has no sample '20'" in run(*asked, tmp_path / "wrong.txt").error
    assert "there is no file" in run(*asked, tmp_path / "none.txt").error


def test_mislabels_of_samples_with_names(run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "wrong.txt").write_text("t1\nt5\n")
    asked = ["evaluate", "mislabels", store.location, "--split", "test", "--k", 3]
    asked += ["--wrong", tmp_path / "wrong.txt"]
    scores = self_scores(store, "test")
    found = json.loads(run(*asked, "--json").out)
    wanted = detection(scores.values, np.isin(np.arange(7), [1, 5]))
    assert found["detection"]["auc"] == pytest.approx(wanted.auc)
    first = np.argsort(-scores.values, kind="stable")[:3]
    assert found["suspects"]["train"] == [f"t{at}" for at in first]
    shown = run(*asked).out.splitlines()
    assert [line.split()[0] for line in shown[3:6]] == [f"t{at}" for at in first]
    (tmp_path / "wrong.txt").write_text("t7\n")
    assert "test has no sample 't7', which the file names; there are t0, t1" in run(*asked).error


def test_stability(run: Any, made: tuple[Path, Path]) -> None:
    store, _ = made
    scores = ts.trak_scores(store_of(store))
    found = json.loads(run("evaluate", "stability", store, "--k", 5, "--json").out)
    wanted = stability([np.asarray(scores.epoch(e)) for e in scores.epochs], 5)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert (found["over"], found["runs"]) == ("epochs", 2)
    same = json.loads(run("evaluate", "stability", store, "--other", store, "--json").out)
    assert same["spearman"] == pytest.approx(1)
    assert "2 stores" in run("evaluate", "stability", store, "--other", store).out


def test_checks(run: Any, made: tuple[Path, Path], jobs: Path) -> None:
    store, _ = made
    ran = run("evaluate", "checks", f"{jobs}:small", store)
    assert ran.code == 0
    assert "pass  rows computed again (test at epochs 1, final): " in ran.out
    lines = ran.out.splitlines()
    places = [line.partition("):")[0] for line in lines[:-1] if line.startswith("pass")]
    assert len(set(places)) == len(places) == 2 + 6 + 2 * 5 + 2 * 3 + 1
    told = json.loads(run("evaluate", "checks", f"{jobs}:small", store, "--json").out)
    assert told["pass"] == 2 + 6 + 2 * (2 * 5 + 2 * 3 + 1)  # each by itself
    assert f"{told['pass']} pass, 0 warn" in lines[-1]
    assert "0 fail" in ran.out
    jobs.write_text(jobs.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    ran = run("evaluate", "checks", f"{jobs}:small", store, "--json")
    found = json.loads(ran.out)
    assert ran.code == 1
    assert found["fail"] == sum(check["verdict"] == "fail" for check in found["checks"]) > 0
    assert (
        "the store has 20 rows of other data"
        in run("evaluate", "checks", f"{jobs}:small", store).out
    )


@pytest.mark.slow
def test_efficiency(run: Any, jobs: Path) -> None:
    asked = ["evaluate", "efficiency", f"{jobs}:small", "--target-rows", 3]
    found = json.loads(
        run(*asked, "--train-rows", 10, "--train-rows", 20, "--dim", 8, "--rounds", 2, "--json").out
    )
    assert [(c["train"], c["targets"], c["dim"]) for c in found["cells"]] == [
        (10, 3, 8),
        (20, 3, 8),
    ]
    for cell in found["cells"]:
        for part in ("compute", "write", "featurize", "top"):
            assert 0 < cell[part]["least"] <= cell[part]["median"] <= cell[part]["most"]
        assert cell["rows_per_second"] == pytest.approx(cell["train"] / cell["featurize"]["median"])
        assert cell["memory"] < 500e6
        assert cell["device_memory"] == 0
    assert "no split 'test' of 30 samples" in run(*asked[:-1], 30, "--train-rows", 10).error
