"""Bad use ends with exit code 2 and one line, and writes nothing."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import check_whole

import trakstore as ts
from trakstore.cli import main
from trakstore.cli.commands import COMMANDS, EVALUATIONS, Command


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


QUERIES = {
    "epoch": (["kernel", "{store}", "--epoch", "3"], "no epoch 3"),
    "number": (["kernel", "{store}", "--epoch", "12"], "no epoch 12; there are 1, 2, final"),
    "number of scores": (
        ["topk", "{store}", "--epoch", "12"],
        "no epoch 12; there are 1, 2, final",
    ),
    "number to verify": (["verify", "{store}", "--epoch", "12"], "12; there are 1, 2, final"),
    "split": (["kernel", "{store}", "--split", "trian"], "did you mean 'train'"),
    "targets": (
        ["topk", "{store}", "--targets", "tset"],
        "'tset'; did you mean 'test'",
    ),
    "method": (["topk", "{store}", "--method", "track"], "did you mean 'trak'"),
    "score method": (["score", "{store}", "--save", "a", "--method", "x"], "no method 'x'"),
    "kept": (
        ["score", "{store}", "--save", "a", "--top", "2", "--threshold", ".1"],
        "--top and --threshold exclude each other",
    ),
    "name": (["score", "{store}", "--save", "../a"], "cannot name a score matrix"),
    "reserved": (["topk", "{store}", "--epoch", "grams"], "keeps for itself"),
    "k": (["topk", "{store}", "--k", "41"], "1..40"),
    "k 0": (["topk", "{store}", "--k", "0"], "see trakstore topk --help"),
    "k nothing": (["topk", "{store}", "--k"], "requires an argument; see trakstore topk --help"),
    "share nothing": (
        ["evaluate", "lds", "{store}", "--share"],
        "requires an argument; see trakstore evaluate lds --help",
    ),
    "target": (["topk", "{store}", "--target", "7"], "no sample id '7'"),
    "target twice": (
        ["topk", "{store}", "--target", "t3", "--target", "@3"],
        "one target is named twice: '@3', row 3",
    ),
    "zeros": (["topk", "{store}", "--epoch", "01"], "'01' is no number of an epoch"),
    "digits": (["topk", "{store}", "--epoch", "9" * 5000], "19 digits at most"),
    "user": (["info", "~nobody-at-all/a.zarr"], "leads to no home folder"),
    "long": (["info", "x" * 300], "File name too long"),
    "long job": (["featurize", "x" * 300 + ".py:a", "--store", "b"], "File name too long"),
    "long list": (
        ["evaluate", "mislabels", "{store}", "--wrong", "x" * 300],
        "the system refuses: File name too long",
    ),
    "dropped": (["drop", "{store}", "--scores", "a"], "no scores 'a'; there are none yet"),
    "nothing dropped": (["drop", "{store}"], "Missing option '--scores'"),
    "too many rows": (["estimate", "--rows", "9" * 23], "Invalid value for '--rows'"),
    "rate": (["estimate", "--rate", "inf"], "--rate is a number of samples, got inf"),
    "row": (["topk", "{store}", "--target", "@7"], "from @0 to @6"),
    "order": (["topk", "{store}", "--smallest", "--magnitude"], "exclude each other"),
    "size": (["topk", "{store}", "--memory-limit", "many"], "600MB"),
    "too little memory": (["topk", "{store}", "--memory-limit", "1kB"], "--memory-limit)"),
    "damping": (["kernel", "{store}", "--damping", "-1"], "damping must be"),
    "damping word": (["kernel", "{store}", "--damping", "x"], "see trakstore kernel --help"),
    "negative size": (
        ["kernel", "{store}", "--memory-limit", "-5MB"],
        "must be positive, got '-5MB'",
    ),
    "negative epoch": (["kernel", "{store}", "--epoch", "-1"], "'-1' cannot name an epoch"),
    "epochs of distances": (["neighbours", "{store}"], "name one (--epoch) of 1, 2, final"),
    "one epoch twice": (
        ["transitions", "{store}", "--before", "1", "--after", "1"],
        "between two epochs, got '1' twice",
    ),
    "dynamics": (["dynamics", "{store}"], "TrainingDynamicsTracker records them"),
    "folder of a file": (
        ["export", "{store}", "--epoch", "1", "--to", "{folder}/no/a.npy"],
        "there is no folder {folder}/no",
    ),
    "a split's folder": (["info", "{store}/1"], "give the folder that featurize"),
    "a file": (["info", "{store}/zarr.json"], "a store is a folder"),
    "stability store": (
        ["evaluate", "stability", "{store}", "--other", "{folder}/x"],
        "no store at",
    ),
    "wrong file": (
        ["evaluate", "mislabels", "{store}", "--wrong", "{folder}/x"],
        "there is no file {folder}/x",
    ),
    "wrong split": (["evaluate", "mislabels", "{store}", "--split", "trian"], "mean 'train'"),
    "models": (["evaluate", "lds", "{store}", "--models", "m"], "named 'm'; there are none yet"),
    "report place": (["report", "{store}", "-o", "{folder}/no/a.html"], "there is no folder"),
    "report job": (["report", "{store}", "--job", "jobs"], "a job is named like jobs.py:name"),
    "report epoch": (["report", "{store}", "--epoch", "fnal"], "did you mean 'final'"),
    "no store": (["info", "{folder}/nothing"], "there is no store"),
    "not a store": (["info", "{folder}"], "there is no store"),
    "no command": (["inof"], "No such command"),
    "no argument": (["info"], "Missing argument"),
    "no save": (["score", "{store}"], "Missing option '--save'"),
    "option": (["info", "{store}", "--jsno"], "No such option"),
    "option of others": (["evolve", "{store}", "--learning-rate", "1"], "No such option"),
    "damping of others": (["neighbours", "{store}", "--damping", "1"], "No such option"),
    "root option": (["--nope"], "see trakstore --help"),
}


@pytest.mark.parametrize("case", QUERIES)
def test_queries(case: str, run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    arguments, said = QUERIES[case]
    before = listing(tmp_path)
    ran = run(*(one.format(store=store.location, folder=tmp_path) for one in arguments))
    assert said.format(folder=tmp_path) in ran.error
    assert listing(tmp_path) == before


UNWRITABLE = {
    "report": ["report", "{store}", "-o", "/proc/x.html"],
    "export": ["export", "{store}", "--epoch", "1", "--to", "/proc/x.npy"],
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    case: str, run: Any, store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("it was found too late")

    monkeypatch.setattr("trakstore.report.write.scores_by_name", work)
    monkeypatch.setattr("trakstore.storage.exchange.to_files._write_npy", work)
    ran = run(*(one.format(store=store.location) for one in UNWRITABLE[case]))
    assert "cannot write /proc/x." in ran.error and "choose another place" in ran.error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_after_the_work(run: Any, store: ts.FeatureStore) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    ran = run("report", store.location, "-o", "/dev/full", "--count", "1", "--k", "2")
    assert "cannot write /dev/full: No space left on device; choose another place" in ran.error


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_store_where_none_can_be_made(run: Any, jobs: Path) -> None:
    ran = run("featurize", f"{jobs}:small", "--store", "/proc/x.zarr")
    assert "/proc/x.zarr cannot be written to" in ran.error
    assert "choose another place" in ran.error


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


def test_a_process_that_may_start_no_threads(
    run: Any, store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    ran = run("topk", store.location, "--k", "2")
    assert "start no more threads; raise the limit (ulimit -u), or run fewer" in ran.error


def test_a_folder_whose_name_is_no_text(run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    place, page = tmp_path / os.fsdecode(b"a\xff.zarr"), tmp_path / os.fsdecode(b"\xff.html")
    shutil.copytree(str(store.location), place)
    assert run("info", place).code == run("topk", place, "--k", "2").code == 0
    assert run("report", place, "-o", page, "--count", "1", "--k", "2").code == 0
    assert b"a\\udcff.zarr" in page.read_bytes()


CARELESS = """

def other_ids():
    return replace(small(), ids={"trian": range(20)})

def other_rates():
    return replace(small(), learning_rates={7: 0.1})

def listed():
    return replace(small(), datasets=[small().datasets["train"]])

def raises():
    raise RuntimeError("boom")

def fails():
    return {}["a"]

async def awaited():
    return small()

def asks(what):
    return small()
"""
JOBS = {
    "file": (
        "{folder}/job.py:small",
        "there is no job file {folder}/job.py; did you mean 'jobs.py'?",
    ),
    "no name": ("{folder}/jobs.py", "add a name of that file: {folder}/jobs.py:name"),
    "module": ("nowhere.jobs:small", "there is no module"),
    "form": ("small", "a job is named like"),
    "name": ("{folder}/jobs.py:smal", "did you mean 'small'"),
    "wrong": ("{folder}/jobs.py:wrong", "gave a dict"),
    "number": ("{folder}/jobs.py:number", "gave a int"),
    "epoch": ("{folder}/jobs.py:small --epoch 2", "the job has no epoch 2"),
    "split": ("{folder}/jobs.py:small --split trian", "did you mean 'train'"),
    "device": ("{folder}/jobs.py:small --device gpu", "device 'gpu' cannot be used"),
    "no such gpu": ("{folder}/jobs.py:small --device cuda:99", "device 'cuda:99' cannot be used"),
    "meta": ("{folder}/jobs.py:small --device meta", "tensors there have no numbers"),
    "epoch -1": ("{folder}/jobs.py:small --epoch -1", "'-1' cannot name an epoch"),
    "size": ("{folder}/jobs.py:small --memory-limit 0", "must be positive"),
    "colons": ("{folder}/jobs.py:small:x", "names no module; name a file like jobs.py:name"),
    "ids": ("{folder}/jobs.py:other_ids", "has ids of the split 'trian', and no such split; did"),
    "rates": (
        "{folder}/jobs.py:other_rates",
        "a learning rate of epoch 7, and no such epoch; there",
    ),
    "datasets": (
        "{folder}/jobs.py:listed",
        "datasets must be a mapping, like {{'train': data}}, got",
    ),
    "raises": (
        "{folder}/jobs.py:raises",
        "jobs.py:raises: RuntimeError: boom (jobs.py, line ",
    ),
    "fails": ("{folder}/jobs.py:fails", "jobs.py:fails: KeyError: 'a' (jobs.py, line "),
    "awaited": ("{folder}/jobs.py:awaited", "must be awaited; a job is made by a plain function"),
    "arguments": ("{folder}/jobs.py:asks", "needs arguments; a job is made by a function without"),
    "built in": ("builtins:int", "gave a int"),
    "built in that fails": ("builtins:type", "builtins:type: TypeError: "),
    "rank": ("{folder}/jobs.py:small --rank 2 --world-size 2", "rank"),
    "batch": ("{folder}/jobs.py:small --batch-size 0", "see trakstore featurize --help"),
    "value": ("{folder}/jobs.py:small --batch-size nine", "got 'nine'"),
}


@pytest.mark.parametrize("case", JOBS)
def test_jobs(case: str, run: Any, jobs: Path, tmp_path: Path) -> None:
    text, said = JOBS[case]
    jobs.write_text(jobs.read_text() + CARELESS)
    place = tmp_path / "new.zarr"
    arguments = text.format(folder=jobs.parent).split()
    ran = run("featurize", *arguments, "--store", place, "--json")
    assert said.format(folder=jobs.parent) in ran.error
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


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_an_example(command: Command, run: Any) -> None:
    ran = run(command.name, "--help")
    assert ran.code == 0
    assert f"Example: trakstore {command.name}" in ran.out
    check_whole(command.example.split()[1:])
    assert "--json" in ran.out


@pytest.mark.parametrize("command", [*COMMANDS, *EVALUATIONS], ids=lambda command: command.name)
def test_the_list_of_commands_says_what_the_help_of_each_begins_with(command: Command) -> None:
    said = inspect.getdoc(command.load()) or ""
    assert command.summary == said.split("\n\n")[0].replace("\n", " ")


def test_without_a_command_comes_the_help(run: Any) -> None:
    ran = run()
    assert ran.code == 0
    for command in COMMANDS:
        assert f" {command.name} " in ran.out
    assert run("--version").out == f"trakstore {ts.__version__}\n"


BROKEN = {
    "syntax": ("def job(:\n", "broken.py, line 1: invalid syntax"),
    "code": ("1 / 0\n", "ZeroDivisionError: division by zero (broken.py, line 1)"),
    "import": ("import not_there\n", "imports 'not_there', which is not there; install it"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", ["broken.py:job", "broken:job"])
def test_job_files_that_cannot_be_read(
    fault: str, name: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = BROKEN[fault]
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    importlib.invalidate_caches()
    assert said in run("featurize", name, "--store", "a.zarr").error


FAULTS = {
    "labels": (
        "job.datasets['train'].tensors[1][1] = 3",
        "train at epoch 1: sample 1 has label 3, the model has classes 0 to 2",
    ),
    "empty": ("job.datasets['train'] = []", "the data set 'train' is empty"),
    "shape": (
        "job.datasets['train'] = [(torch.zeros(5), 0)] * 8",
        "does not take the first samples (torch.float32 of (2, 5), torch.int64 of (2,))",
    ),
    "dtype": (
        "job.datasets['train'] = [(torch.zeros(4).double(), 0)] * 8",
        "give samples of the shape and dtype",
    ),
    "ragged": (
        "job.datasets['train'] = [(torch.zeros(4 + i), 0) for i in range(8)]",
        "samples 0 to 1 cannot be put into one batch",
    ),
    "nan": (
        "job.checkpoints[1]['weight'][0, 0] = float('nan')",
        "train at epoch 1: 2 rows have NaN",
    ),
    "no file": (
        "job.checkpoints[2] = 'missing.pt'",
        "there is no checkpoint file missing.pt of epoch 2; correct the job's checkpoints",
    ),
    "training state": (
        "job.checkpoints[1] = {'model': job.checkpoints[1], 'average': job.checkpoints[1]}",
        "checkpoint 1['model'] and checkpoint 1['average'] both hold weights of this model",
    ),
    "module": (
        "job.checkpoints[1] = torch.nn.Linear(2, 2)",
        "checkpoint 1 is a module, Linear, which training may change: give its weights",
    ),
    "no state": (
        "job.checkpoints[1] = [1, 2]",
        "checkpoint 1 needed a path, a mapping of names to tensors or a function that gives one, got a",
    ),
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
