"""How-tos work as they stand: Python blocks, and lines about the digits, are run."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_lines
from page_blocks import blocks, run_block, shows

from trakstore.features import featurize_job, load_job

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
STORE, JOB = "digits.zarr", "examples/digits.py:digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that pages begin with, made once."""
    place = tmp_path_factory.mktemp("pages") / STORE
    featurize_job(load_job(str(ROOT / JOB)), place, progress=False)
    return place


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with that store in it, and a language model's tokenizer."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, STORE)
    shutil.copytree(ROOT / "examples", "examples")
    pytest.importorskip("transformers").ByT5Tokenizer().save_pretrained("my-model")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("folder")
def test_a_page_runs(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "howto"}
    printed = None
    for block in blocks(page.read_text()):
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the data are few
                printed = run_block(page, block, names)
            continue
        if block.language == "text":
            assert printed is not None
            assert shows(block.text, printed), f"line {block.line}: printed was\n{printed}"
        elif block.language == "bash":
            # The store is there; a service does not end; no scheduler is at that address.
            text = "\n".join(line for line in block.text.splitlines() if "tcp://" not in line)
            run_lines(text, {STORE}, {"featurize", "serve"})
        printed = None


def test_there_are_pages_and_they_show_blocks() -> None:
    assert len(PAGES) >= 12
    every = [block for page in PAGES for block in blocks(page.read_text())]
    assert sum(block.language == "python" for block in every) >= 12
