"""The page: its sections are those that are listed, and texts are seen in their lines, as text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.features import Job, featurize_job
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


HOSTILE = "<script>alert(1)</script>\n\t</pre><mark onclick=alert(2)>\u202e&amp;\r\n"
LONG = "".join(f"line {at} <i>\n" for at in range(40))
TEXTS = {"train": [HOSTILE, LONG, HOSTILE[::-1]], "test": [HOSTILE, LONG]}


class Letters:
    """A tokenizer whose tokens are characters; the last one is special."""

    all_special_ids = (ord("\n"),)

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(map(chr, ids))


class Collator:
    """Sums of the tokens, for a model of one number; with a tokenizer, as transformers' have one."""

    tokenizer = Letters()

    def __call__(self, rows: list[dict[str, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        sums = [[float(sum(row["input_ids"])) / 1e4] for row in rows]
        return torch.tensor(sums), torch.tensor([len(row["labels"]) % 2 for row in rows])


def rows(texts: list[str]) -> list[dict[str, list[int]]]:
    """Tokens of texts; the first 10 are a prompt."""
    ids = [list(map(ord, text)) for text in texts]
    return [{"input_ids": one, "labels": [-100] * 10 + one[10:]} for one in ids]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Report of texts that are known by their tokens."""
    folder = tmp_path_factory.mktemp("texts")
    job = Job(
        torch.nn.Linear(1, 2),
        {split: rows(texts) for split, texts in TEXTS.items()},
        output="margin",
        projector=ts.ProjectionSpec("sjlt", dim=3),
        collate=Collator(),
        ids={"train": ["a\nb", "c\td", "e"], "test": ["f\n<b>", "g"]},
    )
    featurize_job(job, folder / "s.zarr")
    store = ts.open_store(folder / "s.zarr")
    written = write_report(store, folder / "page.html", job=job, k=3)
    assert not written.token_ids
    return written.path.read_text()


def test_tokens_are_text_and_no_markup(page: str) -> None:
    assert page.count("<script>") == 1 and "alert(1)" in page
    assert "onclick=alert" not in page.replace("&lt;mark onclick=alert(2)&gt;", "")
    whole = '<pre class="words" dir="auto">\n<span class="prompt">&lt;script&gt;al</span>'
    whole += "<mark>ert(1)&lt;/script&gt;</mark>" + '<span class="special">\n</span>'
    whole += "<mark>\t&lt;/pre&gt;&lt;mark onclick=alert(2)&gt;\\u202e&amp;amp;"
    assert page.count(whole) >= 2  # of the target, and of the train sample


def test_long_texts_are_opened_on_demand(page: str) -> None:
    parts = page.split('<div class="sample text">')[1:]
    long = [part for part in parts if "line 39" in part.split("</div>")[0]]
    assert long and all("<details>" in part.split("</div>")[0] for part in long)
    closed = long[0].split("</details>")[1].split("</div>")[0]
    assert f"All {len(LONG)} characters, 41 lines" in long[0]
    assert "line 5" in closed and "line 15" not in closed
    short = [part for part in parts if "line 39" not in part.split("</div>")[0]]
    assert short and not any("<details>" in part.split("</div>")[0] for part in short)


def test_ids_are_one_line(page: str) -> None:
    assert "a\nb" not in page and "c\td" not in page and "f\n&lt;b&gt;" not in page
    assert page.count(r'title="a\nb"') >= 2 and r"</small> f\n&lt;b&gt;</h3>" in page


def test_the_marks_are_explained(page: str, tmp_path: Path) -> None:
    assert "<mark>what is learned</mark>" in page
    assert "<mark>" not in written(tmp_path, (1,), None)
