"""Commands that ask a store give the numbers that the library gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.storage.group_documents import group_document
from trakstore.storage.tables.retrained import add_models


def test_info(run: Any, store: ts.FeatureStore) -> None:
    ran = run("info", store.location)
    assert (ran.code, ran.err) == (0, "")
    assert "1, 2, final" in ran.out
    assert "complete: all 141 rows of 6 splits are there" in ran.out
    assert len(ran.out.splitlines()) < 24


def test_info_of_an_incomplete_store(run: Any, holed: ts.FeatureStore) -> None:
    ran = run("info", holed.location)
    assert ran.code == 0
    assert "32 of 40 (80%)" in ran.out
    assert "missing: train at epoch 2: rows 8-15" in ran.out
    assert "incomplete: 8 of 141 rows are missing" in ran.out
    assert "epochs with every split whole: 1, final" in ran.out
    document = json.loads(run("info", holed.location, "--json").out)
    assert document["complete"] is False
    assert document["usable_epochs"] == [1, "final"]
    [partial] = [one for one in document["splits"] if not one["complete"]]
    assert (partial["epoch"], partial["split"], partial["missing"]) == (2, "train", [[8, 16]])
    assert partial["written_rows"] == 32


def test_info_of_many_epochs_fits_a_screen(run: Any, tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=2))
    for epoch in range(40):
        store.write_split(epoch, "train", np.ones((3, 2), np.float32))
    store.write_split(40, "test", np.ones((3, 2), np.float32))
    ran = run("info", store.location)
    assert "0 ... 39 (40 epochs)" in ran.out
    assert "epochs with every split whole: none" in ran.out
    assert len(ran.out.splitlines()) < 24


def test_info_of_an_empty_store(run: Any, tmp_path: Path) -> None:
    ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=2))
    assert "empty" in run("info", tmp_path / "a.zarr").out
    assert json.loads(run("info", tmp_path / "a.zarr", "--json").out)["complete"] is False


@pytest.mark.filterwarnings("default")
def test_info_passes_over_an_odd_record_of_a_run(run: Any, store: ts.FeatureStore) -> None:
    store.location.put({"runs/1.train.odd/zarr.json": group_document({"job": 3})})
    ran = run("info", store.location)
    assert ran.code == 0
    assert "complete: all 141 rows" in ran.out
    assert ran.err.startswith("warning: runs/1.train.odd: the record has no began")
    assert ran.err.count("\n") == 1
    assert json.loads(run("info", store.location, "--json").out)["runs"] == []


def test_kernel(run: Any, store: ts.FeatureStore) -> None:
    document = json.loads(run("kernel", store.location, "--epoch", "2", "--json").out)
    [got] = document["kernels"]
    assert got == json.loads(json.dumps(ts.kernel_report(store, 2, "train").to_dict()))
    every = json.loads(run("kernel", store.location, "--json", "--damping", "0.5").out)
    assert [one["epoch"] for one in every["kernels"]] == [1, 2, "final"]
    assert {one["damping"] for one in every["kernels"]} == {0.5}
    assert "final" in run("kernel", store.location).out


def test_kernel_says_what_to_mind(run: Any, store: ts.FeatureStore) -> None:
    ran = run("kernel", store.location, "--split", "test", "--epoch", "1")
    assert "warning: epoch 1: singular without damping" in ran.out


def test_score(run: Any, store: ts.FeatureStore) -> None:
    ran = run(
        "score", store.location, "--save", "all", "--epoch", "1", "--epoch", "final", "--json"
    )
    document = json.loads(ran.out)
    assert document["shape"] == [7, 40]
    assert document["epochs"] == [1, "final"]
    wanted = np.asarray(ts.trak_scores(store, epochs=[1, "final"]))
    np.testing.assert_array_equal(ts.open_scores(store, "all").values, wanted)
    assert "scores/more" in run("score", store.location, "--save", "more").out


def test_a_name_is_taken_once(run: Any, store: ts.FeatureStore) -> None:
    assert run("score", store.location, "--save", "a").code == 0
    kept = ts.open_scores(store, "a").values
    said = run("score", store.location, "--save", "a").error
    assert "choose another name, or replace them (overwrite=True, --overwrite)" in said
    np.testing.assert_array_equal(ts.open_scores(store, "a").values, kept)
    again = ["score", store.location, "--save", "a", "--overwrite", "--damping", "9"]
    assert run(*again).code == 0
    wanted = np.asarray(ts.trak_scores(store, damping=9.0))
    np.testing.assert_array_equal(ts.open_scores(store, "a").values, wanted)


def test_scores_are_dropped(run: Any, store: ts.FeatureStore) -> None:
    for name in ("a", "b", "c"):
        ts.save_scores(ts.trak_scores(store), store, name)
    ran = run("drop", store.location, "--scores", "a", "--scores", "c", "--json")
    assert json.loads(ran.out) == {"location": str(store.location), "dropped": ["a", "c"]}
    assert json.loads(run("info", store.location, "--json").out)["scores"] == ["b"]
    assert run("drop", store.location, "--scores", "b").out.endswith("run.zarr: b\n")


def test_info_names_what_was_saved(run: Any, store: ts.FeatureStore) -> None:
    plain = run("info", store.location).out
    assert "saved scores" not in plain and "trained again" not in plain
    for name in ("b", "a"):
        ts.save_scores(ts.trak_scores(store), store, name, top=2)
    subset, output = np.ones((2, 40), bool), np.ones((2, 7), np.float32)
    add_models(store.location, "halves", {}, 0, subset, output)
    lines = run("info", store.location).out.splitlines()
    assert "saved scores: a, b" in lines and "models trained again: halves" in lines
    document = json.loads(run("info", store.location, "--json").out)
    assert (document["scores"], document["retrained_models"]) == (["a", "b"], ["halves"])


@pytest.mark.parametrize("order", ["largest", "smallest", "magnitude"])
def test_topk(order: Any, run: Any, store: ts.FeatureStore) -> None:
    flag = [] if order == "largest" else [f"--{order}"]
    document = json.loads(run("topk", store.location, "--k", "3", *flag, "--json").out)
    wanted = ts.top_k(ts.trak_scores(store), 3, order=order)
    assert [one["target"] for one in document["targets"]] == [f"t{i}" for i in range(7)]
    for row, one in enumerate(document["targets"]):
        assert (one["position"], one["label"]) == (row, row % 3)
        assert [entry["position"] for entry in one["top"]] == wanted["position"].values[
            row
        ].tolist()
        assert [entry["score"] for entry in one["top"]] == wanted["score"].values[row].tolist()
        assert [entry["label"] for entry in one["top"]] == [
            position % 3 for position in wanted["position"].values[row]
        ]


def test_topk_of_some_targets(run: Any, store: ts.FeatureStore) -> None:
    asked = ["--target", "@5", "--target", "t2", "--k", "2"]
    document = json.loads(run("topk", store.location, *asked, "--json").out)
    assert [one["target"] for one in document["targets"]] == ["t5", "t2"]
    ran = run("topk", store.location, *asked)
    assert "t5" in ran.out
    assert "t2" in ran.out
    assert "t1 " not in ran.out


def test_topk_shows_some_and_says_so(run: Any, store: ts.FeatureStore) -> None:
    ran = run("topk", store.location, "--targets", "train", "--k", "1")
    assert "20 more targets" in ran.out
    full = json.loads(run("topk", store.location, "--targets", "train", "--k", "1", "--json").out)
    assert len(full["targets"]) == 40


def test_topk_without_labels(run: Any, tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=4))
    rows = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    store.write_split(0, "train", rows, out_to_loss=np.ones(9))
    store.write_split(0, "test", rows[:2])
    ran = run("topk", store.location, "--k", "2")
    assert "train and score, largest first" in ran.out
    document = json.loads(run("topk", store.location, "--k", "2", "--json").out)
    assert "label" not in document["targets"][0]


def test_queries_are_free_of_torch_and_import_no_more_than_they_use(
    store: ts.FeatureStore, environment: dict[str, str]
) -> None:
    place = str(store.location)
    commands = [["--help"], ["info", place], ["kernel", place], ["topk", place, "--k", "1"]]
    code = f"""
import sys
from trakstore.cli import main
for command in {commands}:
    assert main(command) == 0, command
    assert not {{"torch", "distributed", "numba"}} & set(sys.modules), command
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


def test_a_closed_pipe_is_quiet(store: ts.FeatureStore, environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m trakstore topk {store.location} --json | head -c 5"
    ran = subprocess.run(command, shell=True, capture_output=True, check=False, env=environment)
    assert (ran.stdout, ran.stderr) == (b'{"loc', b"")


def test_no_colour(store: ts.FeatureStore, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "trakstore", "topk", str(store.location), "--k", "1"]
    coloured = {**environment, "FORCE_COLOR": "1", "COLUMNS": "100"}
    coloured.pop("NO_COLOR", None)
    ran = subprocess.run(command, capture_output=True, check=True, env=coloured)
    assert b"\x1b[3" in ran.stdout
    plain = {**coloured, "NO_COLOR": "1"}
    ran = subprocess.run(command, capture_output=True, check=True, env=plain)
    assert b"\x1b[3" not in ran.stdout
