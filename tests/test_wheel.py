"""The wheel builds, holds every file of the package, and runs where only it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import trakstore as ts

ROOT = Path(__file__).parent.parent
NEEDED = {
    *("py.typed", "report/page.css", "report/page.js", "report/macros.html"),
    *("report/theme.js", "report/cut_boxes.js"),
    *("serve/live.html", "serve/answer.html", "storage/FORMAT.md"),
}

# pytest's own import path leads to the checkout: this looks only where the wheel was put
ASK = """
import importlib.metadata, importlib.resources, trakstore.report.page, trakstore.features
print(importlib.metadata.version("trakstore"))
print(trakstore.__file__)
print(importlib.resources.files("trakstore").joinpath("storage/FORMAT.md").is_file())
"""


def run(*command: str | Path, **environment: str) -> str:
    whole = [str(one) for one in (sys.executable, *command)]
    done = subprocess.run(
        whole,
        cwd=environment.pop("cwd", ROOT),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> set[str]:
    """All files of the package, as the checkout has them, but the one for tests of examples."""
    found = (one for one in (ROOT / "trakstore").rglob("*") if one.is_file())
    found = (one for one in found if one.name != "conftest.py")
    return {str(one.relative_to(ROOT)) for one in found if "__pycache__" not in one.parts}


@pytest.mark.slow
def test_the_wheel_builds_and_installs(tmp_path: Path) -> None:
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if name.startswith("trakstore/")}
    assert held == sources()
    assert {f"trakstore/{name}" for name in NEEDED} <= held

    target = tmp_path / "installed"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, "--target", target, wheel)
    alone = {"PYTHONPATH": str(target), "cwd": str(tmp_path)}
    version, place, has_format = run("-c", ASK, **alone).split()
    assert version == ts.__version__ and has_format == "True"
    assert Path(place).is_relative_to(target)
    assert run(target / "bin" / "trakstore", "--version", **alone) == f"trakstore {version}\n"
