"""The public names, and what importing them costs."""

from __future__ import annotations

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


@pytest.mark.parametrize("module", QUERY_MODULES)
def test_the_query_side_leaves_torch_out(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
