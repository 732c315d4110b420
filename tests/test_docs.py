"""The API's pages build from docstrings, without a warning, and show what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trakstore as ts
from trakstore import attributors, evaluation, features, kernels, serve

ROOT = Path(__file__).parent.parent
PAGES = {
    "trakstore": ts.__all__,
    "trakstore/features": features.__all__,
    "trakstore/evaluation": evaluation.__all__,
    "trakstore/attributors": attributors.__all__,
    "trakstore/kernels": kernels.__all__,
    "trakstore/serve": serve.__all__,
}


def docstrings(page: str) -> list[str]:
    """What a page says outside of code."""
    found = re.findall(r'<div class="docstring">(.*?)</div>', page, flags=re.DOTALL)
    return [re.sub(r"<(pre|code).*?</\1>", "", one, flags=re.DOTALL) for one in found]


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
    for name, members in PAGES.items():
        page = (tmp_path / f"{name}.html").read_text()
        missing = [one for one in members if f'<section id="{one}">' not in page]
        assert not missing, f"{name}.html lacks {missing}"
    said = [one for path in tmp_path.rglob("*.html") for one in docstrings(path.read_text())]
    raw = [one for one in said if re.search(r":[a-z]+:`|\.\. [a-z]+::|``|<p>-{3,}", one)]
    assert len(said) > 200 and not raw, f"markup that is not rendered: {raw[:3]}"
