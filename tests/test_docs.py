"""The documentation builds without a warning, and its reference has every public name."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trakstore as ts
from trakstore import analysis, attributors, errors, evaluation, features, kernels, report, serve
from trakstore.cli.commands import COMMANDS, EVALUATIONS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
DOORS = (ts, analysis, attributors, evaluation, features, kernels, report, serve)


def listed() -> set[str]:
    """Names that the reference has a page for, as its tables list them."""
    names = set()
    for page in REFERENCE.glob("*.md"):
        for module, table in re.findall(
            r"currentmodule:: (\S+)\n.. autosummary::\n(?:   :.*\n)+\n((?:   \S+\n)+)",
            page.read_text(),
        ):
            names |= {f"{module}.{name}" for name in table.split()}
    return names


def objects(names: set[str]) -> set[int]:
    """Identities of what dotted names lead to: one object may have several names."""
    return {id(pkgutil.resolve_name(":".join(name.rsplit(".", 1)))) for name in names}


def test_the_reference_lists_every_public_name() -> None:
    pages = objects(listed())
    missing = [
        f"{door.__name__}.{name}"
        for door in DOORS
        for name in door.__all__
        if id(getattr(door, name)) not in pages
    ]
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    raised = [one for one in kinds if issubclass(one, ts.TrakStoreError)]
    missing += [one.__name__ for one in raised if id(one) not in pages]
    assert not missing


@pytest.mark.slow
def test_the_pages_build(tmp_path: Path) -> None:
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", str(ROOT / ".ci" / "docs"), str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = tmp_path / "reference" / "generated"
    missing = [name for name in listed() if not (made / f"{name}.html").is_file()]
    assert not missing
    commands = (made / "commands.html").read_text()
    sections = [f"trakstore-{one.name}" for one in COMMANDS]
    sections += [f"trakstore-evaluate-{one.name}" for one in EVALUATIONS]
    assert not [one for one in sections if f'id="{one}"' not in commands]
    articles = [
        re.sub(r"<(pre|code|head|nav)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL)
        for path in tmp_path.rglob("*.html")
    ]
    raw = [one for text in articles for one in re.findall(r":[a-z]+:`.{20}|\.\. [a-z]+::|``", text)]
    assert len(articles) > 100 and not raw, f"markup that is not rendered: {raw[:3]}"
