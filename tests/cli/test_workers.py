"""Commands give the same numbers on worker processes and on a running cluster as on threads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from schedulers import lonely_scheduler

import trakstore as ts


@pytest.fixture(scope="module")
def address() -> Any:
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


def document(ran: Any) -> dict[str, Any]:
    assert (ran.code, ran.err) == (0, "")
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_the_same_numbers_on_threads_on_processes_and_on_a_cluster(
    run: Any, store: ts.FeatureStore, address: str
) -> None:
    for place in (["--workers", "1"], ["--scheduler", address]):
        name = place[0].strip("-")
        for command in (["topk", store.location, "--k", "3"], ["kernel", store.location]):
            options = [*command, "--memory-limit", "500MB", "--json"]
            assert document(run(*options, *place)) == document(run(*options))
        made = ["score", store.location, "--save", name, "--json"]
        assert document(run(*made, *place))["shape"] == [7, 40]
        wanted = np.asarray(ts.trak_scores(store))
        np.testing.assert_allclose(ts.open_scores(store, name), wanted, rtol=1e-6)


def test_processes_that_cannot_be_started_are_told_in_a_line(
    run: Any, store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("Nanny failed to start.") from BlockingIOError(11, "try again")

    monkeypatch.setattr("distributed.LocalCluster", refuse)
    said = run("topk", store.location, "--k", "3", "--workers", "1").error
    assert "1 worker processes cannot be started ([Errno 11] try again); raise the limits" in said


@pytest.mark.filterwarnings("ignore")  # what Dask says of the dead
def test_a_scheduler_that_dies_is_one_line(
    run: Any, store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lonely_scheduler() as (process, address):
        compute = Client.compute

        def killed(client: Client, *given: Any, **options: Any) -> Any:
            try:
                return compute(client, *given, **options)
            finally:
                process.kill()

        monkeypatch.setattr(Client, "compute", killed)
        ran = run("topk", store.location, "--k", "2", "--scheduler", address)
        assert f"the Dask scheduler at {address} was lost" in ran.error


def test_a_part_of_the_scores_is_saved(run: Any, store: ts.FeatureStore) -> None:
    made = ["score", store.location, "--save"]
    matrix = np.asarray(ts.trak_scores(store))
    told = document(run(*made, "few", "--top", "3", "--half", "--json"))
    assert (told["top"], told["threshold"], told["dtype"]) == (3, None, "float16")
    few = ts.open_scores(store, "few")
    assert few["score"].dtype == np.float16 and few["score"].shape == (7, 3)
    threshold = float(np.median(np.abs(matrix)))
    shown = run(*made, "some", "--threshold", threshold).out
    assert "|score| >=" in shown
    assert ts.sparse_scores(store, "some").nnz == np.sum(np.abs(matrix) >= threshold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "1", "--scheduler", "tcp://127.0.0.1:1"], "exclude each other"),
        (["--workers", CPU_COUNT + 1], f"must be in 1..{CPU_COUNT} (the cores)"),
        (["--scheduler", "nowhere"], "no Dask scheduler answers at nowhere"),
        (["--workers", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_places_are_told(
    run: Any, store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.setattr("trakstore.cli.cluster.SECONDS", 1)
    ran = run("topk", store.location, *options)
    assert ran.code == 2 and message in ran.error
    assert (
        "exclude" in run("score", store.location, "--save", "a", "--top", 1, "--threshold", 1).err
    )
