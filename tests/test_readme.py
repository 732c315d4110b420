"""What README.md shows works: blocks run in order, command lines parse, links lead somewhere."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from command_lines import check_options, check_whole, run_lines, trakstore_lines
from page_blocks import blocks, inline_code, run_block, shows, without_blocks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MOST_WORDS = 1600
OURS = {"examples/digits.py:digits", "digits.zarr"}  # lines with these run as they stand
DOCUMENTS = [
    README,
    ROOT / "benchmarks" / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has who works in a clone, and has trained a language model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    transformers = pytest.importorskip("transformers")
    transformers.ByT5Tokenizer().save_pretrained("my-model")
    return {"__name__": "readme"}


@pytest.mark.slow
def test_its_blocks_run(names: dict[str, Any]) -> None:
    ran, shown, lines, printed = 0, 0, 0, None
    for block in blocks(README.read_text()):
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the data are few
                printed = run_block(README, block, names)
            ran += 1
            continue
        if block.language == "text" and printed is not None:
            assert shows(block.text, printed), f"line {block.line}: printed was\n{printed}"
            shown += 1
        elif block.language == "bash":
            lines += run_lines(block.text, OURS, {"serve"})  # which does not end
        printed = None
    assert ran >= 10
    assert shown >= 1
    assert lines >= 3


def test_it_is_short() -> None:
    # Code, tables and links are counted too, as `wc -w README.md` does.
    assert len(README.read_text().split()) <= MOST_WORDS


def test_blocks_are_of_known_languages() -> None:
    found = {block.language for block in blocks(README.read_text())}
    assert found == {"python", "bash", "text"}


def test_the_command_lines_parse() -> None:
    text = README.read_text()
    lines = [
        words
        for block in blocks(text)
        if block.language == "bash"
        for words in trakstore_lines(block.text)
    ]
    assert len(lines) >= 6
    for words in lines:
        check_whole(words)


def test_the_options_in_the_prose_exist() -> None:
    inline = [one for one in inline_code(README.read_text()) if one.startswith("trakstore ")]
    assert inline
    for one in inline:
        (words,) = trakstore_lines(" ".join(one.split()))
        check_options(words)


@pytest.mark.parametrize(
    "line", ["topk run.zarr --kk 5", "topk", "kernle run.zarr", "topk a --k x"]
)
def test_what_does_not_parse_is_seen(line: str) -> None:
    (words,) = trakstore_lines(f"cd a && .venv/bin/trakstore {line}")
    with pytest.raises(
        Exception, match=r"No such option|Missing|no such command|Invalid|valid int"
    ):
        check_whole(words)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    for target in links_in(without_blocks(page.read_text())):
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if heading:
            assert heading in headings(file), f"{file} has no heading #{heading}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_that_are_run_are_there(page: Path) -> None:
    code = [one.text for one in blocks(page.read_text()) if one.language == "bash"]
    text = "\n".join([*code, *inline_code(page.read_text())])
    named = set(re.findall(r"\b(?:examples|benchmarks)/\w+\.(?:py|sh)\b", text))
    assert not [one for one in named if not (ROOT / one).exists()]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_package_is_installed_from_a_clone(page: Path) -> None:
    # It is on no index yet: what is there under its name, one day, may be anybody's.
    installed = re.findall(r"pip install [^\n`&]*", page.read_text())
    assert not [line for line in installed if re.search(r"\btrakstore\b", line)]


def test_a_missing_file_and_heading_are_seen() -> None:
    assert "a-heading-with-code-and-a-comma" in slugs("## A heading, with `code` and a comma")
    assert links_in("![a](b.png) [c](d.md#e) [f](https://g.h)") == ["b.png", "d.md#e"]


def links_in(text: str) -> list[str]:
    """Targets of links and pictures that are no addresses."""
    return [one for one in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in one]


def headings(page: Path) -> set[str]:
    return slugs(page.read_text())


def slugs(text: str) -> set[str]:
    """Names that GitHub, and MyST after it, give to headings."""
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in found}
