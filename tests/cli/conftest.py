"""Small jobs, and a store that two of them wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer.main

import trakstore as ts
from trakstore.cli import main

JOBS = """
from dataclasses import replace

import torch
from torch import nn
from trakstore import ProjectionSpec
from trakstore.features import Job

number = 3


def deep():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return replace(small(), model=model, checkpoints=None)


def small():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    states = {
        epoch: {
            "weight": torch.randn(3, 4, generator=generator),
            "bias": torch.randn(3, generator=generator),
        }
        for epoch in (1, "final")
    }
    datasets = {
        split: torch.utils.data.TensorDataset(
            torch.randn(rows, 4, generator=generator),
            torch.randint(3, (rows,), generator=generator),
        )
        for split, rows in (("train", 20), ("test", 6))
    }
    return Job(
        model,
        datasets,
        projector=ProjectionSpec("sjlt", dim=8),
        checkpoints=states,
        batch_size=4,
        block_rows=4,
    )


def noisy():
    print("noise from a job")
    return small()


def wrong():
    return {"model": None}


def built():
    # The same job of a function, whose model has no weights before it is loaded.
    return replace(small(), model=lambda: nn.Linear(4, 3))


def regression():
    # Of 20 samples with labels of their own each.
    inputs, numbers = torch.randn(20, 4), torch.arange(20) / 10
    data = torch.utils.data.TensorDataset(inputs, numbers)
    return Job(nn.Linear(4, 1), {"train": data}, "squared_error", ProjectionSpec("sjlt", dim=8))


def several():
    # Of samples with three numbers for a label each.
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.rand(20, 3))
    return replace(regression(), model=nn.Linear(4, 3), datasets={"train": data})
"""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a command that refused."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err


Run = Callable[..., Ran]


@pytest.fixture(scope="session", autouse=True)
def parameters_of_a_function_are_looked_up_once() -> Iterator[None]:
    """Keep what typer reads from each command's function: every run builds all commands anew."""
    with pytest.MonkeyPatch.context() as patch:
        looked_up = cache(typer.main.get_params_from_function)
        patch.setattr(typer.main, "get_params_from_function", looked_up)
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def running(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return Ran(code, *capsys.readouterr())

    return running


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process in another folder: it finds this trakstore, installed or not."""
    root = str(Path(ts.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A file with jobs."""
    path = tmp_path / "jobs.py"
    path.write_text(JOBS)
    return path


def fill(path: Path) -> ts.FeatureStore:
    """Two splits with labels at three epochs."""
    rng = np.random.default_rng(0)
    spec = ts.ProjectionSpec("sjlt", dim=8)
    store = ts.FeatureStore.create(path, projection=spec)
    for epoch in (1, 2, "final"):
        for split, rows, ids in (("train", 40, None), ("test", 7, [f"t{i}" for i in range(7)])):
            store.write_split(
                epoch,
                split,
                rng.normal(size=(rows, 8)).astype(np.float32),
                out_to_loss=rng.uniform(size=rows),
                ids=ids,
                labels=np.arange(rows) % 3,
                block_rows=8,
            )
    return store


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store below, to be copied."""
    return Path(str(fill(tmp_path_factory.mktemp("built") / "run.zarr").location))


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ts.FeatureStore:
    """Splits train (40) and test (7) at epochs 1, 2 and final."""
    shutil.copytree(built, tmp_path / "run.zarr")
    return ts.open_store(tmp_path / "run.zarr")


@pytest.fixture
def holed(store: ts.FeatureStore) -> ts.FeatureStore:
    """The same, with rows 8 to 15 of train at epoch 2 not committed."""
    marker = Path(str(store.location)) / "2" / "train" / "written" / "c.1.0"
    marker.unlink()
    return store
