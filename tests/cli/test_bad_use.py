"""Bad use ends with exit code 2 and one line, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import check_whole

import trakstore as ts
from trakstore.cli import app, main
from trakstore.cli.evaluate.commands import EVALUATIONS


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


QUERIES = {
    "epoch": (["kernel", "{store}", "--epoch", "3"], "no epoch 3"),
    "split": (["kernel", "{store}", "--split", "trian"], "did you mean 'train'"),
    "targets": (
        ["topk", "{store}", "--targets", "tset"],
        "'tset'; did you mean 'test'",
    ),
    "method": (["topk", "{store}", "--method", "track"], "did you mean 'trak'"),
    "score method": (["score", "{store}", "--save", "a", "--method", "x"], "no method 'x'"),
    "name": (["score", "{store}", "--save", "../a"], "cannot name a score matrix"),
    "reserved": (["topk", "{store}", "--epoch", "grams"], "keeps for itself"),
    "k": (["topk", "{store}", "--k", "41"], "1..40"),
    "k 0": (["topk", "{store}", "--k", "0"], "see trakstore topk --help"),
    "target": (["topk", "{store}", "--target", "7"], "no sample id '7'"),
    "row": (["topk", "{store}", "--target", "@7"], "from @0 to @6"),
    "order": (["topk", "{store}", "--smallest", "--magnitude"], "exclude each other"),
    "size": (["topk", "{store}", "--memory-limit", "many"], "600MB"),
    "too little memory": (["topk", "{store}", "--memory-limit", "1kB"], "memory_limit"),
    "damping": (["kernel", "{store}", "--damping", "-1"], "damping must be"),
    "damping word": (["kernel", "{store}", "--damping", "x"], "see trakstore kernel --help"),
    "no store": (["info", "{folder}/nothing"], "there is no store"),
    "not a store": (["info", "{folder}"], "there is no store"),
    "no command": (["inof"], "No such command"),
    "no argument": (["info"], "Missing argument"),
    "no save": (["score", "{store}"], "Missing option '--save'"),
    "option": (["info", "{store}", "--jsno"], "No such option"),
    "root option": (["--nope"], "see trakstore --help"),
}


@pytest.mark.parametrize("case", QUERIES)
def test_queries(case: str, run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    arguments, said = QUERIES[case]
    before = listing(tmp_path)
    ran = run(*(one.format(store=store.location, folder=tmp_path) for one in arguments))
    assert said in ran.error
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [["kernel", "--epoch", "2"], ["score", "--save", "a"], ["topk"]],
    ids=lambda arguments: arguments[0],
)
def test_an_incomplete_split(arguments: list[str], run: Any, holed: ts.FeatureStore) -> None:
    place = Path(str(holed.location))
    before = listing(place)
    ran = run(arguments[0], place, *arguments[1:])
    assert "32 of 40 rows; missing 8-15" in ran.error
    assert listing(place) == before


JOBS = {
    "file": ("{folder}/job.py:small", "there is no job file"),
    "module": ("nowhere.jobs:small", "there is no module"),
    "form": ("small", "a job is named like"),
    "name": ("{folder}/jobs.py:smal", "did you mean 'small'"),
    "wrong": ("{folder}/jobs.py:wrong", "gave a dict"),
    "number": ("{folder}/jobs.py:number", "gave a int"),
    "epoch": ("{folder}/jobs.py:small --epoch 2", "the job has no epoch 2"),
    "split": ("{folder}/jobs.py:small --split trian", "did you mean 'train'"),
    "device": ("{folder}/jobs.py:small --device gpu", "--device gpu"),
    "rank": ("{folder}/jobs.py:small --rank 2 --world-size 2", "rank"),
    "batch": ("{folder}/jobs.py:small --batch-size 0", "see trakstore featurize --help"),
}


@pytest.mark.parametrize("case", JOBS)
def test_jobs(case: str, run: Any, jobs: Path, tmp_path: Path) -> None:
    text, said = JOBS[case]
    place = tmp_path / "new.zarr"
    arguments = text.format(folder=jobs.parent).split()
    ran = run("featurize", *arguments, "--store", place, "--json")
    assert said in ran.error
    assert not place.exists()


def test_another_job_is_refused(run: Any, jobs: Path, store: ts.FeatureStore) -> None:
    before = listing(Path(str(store.location)))
    ran = run("featurize", f"{jobs}:small", "--store", store.location, "--json")
    assert "give it another store" in ran.error
    assert listing(Path(str(store.location))) == before


def test_a_fault_keeps_its_traceback(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("trakstore.storage.store.FeatureStore.status", fault)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["info", str(store.location)])


@pytest.mark.parametrize("command", app.EXAMPLES, ids=lambda command: command.__name__)
def test_help_has_an_example(command: Callable[..., None], run: Any) -> None:
    name = command.__name__.rstrip("_")
    ran = run(name, "--help")
    assert ran.code == 0
    assert f"Example: trakstore {name}" in ran.out
    check_whole(app.EXAMPLES[command].split()[1:])
    assert command.__doc__ is not None
    assert "--json" in ran.out


@pytest.mark.parametrize("command", EVALUATIONS, ids=lambda command: command.__name__)
def test_help_of_evaluations_has_an_example(command: Callable[..., None], run: Any) -> None:
    name = command.__name__
    ran = run("evaluate", name, "--help")
    assert ran.code == 0
    assert f"Example: trakstore evaluate {name}" in ran.out
    check_whole(["evaluate", *EVALUATIONS[command].split()])
    assert command.__doc__ is not None
    assert "--json" in ran.out


def test_without_a_command_comes_the_help(run: Any) -> None:
    ran = run()
    assert ran.code == 0
    for command in app.EXAMPLES:
        assert command.__name__.rstrip("_") in ran.out
    assert run("--version").out == f"trakstore {ts.__version__}\n"


FAULTS = {
    "labels": (
        "job.datasets['train'].tensors[1][1] = 3",
        "has label 3, the model has classes 0 to 2",
    ),
    "nan": ("job.checkpoints[1]['weight'][0, 0] = float('nan')", "NaN or infinite features"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_data_and_weights(fault: str, run: Any, jobs: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    more = f"\n\ndef faulty():\n    job = small()\n    {change}\n    return job\n"
    (tmp_path / "faulty.py").write_text(jobs.read_text() + more)
    ran = run("featurize", f"{tmp_path}/faulty.py:faulty", "--store", tmp_path / "a.zarr")
    assert ran.code == 2
    assert message in ran.err
    assert [one[:6] for one in ran.err.splitlines()] == ["error:"]
    assert not (tmp_path / "a.zarr").exists()


def test_features_of_another_dimension(run: Any, tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("identity"))
    for split, dim in (("train", 4), ("test", 5)):
        store.write_split(0, split, np.ones((6, dim), np.float32), out_to_loss=np.ones(6))
    before = set(tmp_path.rglob("*"))
    ran = run("topk", tmp_path / "a.zarr", "--k", "2")
    assert (ran.code, ran.out) == (2, "")
    assert "dimension 5" in ran.err or "dimension 4" in ran.err
    assert [one[:6] for one in ran.err.splitlines()] == ["error:"]
    assert set(tmp_path.rglob("*")) == before
