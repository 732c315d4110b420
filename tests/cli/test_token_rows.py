"""Rows of tokens, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts

JOBS = """
import torch
from features.models import mlp, Samples
from features.whole_models import Language
from trakstore import ProjectionSpec
from trakstore.features import Job


def texts():
    torch.manual_seed(0)
    data = {
        split: [(one,) for one in torch.randint(0, 11, (rows, 5))]
        for split, rows in (("train", 6), ("test", 2))
    }
    return Job(Language(), data, output="causal_lm", projector=ProjectionSpec("sjlt", dim=16))


def classes():
    return Job(mlp(), {"train": Samples(3), "test": Samples(3)})
"""


def test_tokens_are_targets_like_others(run: Any, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    where = tmp_path / "s.zarr"
    assert (
        run("featurize", f"{tmp_path}/jobs.py:texts", "--store", where, "--tokens", "1").code == 0
    )
    assert ts.open_store(where).splits == ("test", "test~tokens", "train")
    assert "test~tokens" in run("info", where).out
    assert run("verify", where).code == 0

    def scores(targets: str) -> dict[str, dict[int, float]]:
        out = run("topk", where, "--targets", targets, "--k", "6", "--json").out
        return {
            one["target"]: {top["train"]: top["score"] for top in one["top"]}
            for one in json.loads(out)["targets"]
        }

    tokens, samples = scores("test~tokens"), scores("test")
    assert list(tokens)[:5] == ["0#1", "0#2", "0#3", "0#4", "1#1"]
    for train, whole in samples[0].items():
        parts = [tokens[f"0#{at}"][train] for at in range(1, 5)]
        np.testing.assert_allclose(sum(parts), whole, atol=1e-5 * max(map(abs, parts)))


def test_a_job_without_tokens_is_refused_in_one_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    where = tmp_path / "s.zarr"
    refused = run("featurize", f"{tmp_path}/jobs.py:classes", "--store", where, "--tokens", "1")
    assert refused.code != 0
    assert "'margin' is not made of one sequence's tokens" in refused.err
    assert "Traceback" not in refused.err


def test_a_report_shades_tokens(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    (tmp_path / "jobs.py").write_text(JOBS)
    where, page, job = tmp_path / "s.zarr", tmp_path / "r.html", f"{tmp_path}/jobs.py:texts"
    assert run("featurize", job, "--store", where).code == 0
    asked = ["report", where, "-o", page, "--job", job, "--k", "2", "--count", "1"]
    assert run(*asked, "--tokens", "1").code == 0
    # Four tokens of one sample in each list, as numbers, as there is no tokenizer.
    assert page.read_text().count('<span class="token') == 4 * 2 + 2
    assert "by the models of a job" in run("report", where, "--k", "2", "--tokens", "1").err
