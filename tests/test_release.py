"""What a release asks: a tag that is the version, and a dated entry of what changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import trakstore as ts

ROOT = Path(__file__).parent.parent
NEEDED = ("trakstore/__init__.py", "docs/changes.md", ".ci/check-release")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is looked at, of version 1.2.3 and with an entry that is dated."""
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, pattern, new in [
        (NEEDED[0], r'(?m)^__version__ = ".*"$', '__version__ = "1.2.3"'),
        (NEEDED[1], r"(?m)^## .*$", "## 1.2.3, 2026-12-01"),
    ]:
        path = tmp_path / name
        text, count = re.subn(pattern, new, path.read_text(), count=1)
        assert count == 1
        path.write_text(text)
    return tmp_path


def check(tree: Path, tag: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(tree / ".ci" / "check-release"), tag]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_a_tag_is_the_version_and_its_changes_are_dated(tree: Path) -> None:
    assert (check(tree, "v1.2.3").returncode, check(tree, "v1.2.3").stderr) == (0, "")
    for tag in ("v1.2.4", "1.2.3", "v1.2.3rc1"):
        done = check(tree, tag)
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"the tag is {tag}, and the version in trakstore/__init__.py is"
        )
    changes = tree / "docs" / "changes.md"
    changes.write_text(changes.read_text().replace("1.2.3, 2026-12-01", "1.2.3, not released"))
    done = check(tree, "v1.2.3")
    assert done.returncode == 1 and "has no heading '## 1.2.3, YYYY-MM-DD'" in done.stderr


def test_changes_begin_with_this_version() -> None:
    headings = re.findall(r"(?m)^## (.*)$", (ROOT / "docs" / "changes.md").read_text())
    assert headings[0].partition(", ")[0] == ts.__version__


def test_the_workflow_runs_what_is_there() -> None:
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    run = re.findall(r"(?m)^ *- run: (\S+)", workflow)
    assert run == [".ci/check-release", ".ci/package"]
    assert all(os.access(ROOT / one, os.X_OK) for one in run)
