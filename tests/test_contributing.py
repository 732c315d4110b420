"""What CONTRIBUTING.md points to is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text()


def test_the_files_that_it_names_exist() -> None:
    names = set(re.findall(r"`((?:[\w.]+/)*[\w.]+(?:/|\.py|\.md))`", TEXT))
    assert len(names) > 25
    found = {one for one in names if (ROOT / one).exists() or (ROOT / "trakstore" / one).exists()}
    assert not names - found


def test_the_names_that_it_says_a_file_holds_are_in_it() -> None:
    held = re.findall(r"`(\w+)` (?:of|in)\s+`([\w./]+\.py)`", TEXT)
    assert len(held) >= 5
    for name, file in held:
        (path,) = (p for p in (ROOT / file, ROOT / "trakstore" / file) if p.exists())
        assert re.search(rf"\b{name}\b", path.read_text()), f"{file} has no {name}"
