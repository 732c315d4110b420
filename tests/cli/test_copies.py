"""``verify``, ``export`` and ``import``: exit codes, what is printed, and the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts


def damage(store: ts.FeatureStore, key: str) -> None:
    path = Path(str(store.location)) / key
    path.write_bytes(path.read_bytes()[:-1])


def test_a_clean_store(run: Any, store: ts.FeatureStore) -> None:
    ran = run("verify", store.location)
    assert (ran.code, ran.err) == (0, "")
    assert "everything is as it was written" in ran.out
    document = json.loads(run("verify", store.location, "--json").out)
    assert document["ok"] is True and len(document["splits"]) == 6


def test_findings_give_exit_code_one_and_repair_marks_blocks(
    run: Any, store: ts.FeatureStore
) -> None:
    damage(store, "2/train/features/c/3/0")
    damage(store, "1/test/norm/zarr.json")
    ran = run("verify", store.location)
    assert (ran.code, ran.err) == (1, "")
    assert "truncated: 2/train/features/c/3/0 has 259 bytes of 260" in ran.out
    assert "document: 1/test/norm/zarr.json" in ran.out and "2 findings, 0 repaired" in ran.out
    assert run("verify", store.location, "--epoch", "final").code == 0
    assert run("verify", store.location, "--split", "test", "--epoch", "2").code == 0
    ran = run("verify", store.location, "--repair")
    assert ran.code == 1 and "2 findings, 2 repaired" in ran.out
    assert "run the same featurize again" in ran.out
    ran = run("verify", store.location, "--workers", "1")
    assert ran.code == 0 and "1 block is not written yet" in ran.out
    assert store.split(2, "train").missing_blocks() == [3]


def test_a_repair_that_leaves_nothing_to_do(run: Any, store: ts.FeatureStore) -> None:
    damage(store, "1/test/norm/zarr.json")
    assert "1 finding, 0 repaired" in run("verify", store.location).out
    ran = run("verify", store.location, "--repair", "--epoch", "1", "--split", "test")
    assert (ran.code, ran.err) == (0, "")
    assert "read 1 block of 1 split\n1 finding, 1 repaired\n" in ran.out
    assert "all of it is repaired: nothing is left to do" in ran.out
    assert "everything is as it was written" in run("verify", store.location).out


def test_a_finding_that_no_repair_mends(run: Any, store: ts.FeatureStore) -> None:
    run("score", store.location, "--save", "a")
    damage(store, "1/test/norm/zarr.json")
    damage(store, "scores/a/scores/c/0/0")
    ran = run("verify", store.location, "--repair")
    assert ran.code == 1 and "2 findings, 1 repaired" in ran.out
    assert "nothing is left" not in ran.out


def test_many_findings_are_cut_short(run: Any, store: ts.FeatureStore) -> None:
    for block in range(5):
        for column in ("features", "norm", "label", "out_to_loss", "sample_id"):
            damage(store, f"2/train/{column}/c/{block}{'/0' if column == 'features' else ''}")
    ran = run("verify", store.location)
    assert "... 5 more; --json has all" in ran.out
    assert len(json.loads(run("verify", store.location, "--json").out)["findings"]) == 25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "{store}", "--epoch", "3"], "no epoch 3"),
        (["verify", "{store}", "--split", "trian"], "did you mean 'train'"),
        (["verify", "{folder}/nothing"], "there is no store"),
        (["export", "{store}", "--to", "{folder}/a.npy"], "Missing option '--epoch'"),
        (["export", "{store}", "--epoch", "1", "--to", "{folder}/a.csv"], ".npy or .parquet"),
        (["export", "{store}", "--epoch", "7", "--to", "{folder}/a.npy"], "no epoch 7"),
        (["import", "{folder}", "--store", "{folder}/b.zarr"], "no metadata.json"),
        (["import", "{folder}", "--store", "{folder}/b.zarr", "--dtype", "int4"], "float16"),
    ],
)
def test_bad_use(
    run: Any, store: ts.FeatureStore, tmp_path: Path, arguments: list[str], said: str
) -> None:
    ran = run(*(one.format(store=store.location, folder=tmp_path) for one in arguments))
    assert said in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


def test_export(run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    ran = run("export", store.location, "--epoch", "2", "--to", tmp_path / "a.npy")
    assert ran.code == 0 and "a.npy: 40 rows" in ran.out
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), store.features(2, "train"))
    arguments = ["--epoch", "final", "--split", "test", "--column", "label", "--json"]
    document = json.loads(run("export", store.location, *arguments, "--to", tmp_path / "b.npy").out)
    assert document["rows"] == 7 and document["bytes"] == (tmp_path / "b.npy").stat().st_size
    pytest.importorskip("pyarrow")
    assert run("export", store.location, "--epoch", "2", "--to", tmp_path / "c.parquet").code == 0


def test_import(run: Any, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    (saved / "5").mkdir(parents=True)
    told = {"JL dimension": 4, "JL matrix type": "normal", "train set size": 9}
    (saved / "metadata.json").write_text(json.dumps(told))
    (saved / "id_5.json").write_text('{"5": {"is_featurized": 1, "is_finalized": 0}}')
    arrays = {"grads": np.ones((9, 4), np.float16), "out_to_loss": np.ones((9, 1), np.float16)}
    for name, array in (arrays | {"_is_featurized": np.ones((9, 1), np.int32)}).items():
        with (saved / f"5/{name}.mmap").open("wb") as file:
            np.save(file, array)
    ran = run("import", saved, "--store", tmp_path / "s.zarr", "--parameters", "16")
    assert ran.code == 0 and "train at epoch 5: 9 rows" in ran.out
    store = ts.open_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.features(5, "train"), np.full((9, 4), 2, np.float32))
    document = json.loads(run("import", saved, "--store", tmp_path / "t.zarr", "--json").out)
    assert document["splits"] == [{"epoch": 5, "split": "train", "rows": 9}]
    assert run("info", tmp_path / "s.zarr").code == 0
