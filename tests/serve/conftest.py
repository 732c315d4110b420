"""A small job on images with an answer to every question, and the store that it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import trakstore as ts

JOBS = """
import torch
from torch import nn
from trakstore import ProjectionSpec
from trakstore.features import Job

IDS = {"train": [f"a{i}" for i in range(40)], "test": list(range(100, 112))}


def images():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    states = {
        epoch: {
            name: 0.3 * torch.randn(one.shape, generator=generator)
            for name, one in model.state_dict().items()
        }
        for epoch in (1, 2, 3, "final")
    }
    datasets = {
        split: torch.utils.data.TensorDataset(
            torch.rand(len(ids), 1, 8, 8, generator=generator),
            torch.randint(3, (len(ids),), generator=generator),
        )
        for split, ids in IDS.items()
    }
    return Job(
        model,
        datasets,
        projector=ProjectionSpec("sjlt", dim=16),
        checkpoints=states,
        batch_size=5,
        block_rows=8,
        ids=IDS,
        learning_rates=dict.fromkeys(states, 0.1),
    )


def others():
    job = images()
    job.checkpoints[2]["1.bias"] += 1
    return job


def repeated(given):
    import numpy as np

    if "text" in given:
        raise ValueError("no texts in /secret/place")
    pixels = np.asarray(given["image"].convert("L").resize((8, 8)), np.float32) / 255
    return torch.from_numpy(pixels)[None], torch.tensor(given["label"] or 0)


def sleeping(given):
    import time

    time.sleep(100)
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``jobs.py``, and ``run.zarr`` by its job ``images``."""
    pytest.importorskip("PIL")
    from trakstore.features import featurize_job, load_job

    made = tmp_path_factory.mktemp("served")
    (made / "jobs.py").write_text(JOBS)
    featurize_job(load_job(f"{made}/jobs.py:images"), made / "run.zarr", progress=False)
    return made


@pytest.fixture(scope="session")
def job_name(folder: Path) -> str:
    return f"{folder}/jobs.py:images"


@pytest.fixture
def store(folder: Path) -> ts.FeatureStore:
    """The store, which no test changes."""
    return ts.open_store(folder / "run.zarr")


@pytest.fixture
def own_store(folder: Path, tmp_path: Path) -> ts.FeatureStore:
    """A copy of it that a test may change."""
    shutil.copytree(folder / "run.zarr", tmp_path / "run.zarr")
    return ts.open_store(tmp_path / "run.zarr")


@pytest.fixture(scope="session")
def query(folder: Path, job_name: str) -> ts.Query:
    return ts.Query(ts.open_store(folder / "run.zarr"), job_name)
