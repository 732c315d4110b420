"""``write_report``: the page that the command writes, in one call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.cli import main
from trakstore.features import load_job
from trakstore.report import write_report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

JOB = """
import numpy as np
import torch
from trakstore import ProjectionSpec
from trakstore.features import Job


def small():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, 3)
    datasets = {
        split: torch.utils.data.TensorDataset(
            torch.randn(rows, 4, generator=generator),
            torch.randint(3, (rows,), generator=generator),
        )
        for split, rows in (("train", 20), ("test", 6))
    }
    states = {
        epoch: {name: torch.randn(one.shape, generator=generator) for name, one in
                model.state_dict().items()}
        for epoch in (1, 2, 3)
    }
    return Job(model, datasets, projector=ProjectionSpec("sjlt", dim=8), checkpoints=states)


def words(sample):
    return f"sample of {len(sample)}: {sample[0]}"


def place(sample):
    return f"{sample.split} {sample.id} in row {sample.row}"


def number_list(sample):
    return [3]


def no_text(sample):
    return b"bytes"


def missing(sample):
    return sample.text


def two(sample, other):
    return ""


class Tokenizer:
    all_special_ids = ()

    def decode(self, ids, **options):
        return "tokens"


number, tokenizer = 3, Tokenizer()
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a job and functions; beside it the job's store, ``run.zarr``."""
    path = tmp_path_factory.mktemp("job") / "jobs.py"
    path.write_text(JOB)
    store = str(path.with_name("run.zarr"))
    assert main(["featurize", f"{path}:small", "--store", store]) == 0
    return path


@pytest.fixture
def store(jobs: Path) -> ts.FeatureStore:
    return ts.open_store(jobs.with_name("run.zarr"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


ASKED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nothing": ([], {}),
    "job": (["--job", "{jobs}:small"], {"job": "{jobs}:small"}),
    "rendered": (
        ["--job", "{jobs}:small", "--render", "{jobs}:words", "--count", "3", "--k", "2"],
        {"job": "{jobs}:small", "render": "{jobs}:words", "count": 3, "k": 2},
    ),
    "targets": (["--target", "4", "--target", "@0"], {"target_ids": [4, "@0"]}),
    "target": (["--target", "5"], {"target_ids": np.array([5])}),
    "transition": (
        ["--before", "1", "--after", "2", "--null", "2,3", "--damping", "0.5"],
        {"before": 1, "after": 2, "null": [(2, 3)], "damping": 0.5},
    ),
    "method": (
        ["--method", "influence", "--epoch", "3", "--memory-limit", "1GB"],
        {"method": "influence", "epochs": 3, "memory_limit": "1GB"},
    ),
    "splits": (
        ["--targets", "train", "--train", "train", "--allow-other-weights"],
        {"targets": "train", "allow_other_weights": True},
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_the_command_writes_the_same_page(
    case: str, jobs: Path, store: ts.FeatureStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trakstore.report.sections.now", lambda: "now")
    words, options = ASKED[case]
    asked = [one.format(jobs=jobs) for one in words]
    assert main(["report", str(store.location), "-o", str(out), *asked]) == 0
    by_command = out.read_bytes()
    given = {
        name: one.format(jobs=jobs) if isinstance(one, str) else one
        for name, one in options.items()
    }
    written = write_report(store, out, **given)
    assert out.read_bytes() == by_command
    assert (written.path, written.bytes) == (out, len(by_command))


def test_the_command_tells_its_steps(
    store: ts.FeatureStore, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trakstore.progress._SECONDS", 0.01)
    assert main(["report", str(store.location), "-o", str(out)]) == 0
    said = capsys.readouterr().err.splitlines()
    steps = [line.partition(", ")[0] for line in said if line.endswith(" so far")]
    assert "report: charts and texts of the page" in steps  # these take a second
    assert all(one.startswith("report: ") for one in steps)
    write_report(store, out)
    assert capsys.readouterr().err == ""  # who calls it from Python has a log of his own


def test_a_job_and_a_function_may_be_given_themselves(
    jobs: Path, store: ts.FeatureStore, out: Path
) -> None:
    job = load_job(f"{jobs}:small")
    before = {name: one.clone() for name, one in job.model.state_dict().items()}
    written = write_report(store, str(out), job=job, render=lambda sample: f"label {sample[1]}")
    page = out.read_text()
    assert (written.targets, written.token_ids, written.path) == (6, False, out)
    labels = {int(label) for _, label in job.datasets["test"]}
    assert all(f"label {one}" in page for one in labels) and "<dt>predicted</dt>" in page
    assert "the Job and &lt;lambda&gt;" in page
    after = job.model.state_dict()
    assert all((after[name] == one).all() for name, one in before.items())


def test_an_absolute_damping(store: ts.FeatureStore, out: Path) -> None:
    write_report(store, out, damping=ts.Damping(absolute=0.25), count=1, k=1, epochs=3)
    page = out.read_text()
    assert "<dd>λ = 0.25</dd>" in page and "<td>0.25</td>" in page


def test_without_a_job_a_function_gets_the_place(
    jobs: Path, store: ts.FeatureStore, out: Path
) -> None:
    write_report(store, out, render=f"{jobs}:place", target_ids="@5", k=1)
    assert "test 5 in row 5" in out.read_text()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "k": ({"k": 0}, r"k must be an integer from 1 to 20, got 0"),
    "half k": ({"k": 2.5}, r"k must be an integer from 1 to 20, got 2.5"),
    "count": ({"count": 201}, r"count must be an integer from 1 to 200, got 201"),
    "target": ({"target_ids": [9]}, "test has no sample id '9'"),
    "target twice": ({"target_ids": [2, "@2"]}, "one target is named twice: '@2', row 2"),
    "targets": ({"target_ids": range(201)}, "shows 200 targets at most, got 201"),
    "method": ({"method": "track"}, "did you mean 'trak'"),
    "epoch": ({"epochs": [7]}, "no epoch 7"),
    "before": ({"before": 7}, "no epoch 7 among the scores"),
    "same ends": ({"before": 2, "after": 2}, "a transition takes two epochs, got 2 twice"),
    "null epoch": ({"null": [(1, 7)]}, "no epoch 7 among the scores"),
    "null twice": ({"null": [(2, 2)]}, "a null takes two epochs, got one twice: 2"),
    "null itself": ({"null": [(3, 1)]}, "the null 3,1 is the transition itself"),
    "lone null": ({"null": [(2,)]}, "like 100 and 200, got 2$"),
    "bare null": ({"null": (1, 2)}, "like 100 and 200, got 1$"),
    "damping": ({"damping": -1}, "damping must be a finite number >= 0, got -1"),
    "render": ({"render": 3}, "render must be a function of a sample, or its name; 3 is no"),
    "render raises": (
        {"render": "{jobs}:missing"},
        r"jobs.py:missing: AttributeError: .* has no attribute 'text' \(jobs.py, line",
    ),
    "render of two": (
        {"render": "{jobs}:two"},
        r"two must take one argument, .* render: .*'other'",
    ),
    "built in": ({"render": iter(()).__next__}, "must take one argument"),
    "built in, raises": ({"render": abs}, "abs: TypeError: bad operand type"),
    "list": (
        {"render": "{jobs}:number_list"},
        r"number_list returned \[3\], which cannot be shown: ",
    ),
    "bytes": ({"render": "{jobs}:no_text"}, r"no_text returned b'bytes', which cannot be shown: "),
    "tokenizer": (
        {"render": "{jobs}:tokenizer"},
        r"a tokenizer decodes the samples of a job: name",
    ),
    "job": ({"job": "none.py:small"}, "there is no job file"),
    "folder": ({"path": "/"}, "is a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_refused_before_the_work(
    case: str, jobs: Path, store: ts.FeatureStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("it was found too late")

    monkeypatch.setattr("trakstore.report.write.scores_by_name", work)
    given, said = BAD[case]
    options = {
        name: one.format(jobs=jobs) if isinstance(one, str) else one for name, one in given.items()
    }
    with pytest.raises(ts.TrakStoreError, match=said):
        write_report(store, **{"path": out, **options})
    assert not out.exists()


def test_a_place_is_not_a_store(store: ts.FeatureStore, out: Path) -> None:
    with pytest.raises(ts.TrakStoreError, match="needed an open store, got its path"):
        write_report(str(store.location), out)  # type: ignore[arg-type]


def test_data_of_another_job_are_refused(jobs: Path, store: ts.FeatureStore, out: Path) -> None:
    job = load_job(f"{jobs}:small")
    rng = np.random.default_rng(0)
    others = {name: list(rng.normal(size=(len(one), 4))) for name, one in job.datasets.items()}
    job.datasets = others  # type: ignore[assignment]
    with pytest.raises(ts.TrakStoreError, match="test of the Job holds other samples"):
        write_report(store, out, job=job)


def test_without_the_extra(
    store: ts.FeatureStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # type: ignore[arg-type]
    with pytest.raises(ts.TrakStoreError, match=r'pip install "trakstore\[report\]"'):
        write_report(store, out)
