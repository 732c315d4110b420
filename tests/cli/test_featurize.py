"""``trakstore featurize``: jobs from files, shares of workers, and a run that is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.cli.narrowed_job import of_last_layers
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features import load_job


def test_a_slurm_array_is_seen(
    run: Any, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    ran = run("featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr")
    assert "rank 1 of 2" in ran.out


def test_a_job(run: Any, jobs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    ran = run("featurize", f"{jobs}:small", "--store", place)
    assert ran.code == 0
    assert "wrote 52 rows in 14 blocks" in ran.out
    store = ts.open_store(place)
    assert store.epochs == (1, "final")
    assert all(one.complete for one in store.status())
    again = run("featurize", f"{jobs}:small", "--store", place)
    assert "nothing to write" in again.out


def test_added_rows_are_told(run: Any, jobs: Path, tmp_path: Path) -> None:
    added = """
from torch.utils.data import Subset


def less():
    job = small()
    return replace(job, datasets={name: Subset(one, range(5)) for name, one in job.datasets.items()})


def more():
    return replace(small(), append=True)
"""
    jobs.write_text(jobs.read_text() + added)
    for name, rows in (("less", 20), ("more", 52 - 20)):
        ran = run("featurize", f"{jobs}:{name}", "--store", tmp_path / "a.zarr")
        assert f"wrote {rows} rows in " in ran.out


def test_gradients_of_the_last_layers(run: Any, jobs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    asked = ["featurize", f"{jobs}:deep", "--store", place]
    ran = run(*asked, "--last-layers", "1")
    assert ran.code == 0 and "last layers alone: 3 (3 x 5)" in ran.err
    names = [name for name, _ in ts.open_store(place).spec.parameters.shapes]
    assert names == ["3.weight", "3.bias"]
    assert "parameters" in run(*asked).err  # of all layers is another store


def test_the_last_layers_of_a_model_that_a_function_builds(
    run: Any, jobs: Path, tmp_path: Path
) -> None:
    places = tmp_path / "a.zarr", tmp_path / "b.zarr"
    for name, place in zip(("small", "built"), places, strict=True):
        ran = run("featurize", f"{jobs}:{name}", "--store", place, "--last-layers", "1")
        assert ran.code == 0 and "last layers alone: the model (3 x 4)" in ran.err
    one, other = (ts.open_store(place).split(1, "train").column("features") for place in places)
    np.testing.assert_array_equal(one.read(0, 20), other.read(0, 20))


def test_last_layers_of_what_ranks_are_to_share(jobs: Path) -> None:
    """A model that has no weights before is not built whole; another stays off the card."""
    with pytest.raises(TrakStoreError, match=r"--last-layers .* name the layers in the job"):
        of_last_layers(load_job(f"{jobs}:built"), 1, None, to_shard=True)
    job, _ = of_last_layers(load_job(f"{jobs}:deep"), 1, "no such device", to_shard=True)
    assert job.parameters == ("3.weight", "3.bias")


@pytest.mark.parametrize("name", ["regression", "several"])
def test_labels_that_are_no_strata(name: str, run: Any, jobs: Path, tmp_path: Path) -> None:
    asked = ["featurize", f"{jobs}:{name}", "--store", tmp_path / "a.zarr", "--sample-rate", "0.2"]
    ran = run(*asked)
    if name == "regression":
        assert ran.code == 0 and "note: samples are drawn without strata" in ran.err
        assert ts.open_store(tmp_path / "a.zarr").split(0, "train").rows == 4
    else:
        assert "stratify_by='label' is a sequence of 3" in run(*asked, "--stratify-by", "label").err


def test_a_share_of_the_train_samples(run: Any, jobs: Path, tmp_path: Path) -> None:
    """Rows of the drawn samples, under the names that they have among all."""
    whole, part = tmp_path / "a.zarr", tmp_path / "b.zarr"
    assert run("featurize", f"{jobs}:small", "--store", whole).code == 0
    asked = ["featurize", f"{jobs}:small", "--store", part, "--sample-rate", "0.5"]
    assert run(*asked, "--sample-seed", "3").code == 0
    every, some = ts.open_store(whole), ts.open_store(part)
    ids = some.split(1, "train").to_xarray()["sample_id"].values
    labels = every.split(1, "train").to_xarray()["label"].values
    counts = np.bincount(labels)
    np.testing.assert_array_equal(
        np.bincount(labels[ids]), [max(2, round(0.5 * count)) for count in counts]
    )
    np.testing.assert_allclose(
        some.features(1, "train").values,
        every.features(1, "train").values[ids],
        rtol=1e-5,
        atol=1e-6,
    )
    assert some.split(1, "test").rows == every.split(1, "test").rows
    assert "dataset" in run(*asked, "--sample-seed", "4").err  # another draw is another data set
    refused = run("featurize", f"{jobs}:small", "--store", part, "--sample-rate", "1.5")
    assert refused.code == 2 and "at most 1" in refused.err
    refused = run(*asked, "--stratify-by", "colour")
    assert refused.code == 2 and "stratify_by='colour'" in refused.err


def test_a_precision_is_asked_for(run: Any, jobs: Path, tmp_path: Path) -> None:
    asked = ["featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr", "--precision"]
    assert run(*asked, "bfloat16").code == 0
    assert ts.open_store(tmp_path / "a.zarr").spec.autocast == "bfloat16"
    other = run(*asked, "tf32")
    assert other.code == 2 and "holds autocast bfloat16, this run has tf32" in other.err
    wrong = run(*asked, "half")
    assert (
        wrong.code == 2 and "precision is one of float32, tf32, bfloat16, got 'half'" in wrong.err
    )


def test_info_tells_where_features_come_from(run: Any, jobs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    assert run("featurize", f"{jobs}:small", "--store", place, "--split", "test").code == 0
    document = json.loads(run("info", place, "--json").out)
    assert [(one["epoch"], one["rows"]) for one in document["runs"]] == [(1, 6), ("final", 6)]
    assert {one["job"] for one in document["runs"]} == {f"{jobs}:small"}
    assert all(one["versions"]["torch"] and one["began"] for one in document["runs"])
    checkpoints = {one["checkpoint"] for one in document["splits"]}
    assert len(checkpoints) == 2 and all(len(one) == 64 for one in checkpoints)
    assert len({one["dataset"] for one in document["splits"]}) == 1
    assert "last run" in run("info", place).out


def test_json_is_all_of_standard_output(run: Any, jobs: Path, tmp_path: Path) -> None:
    ran = run("featurize", f"{jobs}:noisy", "--store", tmp_path / "a.zarr", "--json")
    document = json.loads(ran.out)
    assert document["rows"] == 52
    assert (document["rank"], document["world_size"]) == (0, 1)
    assert "noise from a job" in ran.err


def test_some_of_it(run: Any, jobs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    options = ["--epoch", "1", "--split", "test", "--batch-size", "2", "--device", "cpu"]
    assert run("featurize", f"{jobs}:small", "--store", place, *options).code == 0
    store = ts.open_store(place)
    assert [(one.epoch, one.split) for one in store.status()] == [(1, "test")]


def test_a_rank_says_who_it_is(run: Any, jobs: Path, tmp_path: Path) -> None:
    asked = ["featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr"]
    ran = run(*asked, "--rank", "1", "--world-size", "2")
    assert "rank 1 of 2: wrote" in ran.out
    assert all(one.complete for one in ts.open_store(tmp_path / "a.zarr").status())  # it helped


def test_a_module_of_the_working_directory(
    run: Any, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwdjobs.py").write_text(jobs.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    assert run("featurize", "cwdjobs:small", "--store", "a.zarr", "--epoch", "1").code == 0


STOPPING = """
import os, time
from pathlib import Path
import torch
from trakstore import ProjectionSpec
from trakstore.features import Job

class Samples:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        if "STOP" in os.environ and list(Path("a.zarr").rglob("written/c.1.0")):
            time.sleep(60)
        return torch.full((4,), index / 40), index % 3

def job():
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(0.5); model.bias.fill_(0.1)
    return Job(model, {"train": Samples()}, projector=ProjectionSpec("sjlt", dim=8), batch_size=4,
               block_rows=4)
"""


def test_control_c_keeps_what_is_committed(
    run: Any, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs.py").write_text(STOPPING)
    command = ["featurize", "jobs.py:job", "--store", "a.zarr"]
    started = [sys.executable, "-m", "trakstore", *command]
    stopping = {**environment, "STOP": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(started, cwd=tmp_path, env=stopping, **pipes) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.rglob("written/c.1.0")) and time.monotonic() < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    written = ts.open_store(tmp_path / "a.zarr").status()[0].written_blocks
    assert 2 <= written <= 4  # blocks are written while the next is computed
    assert err == (
        f"stopped: rows committed in a.zarr: train at epoch 0 {4 * written}/40\n"
        "interrupted: what was committed is kept; give the same command again\n"
    )
    monkeypatch.chdir(tmp_path)
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert f"wrote {40 - 4 * written} rows in {10 - written} blocks" in ran.out
    assert np.isfinite(ts.open_store(tmp_path / "a.zarr").features(0, "train").values).all()


def test_bad_rows_are_skipped_when_asked(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import torch\n"
        "from trakstore.features import Job\n"
        "torch.manual_seed(0)\n"
        "x = torch.arange(60.0).reshape(20, 3)\n"
        "x[11] = torch.nan\n"
        "rows = torch.utils.data.TensorDataset(x, torch.arange(20) % 2)\n"
        "job = Job(torch.nn.Linear(3, 2), {'train': rows}, batch_size=4, block_rows=4)\n"
    )
    asked = ["featurize", f"{path}:job", "--store", tmp_path / "s"]
    assert "row 11" in run(*asked).error
    assert run(*asked, "--skip-bad-rows").code == 0
    assert "1 of the masked rows" in " ".join(run("info", tmp_path / "s").out.split())


def test_a_model_is_shared_by_ranks_that_torchrun_started(
    run: Any, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    ran = run("featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr", "--fsdp")
    assert ran.code == 2
    assert "are started by torchrun" in ran.error
    ran = run("featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr", "--tp", "2")
    assert ran.code == 2
    assert "--tp divides the layers of a model that --fsdp shards" in ran.error
    assert not (tmp_path / "a.zarr").exists()


def test_names_of_a_file_begin_with_what_it_makes_itself(tmp_path: Path) -> None:
    made = "".join(f"import json as j{i}\nfrom pathlib import Path as P{i}\n" for i in range(8))
    (tmp_path / "jobs.py").write_text(f"{made}def digits(): ...\nsize = 3\n")
    with pytest.raises(NotFoundError, match="there are digits, size, j0, P0, j1"):
        load_job(f"{tmp_path / 'jobs.py'}:nope")
