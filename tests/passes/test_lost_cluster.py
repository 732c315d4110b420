"""A cluster that cannot do the work ends in one clear error, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster
from schedulers import lonely_scheduler

import trakstore as ts
from trakstore.errors import LocationError, MemoryLimitError
from trakstore.kernels.gram import gram
from trakstore.passes import dask_cluster, memory
from trakstore.passes.rows import ArrayRows
from trakstore.passes.scheduler import map_reduce

ROWS = ArrayRows(np.ones((40, 2), np.float32), 4)


@contextmanager
def scheduler() -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A scheduler without workers, and a client of it."""
    with lonely_scheduler() as (process, address):
        client = Client(address, timeout=30, set_as_default=False)
        try:
            with client.as_current():
                yield process, client
        finally:
            process.kill()
            client.close(timeout=10)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options, silence_logs=50) as found:
        yield found


@pytest.mark.skipif(
    not Path("/proc/self/cwd").exists(), reason="needs a path of each process's own"
)
def test_a_worker_that_does_not_see_the_store(
    local: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task fails, not the worker: it goes on with other work."""
    projection = ts.ProjectionSpec("external", dim=2)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=projection)
    for split in ("train", "test"):
        made.write_split(0, split, np.ones((40, 2), np.float32), out_to_loss=np.ones(40))
    monkeypatch.chdir(tmp_path)  # the worker stays where it was started
    store = ts.open_store("/proc/self/cwd/s.zarr")
    with Client(local) as client:
        pids = client.run(lambda: __import__("os").getpid())
        scores = ts.grad_dot_scores(store)
        for use in (
            lambda: ts.top_k(scores, 2),
            lambda: np.asarray(scores),
            lambda: ts.kernel_report(store, 0),
            lambda: ts.save_scores(scores, store, "a"),
            lambda: store.features(0, "train").compute(),
        ):
            with pytest.raises(LocationError, match="every worker has to see the store at this"):
                use()
        assert client.run(lambda: __import__("os").getpid()) == pids
        np.testing.assert_array_equal(gram(ROWS).matrix, np.full((2, 2), 40))


def test_a_client_that_is_closed(local: LocalCluster) -> None:
    client = Client(local, set_as_default=False)
    with client.as_current():
        client.close()
        with pytest.raises(LocationError, match="the Dask client is closed: make a new one"):
            gram(ROWS)
        with dask.config.set(scheduler="threads"):
            np.testing.assert_array_equal(gram(ROWS).matrix, np.full((2, 2), 40))
    with (
        dask.config.set(scheduler="dask.distributed"),
        pytest.raises(LocationError, match="the Dask client is closed: make a new one"),
    ):
        gram(ROWS)


@pytest.mark.filterwarnings("ignore")  # what Dask says of the dead
def test_a_scheduler_that_dies_before() -> None:
    with scheduler() as (process, client):
        process.kill()
        with pytest.raises(LocationError, match=r"the Dask scheduler at tcp://127.0.0.1:\d+ was"):
            gram(ROWS)
        assert client.status != "running"


@pytest.mark.filterwarnings("ignore")  # what Dask says of the dead
def test_a_scheduler_that_dies_while_it_is_waited_for() -> None:
    with scheduler() as (process, client):
        submitted = threading.Event()
        compute = client.compute

        def told(*given: Any) -> Any:
            try:
                return compute(*given)
            finally:
                submitted.set()

        client.compute = told
        killer = threading.Thread(target=lambda: (submitted.wait(), process.kill()))
        killer.start()
        with pytest.raises(LocationError, match=r"the Dask scheduler at .* was lost"):
            map_reduce(max, 40, 4, max, finished=lambda _: None)
        killer.join()


@pytest.fixture
def worker(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a worker says that it has, within a client."""
    told: dict[str, Any] = {"nthreads": 1, "memory_limit": 0}
    for module in (dask_cluster, memory):
        monkeypatch.setattr(module, "workers_of", lambda _: {"tcp://a": told})
    with Client(local):
        yield told


def test_workers_with_less_memory_than_was_asked_for(worker: dict[str, Any]) -> None:
    assert memory.memory_budget("2GB") == 2_000_000_000
    worker["memory_limit"] = 700_000_000
    with pytest.warns(
        UserWarning, match=r"2.0 GB is lowered to the 400.0 MB that each Dask worker"
    ):
        assert memory.memory_budget("2GB") == 400_000_000
    assert memory.memory_budget("400MB") == 400_000_000
    worker["memory_limit"] = 220_000_000
    assert memory.memory_budget(None) <= 16_000_000
    wide = ArrayRows(np.ones((4, 3000), np.float32))
    with (
        pytest.warns(UserWarning, match=r"lowered to the 16.0 MB"),
        pytest.raises(MemoryLimitError, match=r"the memory limit is 16.0 MB"),
    ):
        gram(wide, memory_limit="2GB")
    worker["memory_limit"] = 150_000_000
    with pytest.raises(
        MemoryLimitError, match=r"tcp://a has 150.0 MB of memory, of which it needs"
    ):
        gram(ROWS)


def test_workers_that_die_over_it_each_time(local: LocalCluster) -> None:
    class Lost:
        address = "tcp://a"

    with (
        Client(local) as client,
        pytest.raises(MemoryLimitError, match=r"died over the same work .* tcp://a last"),
        dask_cluster.cluster_errors(client),
    ):
        raise KilledWorker("task", Lost(), 4)  # type: ignore[arg-type]
