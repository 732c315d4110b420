"""The page: its sections are those that are listed, in that order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.report import write_report
from trakstore.report.sections import SECTIONS

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def written(folder: Path, epochs: tuple[int, ...], labels: list[int] | None) -> str:
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.create(folder / "s", projection=ts.ProjectionSpec("sjlt", dim=3))
    for epoch in epochs:
        for split in ("train", "test"):
            features = rng.normal(size=(5, 3)).astype("f4")
            store.write_split(epoch, split, features, out_to_loss=np.ones(5), labels=labels)
    return write_report(store, folder / "page.html", k=2).path.read_text()


@pytest.mark.parametrize(
    ("epochs", "labels", "missing"),
    [((1, 2), [0, 1, 0, 1, 0], set()), ((1,), None, {"Transition", "Classes"})],
)
def test_sections_are_those_that_are_listed(
    tmp_path: Path, epochs: tuple[int, ...], labels: list[int] | None, missing: set[str]
) -> None:
    page = written(tmp_path, epochs, labels)
    there = [name for name in SECTIONS if name not in missing]
    titles = re.findall(r'<section id="(\w+)" aria-labelledby', page)
    assert titles == [name.lower() for name in there]
    navigation = page.split('<nav aria-label="Sections">')[1].split("</nav>")[0]
    assert re.findall(r'<a href="#(\w+)">(\w+)</a>', navigation) == [
        (name.lower(), name) for name in there
    ]
