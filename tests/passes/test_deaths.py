"""Workers that are killed in mid-run change nothing but the time that it takes."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from trakstore.passes.rows import ArrayRows, PositionRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.top_k import top_k


@dataclass(frozen=True, eq=False)
class SlowRows(ArrayRows):
    """Rows on a slow disk."""

    seconds: float = 0.0

    def read(self, start: int, stop: int) -> Any:
        time.sleep(self.seconds)
        return super().read(start, stop)


def scores(seconds: float) -> Scores:
    rng = np.random.default_rng(0)
    target, train = (rng.standard_normal((n, 16)).astype(np.float32) for n in (30, 2000))
    part = Part(0, ArrayRows(target), SlowRows(train, 16, seconds))
    return Scores("dots", (part,), PositionRows(30), PositionRows(2000))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.filterwarnings("ignore")  # what the nannies say of the dead
def test_one_of_two_workers_killed_three_times_gives_the_same_lists() -> None:
    expected, killed = top_k(scores(0), 7), []
    options: Any = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    over = threading.Event()
    with LocalCluster(**options, silence_logs=50) as cluster, Client(cluster):

        def kill() -> None:
            for _ in range(3):
                pids: list[int] = []
                while not over.wait(0.7) and not pids:
                    found = [nanny.pid for nanny in cluster.workers.values()]
                    pids = [pid for pid in found if pid and pid not in killed]
                    pids = pids if len(pids) == 2 else []
                if pids and not over.is_set():
                    os.kill(pids[0], signal.SIGKILL)
                    killed.append(pids[0])

        killer = threading.Thread(target=kill)
        killer.start()
        found = top_k(scores(0.15), 7)  # 125 tiles
        over.set()
        killer.join()
    assert len(set(killed)) == 3
    xr.testing.assert_identical(found, expected)
