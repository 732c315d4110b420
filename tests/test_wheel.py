"""The wheel builds, holds every file of the package, and runs where only it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
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


def description(wheel: Path) -> str:
    """The text that an index shows of a wheel."""
    with ZipFile(wheel) as opened:
        (name,) = [one for one in opened.namelist() if one.endswith("/METADATA")]
        return opened.read(name).decode().partition("\n\n")[2]


@pytest.mark.slow
def test_the_wheel_builds_and_installs(tmp_path: Path) -> None:
    built = tmp_path / "dist"
    # The wheel is built from the sdist, which so is seen to be whole.
    run("-m", "build", "--no-isolation", "--outdir", built, ROOT)
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    run("-m", "twine", "check", "--strict", wheel, sdist)
    held = {name for name in ZipFile(wheel).namelist() if name.startswith("trakstore/")}
    assert held == sources()
    assert {f"trakstore/{name}" for name in NEEDED} <= held
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert sources() <= names
    assert {"README.md", "LICENSE", "tests/test_wheel.py", "docs/changes.md"} <= names

    # Of the README all is there but what leads nowhere on an index.
    shown = description(wheel)
    leads = re.findall(r"\]\((?!https?://)[^)]*\)", re.sub(r"(?s)```.*?```", "", shown))
    assert not leads and shown.startswith("# trakstore\n")
    code = re.compile(r"(?s)```.*?```")
    assert code.findall(shown) == code.findall((ROOT / "README.md").read_text())

    target = tmp_path / "installed"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, "--target", target, wheel)
    alone = {"PYTHONPATH": str(target), "cwd": str(tmp_path)}
    version, place, has_format = run("-c", ASK, **alone).split()
    assert version == ts.__version__ and has_format == "True"
    assert Path(place).is_relative_to(target)
    assert run(target / "bin" / "trakstore", "--version", **alone) == f"trakstore {version}\n"
