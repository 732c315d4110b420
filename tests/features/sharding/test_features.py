"""The features of one process, however a model is spread over ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from features.sharding.language_models import made
from features.sharding.launched import torchrun
from features.sharding.ranks import KINDS, PROJECTIONS, written
from features.sharding.traffic import SAMPLES

import trakstore as ts
from trakstore.spec import check_settings


def same_features(folder: Path, ways: list[str]) -> None:
    for one in ways:
        way, kind, projection = one.split(":")
        alone = folder / f"alone.{kind}.{projection}.zarr"
        if not alone.exists():
            written(made(KINDS[kind]), alone, projection)
        split, other = (
            ts.open_store(store).split(0, "train")
            for store in (alone, folder / f"{way}.{kind}.{projection}.zarr")
        )
        assert other.spec.checkpoint == split.spec.checkpoint
        check_settings(split.spec.settings, other.spec.settings, one)
        shared = dict(other.spec.settings).keys() & dict(split.spec.settings).keys()
        assert "LayerNorm.eps" in shared if kind == "Gpt" else shared, one
        expected, got = (each.column("features").read(0, 11) for each in (split, other))
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max(), one
        for name in ("loss", "output", "out_to_loss"):
            columns = [each.column(name).read(0, 11) for each in (split, other)]
            np.testing.assert_allclose(*columns, rtol=1e-5, err_msg=one)


def test_two_ranks_give_the_features_of_one_process(tmp_path: Path) -> None:
    ways = ["fsdp:Llama:sjlt", "tp:Gpt:kronecker", "tp:Llama:short"]
    done = torchrun(2, "ranks.py", str(tmp_path), *ways)
    assert done.returncode == 0, done.stderr
    assert "generic engine" not in done.stderr
    same_features(tmp_path, ways)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_any_way_to_share_a_model_gives_the_features_of_one_process(
    tmp_path: Path, ranks: int
) -> None:
    names = ["fsdp", "tp", "sp"] if ranks == 2 else ["fsdp", "hsdp", "fsdp-tp", "fsdp-sp"]
    ways = [f"{way}:{kind}:{one}" for way in names for kind in KINDS for one in PROJECTIONS]
    done = torchrun(ranks, "ranks.py", str(tmp_path), *ways)
    assert done.returncode == 0, done.stderr
    same_features(tmp_path, ways)


@pytest.mark.slow
def test_samples_are_appended_by_ranks_that_share_a_model(tmp_path: Path) -> None:
    ways = ["+fsdp:Llama:sjlt", "+tp:Llama:sjlt"]
    done = torchrun(2, "ranks.py", str(tmp_path), *ways)
    assert done.returncode == 0, done.stderr
    # One rank says for both what was added.
    assert sorted(done.stdout.split()) == ["0", "0", "4", "4"]
    same_features(tmp_path, ways)
    assert all(ts.verify_store(tmp_path / f"{one.replace(':', '.')}.zarr").ok for one in ways)


@pytest.mark.slow
def test_ranks_send_a_row_of_features_for_each_sample_and_no_more() -> None:
    done = torchrun(2, "traffic.py", "fsdp", "tp")
    assert done.returncode == 0, done.stderr
    counted = [line.split() for line in done.stdout.splitlines() if line]
    assert sorted(way for way, *_ in counted) == ["fsdp", "fsdp", "tp", "tp"]
    row = 4 * (PROJECTIONS["sjlt"].dim or 0)
    for way, alone, both in counted:
        assert int(alone) > 1000
        assert int(both) - int(alone) == (SAMPLES * row if way == "tp" else 0)


@pytest.mark.slow
def test_a_plan_that_leaves_out_what_meets_divided_positions_is_refused(tmp_path: Path) -> None:
    done = torchrun(2, "ranks.py", str(tmp_path), "careless-sp:Llama:sjlt")
    assert done.returncode != 0
    told = "have different gradients of layers.0.attention_norm.weight, layers.0.mlp_norm.weight"
    assert told in done.stderr and "put SequenceParallel() into the plan" in done.stderr
