"""Pages of the documentation work: their Python blocks run in order, their command lines parse."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from command_lines import check_options, check_whole, trakstore_lines
from page_blocks import Block, blocks, run_page, shows

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "generated" not in page.parts)
TUTORIALS = [DOCS / "index.md", *sorted((DOCS / "tutorials").glob("*.md"))]
SLOW = {"cluster.md", "text.md"}  # processes that import all anew; transformers and peft


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


def in_python(page: Path) -> bool:
    return any(block.language == "python" for block in blocks(page.read_text()))


RUN = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in TUTORIALS
    if in_python(page)
]


@pytest.mark.parametrize("page", RUN)
def test_a_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the data are few
        assert run_page(page, {"__name__": "tutorial"}) >= 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_parse(page: Path) -> None:
    text = page.read_text()
    for block in blocks(text):
        for words in trakstore_lines(block.text) if block.language == "bash" else ():
            check_whole(words)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for one in re.findall(r"`(trakstore [^`]+)`", prose):
        for words in trakstore_lines(" ".join(one.split())):
            check_options(words)


def test_the_tutorials_show_command_lines() -> None:
    found = [block for page in TUTORIALS for block in blocks(page.read_text())]
    assert sum(len(trakstore_lines(b.text)) for b in found if b.language == "bash") >= 6


def test_what_a_page_shows_is_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"line 5 of page\.md shows"):
        run_page(page, {})
    page.write_text("```python\nx = 2\n```\n\nWords.\n\n```text\nno output\n```\n")
    assert run_page(page, {}) == 1
    assert shows("a ... c\n", "a b c\n") and not shows("a\n", "a\nb\n")
    assert blocks("<!--\n```python\nhidden = 1\n```\n-->\n") == [Block("python", "hidden = 1\n", 2)]
