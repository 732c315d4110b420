"""Places where a command's work runs: threads of this process, new processes, or a cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from dask.system import CPU_COUNT

from trakstore.cli.output import error_line
from trakstore.errors import LocationError, TrakStoreError
from trakstore.passes.dask_cluster import cluster_errors
from trakstore.progress import on_terminal

SECONDS = 10  # in which a scheduler must answer
# Ctrl-C reaches every process of the terminal. Workers ignore it, since this process stops them.
IGNORES_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@contextmanager
def workplace(workers: int | None, scheduler: str | None) -> Iterator[None]:
    """Within, have a Dask client, if one was asked for.

    Parameters
    ----------
    workers : int, optional
        Processes to start; they share the cores among their threads.
    scheduler : str, optional
        Address of a running Dask scheduler.

    Raises
    ------
    LocationError
        When no scheduler answers.
    TrakStoreError
        When the system does not let the processes start.
    """
    if workers is None and scheduler is None:
        yield
        return
    if workers is not None and scheduler is not None:
        raise typer.BadParameter("--workers and --scheduler exclude each other")
    if workers is not None and workers > CPU_COUNT:
        raise typer.BadParameter(f"--workers must be in 1..{CPU_COUNT} (the cores), got {workers}")
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    if workers is None:
        # The cluster's own log is silenced, since one error, in one line, reports that a worker died.
        try:
            client = Client(scheduler, timeout=SECONDS)
        except (OSError, ValueError) as error:
            raise LocationError(f"no Dask scheduler answers at {scheduler}: {error}") from None
        with silence_logging_cmgr(logging.CRITICAL), client, cluster_errors(client):
            yield
        return
    with _local_cluster(workers) as cluster, Client(cluster) as client:
        if on_terminal():
            error_line(client.dashboard_link, "dashboard")
        with cluster_errors(client):
            yield


def _local_cluster(workers: int) -> Any:
    """Start worker processes that share the cores among their threads."""
    from distributed import LocalCluster

    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=CPU_COUNT // workers,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
            preload=[IGNORES_INTERRUPTS],
        )
    except (RuntimeError, OSError) as error:
        raise TrakStoreError(
            f"{workers} worker processes cannot be started ({_first_cause(error)}); raise the limits "
            f"of processes and memory, or go without --workers"
        ) from error


def _first_cause(error: BaseException) -> BaseException:
    """Return the first error in the chain that led to this one, with the system's own message."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error
