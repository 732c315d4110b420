"""The same results on a cluster of processes as on threads, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from trakstore.kernels.gram import gram
from trakstore.passes.rows import ArrayRows
from trakstore.scores.streaming import for_each_tile
from trakstore.scores.top_k import top_k


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local:
        yield local


@dataclass(frozen=True)
class SaveTile:
    folder: Path

    def __call__(self, t0, t1, n0, n1, tile):
        np.save(self.folder / f"{t0}-{t1}-{n0}-{n1}.npy", tile)


def test_workers_have_tiles_on_devices_of_their_own(cluster, make_scores, draw):
    # Torch's own CPU, by its other name, stands for a GPU that each worker has.
    scores, _ = make_scores(m=20, n=300, chunk=64)
    rows = ArrayRows(draw(500, 32), 16)
    with Client(cluster):
        top, kernel = top_k(scores.to("cpu:0"), 5), gram(rows, device="cpu:0")
    expected = top_k(scores, 5)
    np.testing.assert_array_equal(top.position, expected.position)
    np.testing.assert_allclose(top.score, expected.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kernel.matrix, gram(rows).matrix, rtol=1e-4, atol=1e-4)


def test_cluster_and_threads_agree_to_the_bit(cluster, make_scores, draw, tmp_path):
    # 24 MB of left operands: sent inside of a graph they would warn, and a warning is an error here
    scores, _ = make_scores(m=12_000, n=300, k=256, chunk=64)
    few, _ = make_scores(m=20, n=300, chunk=64)
    rows = ArrayRows(draw(500, 32), 16)
    kernel, top = gram(rows), top_k(scores, 5)
    with Client(cluster):
        there = gram(rows)
        np.testing.assert_array_equal(there.matrix, kernel.matrix)
        xr.testing.assert_identical(top_k(scores, 5), top)
        for_each_tile(few, SaveTile(tmp_path))
        lazy = few.to_xarray()
        xr.testing.assert_identical(top_k(lazy, 5)["position"], top_k(few, 5)["position"])
        np.testing.assert_array_equal(np.asarray(few), lazy.values)
    matrix = np.asarray(few)
    assert len(list(tmp_path.iterdir())) == 5
    for path in tmp_path.iterdir():
        t0, t1, n0, n1 = map(int, path.stem.split("-"))
        np.testing.assert_array_equal(np.load(path), matrix[t0:t1, n0:n1])
