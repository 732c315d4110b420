from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from s3 import make_bucket, s3_server, use_endpoint

# before anything imports Triton: without a GPU its kernels are interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# a shell that starts this in the background has Ctrl-C ignored, which processes inherit: tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_PROCESSES = 8  # unless -n says: each needs about a GB, and 20 seconds to import the tests


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in a process per core, and files that are named in this process."""
    started = hasattr(config, "workerinput")  # this process is one of them: it starts no others
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and not started and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses = "logical"
        config.option.maxprocesses = config.option.maxprocesses or MOST_PROCESSES
        config.option.dist = "worksteal"  # whole parts of the order: files mostly stay together


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores' threads among the processes that will be started, and what they start."""
    processes = len(config.getoption("tx", None) or ())
    if processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector of garbage go through what the tests make, and no more.

    Modules and the tests themselves are millions of objects that stay to the end. Going through all of
    them takes most of a second, and would be done again and again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Show all objects again: what runs at the end asks who refers to them, and frees them."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Leave files of tests to pytest alone, not to doctest, which passes over those it cannot import.

    With ``--import-mode=importlib`` what doctest failed to import counts as imported: a file of tests
    with a wrong import would be skipped, and no error told.
    """
    collectors = yield
    return [one for one in collectors if type(one).__name__ != "DoctestModule"]


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Flush no files of tests, which no loss of power is to outlive: each took a millisecond or two.

    A handle that is not open is refused still.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of an S3 server."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's URL, ``s3://name``; the environment leads to its server."""
    use_endpoint(monkeypatch, server)
    return f"s3://{make_bucket(server)}"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, for the tests of a module."""
    from browser import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
