"""The memory limit is kept: measured as the peak of a fresh process, above its imports."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.passes import memory
from trakstore.passes.memory import memory_budget

ROWS, DIM, TARGETS = 160_000, 128, 2000  # 82 MB of features, 1.3 GB of scores
WIDE = 4096  # a gram of 134 MB
EPOCHS, EPOCH_DIM = 24, 512  # factors of 50 MB

PRELUDE = """
import os, sys, numpy as np, dask
import trakstore as ts
from trakstore.kernels.stored_grams import split_gram
from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.choice import split_kernel
from trakstore.passes.rows import ArrayRows
from trakstore.kernels.gram import gram
from trakstore.kernels.row_weights import WeightedSplit

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

place, limit = sys.argv[1], sys.argv[2]
scratch = os.path.dirname(place)
wide = ts.open_store(scratch + "/w.zarr").split(0, "wide")
dask.config.set(scheduler="threads", num_workers=2)
gram(ArrayRows(np.ones((2, 2), np.float32)))  # starts the threads
store = ts.open_store(place)
before = peak()
"""

OPERATIONS = {
    "gram": 'split_gram(store.split(0, "train"), memory_limit=limit)',
    "weighted": 'split_gram(WeightedSplit(store.split(0, "train"), "loss"), memory_limit=limit)',
    "top_k": "ts.top_k(ts.trak_scores(store, memory_limit=limit), 50, memory_limit=limit)",
    "save": "ts.save_scores(ts.trak_scores(store, memory_limit=limit).isel(target=range(100)), "
    'store, f"saved-{os.getpid()}", memory_limit=limit)',
    "epochs": "ts.top_k(ts.trak_scores(ts.open_store(scratch + '/e.zarr'), memory_limit=limit), 50, "
    "memory_limit=limit)",
    "blocked": 'BlockedCholesky(limit, scratch).factor(split_kernel(wide, "tiles", '
    "memory_limit=limit)).solve(np.ones((64, 4096)))",
}

# the same in two worker processes: the most that either of them took
ON_WORKERS = """
import sys
from distributed import Client, LocalCluster
{prelude}
if __name__ == "__main__":
    dask.config.set(scheduler=None)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            def peaks():
                return max(client.run(peak).values())
            gram(ArrayRows(np.ones((20, 2), np.float32), 1))  # imports
            before = peaks()
            {operation}
            print(peaks() - before)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    rng = np.random.default_rng(0)
    folder: Path = tmp_path_factory.mktemp("memory") / "s.zarr"
    store = ts.FeatureStore.create(folder, projection=ts.ProjectionSpec("sjlt", DIM))
    for split, rows in (("train", ROWS), ("test", TARGETS)):
        features = rng.standard_normal((rows, DIM), dtype=np.float32)
        store.write_split(0, split, features, out_to_loss=rng.uniform(size=rows))
    wide = ts.FeatureStore.create(
        folder.with_name("w.zarr"), projection=ts.ProjectionSpec("sjlt", WIDE)
    )
    wide.write_split(0, "wide", rng.standard_normal((512, WIDE), dtype=np.float32))
    return folder


def extra(place: Path, script: str, limit: str) -> int:
    command = [sys.executable, "-c", script, str(place), limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("gram", "40MB"),
        ("top_k", "40MB"),
        pytest.param("weighted", "40MB", marks=pytest.mark.slow),
        pytest.param("save", "40MB", marks=pytest.mark.slow),
        *(
            pytest.param(name, "80MB", marks=pytest.mark.slow)
            for name in ("gram", "weighted", "top_k", "save")
        ),
        pytest.param("blocked", "120MB", marks=pytest.mark.slow),
    ],
)
def test_the_measured_peak_is_below_the_limit(place: Path, name: str, limit: str) -> None:
    script = f"{PRELUDE}{OPERATIONS[name]}\nprint(peak() - before)"
    assert extra(place, script, limit) < memory_budget(limit)


LARGE = """
made = []
choose = choice.choose_solver
choice.choose_solver = lambda *how: made.append(choose(*how)) or made[-1]
for of in (sys.argv[1] + "-tiny", sys.argv[1]):  # the first imports what scores need
    store, before = ts.open_store(of), peak()
    ts.top_k(ts.trak_scores(store, memory_limit=limit), 5, memory_limit=limit)
assert type(made[-1]).__name__ == "Dual", made
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("limit", ["120MB", "200MB"])
def test_few_rows_of_16_384_numbers_keep_to_the_limit(
    tmp_path: Path, dtype: Any, limit: str
) -> None:
    """The dual form, whose passes and right-hand sides are what takes memory: its kernel is small."""
    rng = np.random.default_rng(0)
    for end, dim, rows in (("-tiny", 64, 8), ("", 16_384, 600)):
        spec = ts.ProjectionSpec("sjlt", dim)
        store = ts.FeatureStore.create(f"{tmp_path}/x.zarr{end}", projection=spec, dtype=dtype)
        for split, count in (("train", rows), ("test", 100)):
            features = rng.standard_normal((count, dim), dtype=np.float32)
            store.write_split(0, split, features, out_to_loss=np.ones(count))
    script = PRELUDE.replace('ts.open_store(scratch + "/w.zarr").split(0, "wide")', "None")
    script += f"from trakstore.kernels import choice\n{LARGE}"
    script = script.replace("store = ts.open_store(place)\nbefore", "before")
    assert extra(tmp_path / "x.zarr", script, limit) < memory_budget(limit)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
def test_factors_of_many_epochs_are_within_the_limit(place: Path) -> None:
    rng, spec = np.random.default_rng(1), ts.ProjectionSpec("sjlt", EPOCH_DIM)
    many = ts.FeatureStore.create(place.with_name("e.zarr"), projection=spec)
    for epoch, (split, rows) in itertools.product(range(EPOCHS), (("train", 600), ("test", 40))):
        features = rng.standard_normal((rows, EPOCH_DIM), dtype=np.float32)
        many.write_split(epoch, split, features, out_to_loss=np.ones(rows))
    script = f"{PRELUDE}{OPERATIONS['epochs']}\nprint(peak() - before)"
    assert extra(place, script, "60MB") < memory_budget("60MB")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
@pytest.mark.parametrize("name", ["gram", "top_k", "save"])
def test_the_peak_of_worker_processes_is_below_the_limit(place: Path, name: str) -> None:
    script = ON_WORKERS.format(prelude=PRELUDE, operation=OPERATIONS[name])
    assert extra(place, script, "80MB") < memory_budget("80MB")


def test_the_default_is_a_share_of_the_least_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_budget("600MB") == 600_000_000
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", groups)
    assert memory_budget(None) == 2**30
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8000 kB\n")
    assert memory_budget(None) == 2000 * 1024
    (proc / "self" / "cgroup").write_text("1:cpu:/x\n0::/a/b\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    assert memory_budget(None) == 2000 * 1024
    (groups / "a" / "memory.max").write_text("4000000\n")
    (groups / "a" / "memory.current").write_text("3000000\n")
    (groups / "a" / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    assert memory_budget(None) == 500_000


def test_version_1_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:cpu,memory:/job\n")
    folder = tmp_path / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("800000\n")
    (folder / "memory.usage_in_bytes").write_text("0\n")
    (folder / "memory.stat").write_text("total_inactive_file 0\n")
    assert memory_budget(None) == 200_000
