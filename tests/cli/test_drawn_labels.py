"""Commands on a store that has rows with drawn labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.features import Job, featurize_job
from trakstore.report import write_report


def stored(where: Path, sampled: int, dim: int | None = None) -> ts.FeatureStore:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=generator)
    data = list(zip(x, torch.arange(30) % 3, strict=True))
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 5, generator=generator))
        model.bias.zero_()
    projector = None if dim is None else ts.ProjectionSpec("sjlt", dim=dim)
    how: dict[str, Any] = {"output": "cross_entropy", "sampled": sampled, "projector": projector}
    job = Job(model, {"train": data, "test": data[:4]}, **how)
    featurize_job(job, where, progress=False)
    return ts.open_store(where)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    return stored(tmp_path_factory.mktemp("plain") / "s.zarr", 0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    return stored(tmp_path_factory.mktemp("drawn") / "s.zarr", 3)


@pytest.mark.parametrize(
    ("options", "kernel", "damping"),
    [
        ((), "sampled", 0.1),
        (("--kernel", "train"), "train", 1.0),
        (("--damping", "2"), "sampled", 2.0),
    ],
)
def test_lists_are_those_of_the_kernel_that_is_asked_for(
    run: Any, drawn: ts.FeatureStore, options: tuple[str, ...], kernel: Any, damping: float
) -> None:
    document = json.loads(run("topk", drawn.location, "--k", "3", "--json", *options).out)
    scores = ts.trak_scores(drawn, kernel=kernel, damping=damping)
    wanted = ts.top_k(scores, 3)["score"].values
    got = [[one["score"] for one in target["top"]] for target in document["targets"]]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_commands_whose_kernel_is_of_train_rows_do_not_see_drawn_ones(
    run: Any, plain: ts.FeatureStore, drawn: ts.FeatureStore
) -> None:
    for command in (("evaluate", "mislabels"), ("kernel",)):
        one, other = (json.loads(run(*command, s.location, "--json").out) for s in (plain, drawn))
        for document in (one, other):
            document.pop("location")
        assert one == other
        assert "--kernel" not in run(*command, "--help").out


def test_the_report_says_the_damping_of_its_kernel(drawn: ts.FeatureStore, tmp_path: Path) -> None:
    for kernel, said in ((None, "c = 0.1"), ("train", "c = 1")):
        page = tmp_path / f"{kernel}.html"
        write_report(drawn, page, kernel=kernel)  # type: ignore[arg-type]
        text = page.read_text()
        assert f">{said}<" in text, said


def test_rows_are_dropped_and_never_made_again_unasked(run: Any, tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", 2, 8)
    before = run("topk", store.location, "--k", "3", "--json").out
    left = store.split(0, "train~sampled").to_xarray()["features"].values
    said = run("drop", store.location, "--rows", "train~sampled", "--epoch", "0").out
    assert said.endswith("rows of train~sampled at epochs 0\n")
    assert json.loads(run("drop", store.location, "--rows", "train~sampled", "--json").out) == {
        "location": str(store.location),
        "dropped": [],
        "rows": "train~sampled",
        "epochs": [0],
    }
    folder = tmp_path / "s.zarr/0/train~sampled/features/c"
    assert not folder.exists()
    after = json.loads(run("topk", store.location, "--k", "3", "--json").out)
    for one, other in zip(after["targets"], json.loads(before)["targets"], strict=True):
        got, wanted = ([entry["score"] for entry in side["top"]] for side in (one, other))
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
    stored(tmp_path / "s.zarr", 2, 8)  # featurize once more
    assert not folder.exists()
    shown = run("info", store.location).out
    assert "of train~sampled at 1 epoch, on purpose: their gram is kept" in shown
    assert "complete: all 94 rows of 3 splits are there" in shown
    document = json.loads(run("info", store.location, "--json").out)
    assert [one["split"] for one in document["splits"] if one["dropped"]] == ["train~sampled"]
    said = run("verify", store.location).out
    assert "of 1 split the features were dropped, and their gram is kept" in said
    store.drop(0, "train~sampled")
    stored(tmp_path / "s.zarr", 2, 8)
    np.testing.assert_array_equal(store.features(0, "train~sampled"), left)


def test_a_damaged_note_is_shown_and_repaired(run: Any, tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", 2, 8)
    run("drop", store.location, "--rows", "train~sampled")
    store.location.put({"_dropped/0/train~sampled/zarr.json": b"{}"})
    ran = run("info", store.location)
    assert ran.code == 0 and "damaged: " in ran.out and "verify --repair" in ran.out
    (split,) = [
        one
        for one in json.loads(run("info", store.location, "--json").out)["splits"]
        if one["damaged_note"]
    ]
    assert split["split"] == "train~sampled" and not split["dropped"]
    ran = run("topk", store.location, "--k", "3")
    assert ran.code == 2 and "verify --repair" in ran.err
    run("verify", store.location, "--repair")
    assert run("verify", store.location).code == 0
    assert run("topk", store.location, "--k", "3").code == 0


def test_rows_that_cannot_be_dropped(
    run: Any, plain: ts.FeatureStore, drawn: ts.FeatureStore
) -> None:
    ran = run("drop", drawn.location, "--rows", "train~sampled")
    assert ran.code == 2
    assert "takes 33.6 MB, its rows take 737.3 kB: to keep the rows is less" in ran.err
    for split, words in {
        "train": "the rows of train are what scores are products of",
        "train~sampled": "no epoch has a split 'train~sampled'; there are test, train",
    }.items():
        ran = run("drop", plain.location, "--rows", split)
        assert ran.code == 2 and words in ran.err
