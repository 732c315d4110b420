"""Texts on the page that are shaded by the scores of their tokens, and tokens as targets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.whole_models import Language

import trakstore as ts
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize_job
from trakstore.report import write_report
from trakstore.report.sample import shown_text
from trakstore.report.sample_source import sample_source
from trakstore.report.text_parts import token_parts

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


class Letters:
    """A tokenizer of letters, the third of which would be HTML."""

    all_special_ids = (0,)

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join("<i>" if one == 2 else chr(97 + one) for one in ids)


def job(**options: Any) -> Job:
    torch.manual_seed(0)
    data = {
        split: [{"input_ids": one, "labels": one} for one in torch.randint(0, 11, (rows, 5))]
        for split, rows in (("train", 8), ("test", 3))
    }
    options = {"tokens": 1, "ids": {"test": ["a", "b", "c"]}, **options}
    return Job(
        Named(), data, output="causal_lm", projector=ts.ProjectionSpec("sjlt", dim=16), **options
    )


class Named(Language):
    """The model with the name of its argument as texts have it."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids)


@pytest.fixture(scope="module")
def own() -> Job:
    return job()


@pytest.fixture(scope="module")
def store(own: Job, tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    where = tmp_path_factory.mktemp("shaded") / "s.zarr"
    featurize_job(own, where, progress=False)
    store = ts.open_store(where)
    store.mask("train", [0])
    return ts.open_store(where)


def tokens_on(page: str) -> list[tuple[str, str, str]]:
    """Classes, number and text of every token that has a score."""
    found = re.findall(r'<span class="token([^"]*)" title="([^"]+)">([^<]*)</span>', page)
    return [(classes, number, text) for classes, number, text in found]


def test_the_first_texts_of_each_list_are_shaded(
    own: Job, store: ts.FeatureStore, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"job": own, "render": Letters(), "k": 3, "target_ids": ["b"]}
    write_report(store, tmp_path / "r.html", tokens=2, **asked)
    page = (tmp_path / "r.html").read_text()
    tokens = tokens_on(page)
    # Four tokens of each of two samples in both lists: the first of a text is predicted by nothing.
    assert len(tokens) == 4 * 2 * 2
    first = ts.Query(store, own).ask(target="b", k=3, tokens=2).proponents[0]
    assert first.tokens is not None
    for (classes, number, text), part in zip(tokens, first.tokens.scored, strict=False):
        letter = Letters().decode([int(part.text)])
        assert text == letter.replace("<", "&lt;").replace(">", "&gt;")
        value = float(number.replace("−", "-"))
        np.testing.assert_allclose(value, part.score, rtol=0.06)
        way = "for" if part.level > 0 else "against"
        assert classes == (f" {way} {way}{abs(part.level)}" if part.level else "")
    # What the colours say stands there in words, too.
    strongest = re.findall(r"<li><code>(.*?)</code> <span>(.*?)</span></li>", page)
    assert len(strongest) == 3 * 2 * 2
    largest = max(first.tokens.scored, key=lambda one: abs(one.score))
    assert strongest[0][1] == largest.number
    assert "tokens that raise the score" in page
    assert "<i>" not in page
    write_report(store, tmp_path / "plain.html", **asked)
    plain = (tmp_path / "plain.html").read_text()
    assert tokens_on(plain) == []
    assert "tokens that raise" not in plain


def test_a_token_that_is_a_target_is_marked_in_its_text(
    own: Job, store: ts.FeatureStore, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"job": own, "render": Letters(), "k": 2, "target_ids": ["b#3"]}
    write_report(store, tmp_path / "t.html", targets="test~tokens", **asked)
    page = (tmp_path / "t.html").read_text()
    ids = own.datasets["test"][1]["input_ids"].tolist()
    marked = re.findall(r'<strong class="asked">(.*?)</strong>', page)
    assert marked == [Letters().decode([ids[3]]).replace("<", "&lt;").replace(">", "&gt;")]
    # Without a tokenizer the sample is shown as it is.
    split = store.split(0, "test~tokens")
    shown = sample_source(own, None, [split])("test~tokens", 5, "b#2")
    assert shown is not None
    assert dict(shown.cells)["input_ids"] == " ".join(map(str, ids))
    answer = ts.Query(store, own, targets="test~tokens").ask(target="b#3", k=2)
    assert answer.target == "b#3"
    assert answer.predicted is None


def test_runs_of_tokens_are_marked_together(tmp_path: Path) -> None:
    other = job(tokens={"test": 2})
    featurize_job(other, tmp_path / "s.zarr", splits=["test~tokens"], progress=False)
    split = ts.open_store(tmp_path / "s.zarr").split(0, "test~tokens")
    source = sample_source(other, Letters(), [split])
    shown = source("test~tokens", 1, "a#3")
    assert shown is not None
    ids = other.datasets["test"][0]["input_ids"].tolist()
    marked = [one.text for one in shown.parts if one.kind == "asked"]
    assert "".join(marked) == Letters().decode(ids[3:5])
    # Other texts than were featurized are refused, as of any split.
    changed = job()
    changed.datasets["test"][0]["input_ids"] = changed.datasets["test"][1]["input_ids"]
    with pytest.raises(SpecMismatchError, match="other samples"):
        sample_source(changed, Letters(), [split])
    changed.datasets = {"train": changed.datasets["train"]}
    with pytest.raises(NotFoundError, match="no data set 'test'"):
        sample_source(changed, Letters(), [split])


def test_a_run_is_of_tokens_that_count_of_the_sample_that_is_read(tmp_path: Path) -> None:
    chat = {"input_ids": [1, 3, 4, 5, 6, 7, 8], "labels": [-100, 3, 4, -100, -100, 7, 8]}

    def behind_a_prompt(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Two tokens before each sample: its numbers are those of what is read."""
        rows = {name: [one[name] for one in samples] for name in ("input_ids", "labels")}
        begin = {"input_ids": [1, 1], "labels": [-100, -100]}
        return {name: torch.tensor([begin[name] + one for one in rows[name]]) for name in rows}

    for collate, more in ((None, 0), (behind_a_prompt, 2)):
        sample: Any = chat if collate else {name: torch.tensor(row) for name, row in chat.items()}
        other = Job(
            Named(),
            {"train": [sample], "test": [sample]},
            output="causal_lm",
            projector=ts.ProjectionSpec("sjlt", dim=8),
            tokens=3,
            collate=collate,
        )
        where = tmp_path / f"{more}.zarr"
        featurize_job(other, where, splits=["test~tokens"], progress=False)
        split = ts.open_store(where).split(0, "test~tokens")
        names = split.column("sample_id").read(0, split.rows).tolist()
        assert names == [f"0#{1 + more}", f"0#{6 + more}"]
        source = sample_source(other, Letters(), [split])
        for row, wanted in enumerate(([3, 4, 7], [8])):
            shown = source("test~tokens", row, names[row])
            assert shown is not None
            marked = "".join(one.text for one in shown.parts if one.kind == "asked")
            assert marked == Letters().decode(wanted)


def test_a_page_keeps_what_a_function_shows_in_place_of_texts(
    own: Job, store: ts.FeatureStore, tmp_path: Path
) -> None:
    class Collator:
        tokenizer = Letters()

        def __call__(self, samples: Any) -> Any:
            return {name: torch.stack([one[name] for one in samples]) for name in samples[0]}

    own = replace(own, collate=Collator())
    asked: dict[str, Any] = {"job": own, "render": lambda _: "[hidden]", "k": 2}
    for targets, names in (("test", ["b"]), ("test~tokens", ["b#2"])):
        where = tmp_path / "h.html"
        write_report(store, where, targets=targets, target_ids=names, tokens=1, **asked)
        page = where.read_text()
        assert "[hidden]" in page
        assert tokens_on(page) == [] == re.findall(r'<strong class="asked">(.*?)</strong>', page)
        strongest = re.findall(r"<li><code>(.*?)</code> <span>(.*?)</span></li>", page)
        assert len(strongest) == 3 * 2
        assert all(re.fullmatch(r"token \d", one) for one, _ in strongest)


def test_the_strongest_tokens_are_those_of_the_whole_text() -> None:
    scores = dict(enumerate([0.1] * 39 + [-5.0]))
    parts = token_parts({"input_ids": list(range(10)) * 4}, Letters(), scores)
    assert parts is not None
    shown = shown_text(parts, letters=10)
    assert len(shown.text) < 20 and "…" in shown.text
    assert shown.strongest[0].tokens == (39,)


def test_what_cannot_be_shaded_is_refused(own: Job, store: ts.FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(TrakStoreError, match="by the models of a job"):
        write_report(store, tmp_path / "r.html", k=3, tokens=1)
    with pytest.raises(TrakStoreError, match="tokens must be an integer from 0 to 3"):
        write_report(store, tmp_path / "r.html", job=own, k=3, tokens=4)
    of_tokens = replace(own, tokens={"train": 1, "test": 1})
    where = tmp_path / "s.zarr"
    featurize_job(of_tokens, where, splits=["train~tokens", "test"], progress=False)
    asked: dict[str, Any] = {"job": of_tokens, "train": "train~tokens", "k": 3}
    with pytest.raises(TrakStoreError, match="'train~tokens' is none of its data sets"):
        write_report(ts.open_store(where), tmp_path / "r.html", tokens=1, **asked)
    assert not (tmp_path / "r.html").exists()
