"""The public names, and what importing them costs."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import trakstore as ts
from trakstore import kernels

QUERY_MODULES = [
    "trakstore",
    "trakstore.analysis",
    "trakstore.kernels",
    "trakstore.methods",
    "trakstore.passes",
    "trakstore.report",
    "trakstore.scores",
    "trakstore.storage",
]


def test_every_public_name_is_there_and_documented() -> None:
    assert len(ts.__all__) <= 30
    for name in ts.__all__:
        assert getattr(ts, name).__doc__, name


def test_solvers_are_public_and_documented() -> None:
    for name in kernels.__all__:
        assert getattr(kernels, name).__doc__, name


def test_the_query_side_leaves_torch_out() -> None:
    code = f"""
import importlib, sys
for module in {QUERY_MODULES}:
    importlib.import_module(module)
    assert "torch" not in sys.modules, module
"""
    subprocess.run([sys.executable, "-c", code], check=True)


HEAVY = {"dask", "distributed", "numba", "numpy", "pandas", "scipy", "torch", "xarray", "zarr"}


@pytest.mark.parametrize(
    "code", ["import trakstore", "from trakstore.cli import main; main(['--help'])"]
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    command = f"import sys; {code}; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "trakstore" in done.stderr.split()
    assert not HEAVY & set(done.stderr.split())


def test_names_and_modules_come_when_they_are_asked_for() -> None:
    code = """
import trakstore as ts
assert set(ts.__all__) <= set(dir(ts))
assert ts.kernels.Cholesky.__name__ == "Cholesky"
assert ts.Damping is ts.kernels.solvers.Damping
assert not hasattr(ts, "nothing_of_this_name")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def processor_seconds(*arguments: str) -> float:
    """User time of a new interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("-c", "import trakstore"), ("-m", "trakstore", "--help")])
def test_the_start_takes_less_time_than_the_import_of_its_storage(arguments: tuple[str]) -> None:
    # The least of several: other processes only ever add.
    own = min(processor_seconds(*arguments) for _ in range(3))
    storage = min(processor_seconds("-c", "import numpy, zarr") for _ in range(3))
    assert own < storage
