from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trakstore.cli import main
from trakstore.kernels.gram import Gram
from trakstore.kernels.solvers import Cholesky
from trakstore.passes.rows import ArrayRows, PositionRows
from trakstore.planning import block_shape
from trakstore.scores.costs import Cost, Problem, Speed, costs
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.top_k import plan_top_k
from trakstore.scores.window_plans import plan_windows


def test_estimates_are_printed_for_these_sizes_and_far_beyond(capsys: Any) -> None:
    assert main(["estimate", "--rows", "5000", "--dim", "64", "--json", "--rate", "100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {line["rows"] for line in found["estimates"]} == {5000, 10**6, 10**8, 10**9}
    first = {line["operation"]: line for line in found["estimates"][:4]}
    assert first["featurize"]["seconds"] == 50
    assert first["matrix"]["disk"] == 4 * 5000 * 1000
    assert main(["estimate", "--rows", "5000"]) == 0
    shown = capsys.readouterr().out
    assert "1,000,000,000" in shown and "give --rate" in shown


def test_costs_grow_with_the_rows_and_memory_does_not() -> None:
    small, large = (costs(Problem(rows, 512, 1000, memory_limit=10**9)) for rows in (10**6, 10**9))
    for a, b in zip(small, large, strict=True):
        assert b.flops == 1000 * a.flops
        assert b.memory == pytest.approx(a.memory, rel=0.05)  # chunks of 3907 or 4096 rows
        assert max(a.memory, b.memory) <= 10**9
    assert Speed(2.0, 1.0, 1.0, 1.0).seconds(small[3], 2) == small[3].flops / 4


def test_a_bad_dtype_is_told(capsys: Any) -> None:
    assert main(["estimate", "--dtype", "int4"]) == 2
    assert "float32 or float16" in capsys.readouterr().err


def test_less_memory_means_more_passes() -> None:
    many, one = (costs(Problem(10**6, 512, 1000, memory_limit=m)) for m in (8 * 10**7, 10**11))
    assert many[3].read > one[3].read


def test_memory_is_what_the_planners_say() -> None:
    asked = Problem(10**6, 512, 1000, top=20, memory_limit=10**9)
    store_rows = ArrayRows(
        np.broadcast_to(np.float32(0), (10**6, 512)), block_shape(10**6, 512, 4).chunk_rows
    )
    targets = ArrayRows(
        np.broadcast_to(np.float32(0), (1000, 512)), block_shape(1000, 512, 4).chunk_rows
    )
    factor = Cholesky().factor(Gram(np.eye(512), rows=512, trace=512.0))
    part = Part(0, targets, store_rows, factor)
    scores = Scores("dots", (part,), PositionRows(1000), PositionRows(10**6))
    found = {cost.operation: cost for cost in costs(asked)}
    assert found["topk"].memory == plan_top_k(scores.sizes, 20, None, 10**9).memory
    assert found["matrix"].memory == plan_windows(scores.sizes, "x", 10**9).memory
    tight = Problem(10**6, 16_384, 1000, memory_limit=10**9)  # a gram in strips
    assert costs(tight)[1].read > 10**6 * 16_384 * 4
    assert costs(tight)[1].memory <= 10**9


def test_factors_of_all_epochs_have_a_quarter_of_the_memory() -> None:
    def memory(epochs: int, limit: int) -> int:
        return costs(Problem(10**5, 512, 10, epochs, memory_limit=limit))[2].memory

    factor = 8 * 512**2
    assert memory(40, 10**9) - memory(1, 10**9) == 39 * (factor + 4 * 10 * 512)  # and targets
    assert memory(4000, 10**9) < 10**9  # of 8.4 GB of factors


def test_a_hundred_epochs_of_a_million_rows_are_planned(capsys: Any) -> None:
    sizes = ["--rows", str(10**6), "--dim", "512", "--epochs", "100", "--memory-limit", "4GB"]
    assert main(["estimate", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["estimates"]
    lines = {line["operation"]: line for line in found if line["rows"] == 10**6}
    features = 10**6 * 512 * 4 * 100
    assert lines["evolve"]["read"] == 20 * features  # 50 of 1000 targets at once
    assert lines["evolve"]["memory"] <= 4e9 + 8 * 512 * 512 * 100
    assert lines["evolve"]["seconds"] > lines["matrix"]["flops"] / 1e13
    assert 2 * features <= lines["transitions"]["read"] < 2.1 * features
    assert lines["transitions"]["memory"] < 1e9
    assert main(["estimate", *sizes]) == 0
    assert "needs more than the memory limit, 4.0 GB" in capsys.readouterr().out


def test_sorting_is_not_shared_among_workers() -> None:
    one, two = (
        Speed(1.0, 1.0, 1.0, 2.0).seconds(Cost("evolve", 0, 8, 0, 0, 8, 8), n) for n in (1, 2)
    )
    assert (one, two) == (12, 8)


def test_a_disk_that_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["estimate", "--rows", "1000", "--dim", "512"]) == 2
    assert re.search(
        r"error: the disk cannot be measured: 8.\d MB cannot .* File too large\): .* TMPDIR",
        capsys.readouterr().err,
    )
