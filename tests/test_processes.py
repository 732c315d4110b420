"""The whole suite runs in a process per core; those processes, and runs of named files, start none."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SOURCES = pytest.Config.ArgsSource


@pytest.fixture
def conftest(pytestconfig: pytest.Config) -> Any:
    return pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))


def config(source: Any = SOURCES.TESTPATHS, **more: Any) -> Any:
    """Return what the hooks see of a run, with pytest-xdist's options as they are by default."""
    option = SimpleNamespace(numprocesses=None, maxprocesses=None, dist="no", tx=[])
    made = SimpleNamespace(args_source=source, option=option, **more)
    made.getoption = lambda name, default=None: getattr(option, name, default)
    return made


def test_the_whole_suite_is_spread(conftest: Any) -> None:
    whole = config()
    conftest.pytest_cmdline_main(whole)
    spread = {"numprocesses": "logical", "maxprocesses": 8, "dist": "worksteal", "tx": []}
    assert vars(whole.option) == spread


def test_its_processes_and_named_files_start_none(conftest: Any) -> None:
    for one in (config(SOURCES.ARGS), config(workerinput={"workerid": "gw0"})):
        conftest.pytest_cmdline_main(one)
        assert vars(one.option) == vars(config().option)


@pytest.mark.parametrize("processes", [0, 3])
def test_the_number_that_is_asked_for_stays(conftest: Any, processes: int) -> None:
    asked = config()
    asked.option.numprocesses = processes
    conftest.pytest_cmdline_main(asked)
    assert asked.option.numprocesses == processes and asked.option.dist == "no"


def test_it_runs_without_the_plugin(conftest: Any) -> None:
    plain = config()
    plain.option = SimpleNamespace()
    plain.getoption = lambda _, default=None: default
    conftest.pytest_cmdline_main(plain)
    conftest.pytest_configure(plain)
    assert not vars(plain.option)


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "4"), (8, "1"), (16, "1")])
def test_processes_share_the_threads(
    conftest: Any, monkeypatch: pytest.MonkeyPatch, processes: int, threads: str | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back, whatever it was
    monkeypatch.delenv("OMP_NUM_THREADS")
    one = config()
    one.option.tx = ["popen"] * processes
    conftest.pytest_configure(one)
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    conftest.pytest_configure(one)
    assert os.environ["OMP_NUM_THREADS"] == "5"
