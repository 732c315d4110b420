"""``trakstore report``: the page says what the library says, and holds no text unescaped."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.analysis.transition import transition
from trakstore.features import load_job
from trakstore.spec import OutputSpec

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

RENDER = """
import numpy as np

def words(sample):
    return f"sample of {len(sample)}: {sample[0]}"

def nothing(sample):
    return None

def picture(sample):
    return np.full((4, 4), 255 * (sample.row % 2), dtype=np.uint8)

number = 3
"""
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x$ & {{ 7*7 }}"]


class Page(HTMLParser):
    """Tags with their attributes, and the texts of some classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def having(self, **attributes: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.tags if attributes.items() <= a.items()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.fixture
def render(tmp_path: Path) -> Path:
    path = tmp_path / "renders.py"
    path.write_text(RENDER)
    return path


def listed(text: str, title: str) -> list[str]:
    """Names of the train samples in a list of cards."""
    part = text.split(f'aria-label="{title}"')[1].split("</ol>")[0]
    return re.findall(r'<span class="name" title="([^"]*)"', part)


def test_the_lists_are_those_of_the_library(run: Any, store: ts.FeatureStore, out: Path) -> None:
    ran = run("report", store.location, "-o", out, "--k", "4", "--target", "t5", "--target", "@2")
    assert ran.code == 0 and "2 targets" in ran.out and ran.err == ""
    text = out.read_text()
    scores = ts.trak_scores(store).isel(target=[5, 2])
    for title, order in (("Proponents", "largest"), ("Opponents", "smallest")):
        wanted = ts.top_k(scores, 4, order=order)["train"].values.tolist()
        for name, ids in zip(("t5", "t2"), wanted, strict=True):
            assert listed(text, f"{title} of {name}") == [str(one) for one in ids]
    assert "of the 2 shown targets comes from their own class" in text
    assert "the table is of all 7 targets" in text
    assert len(listed(text, "Gained")) == len(listed(text, "Lost")) == 4
    worst = ts.self_scores(store).values.argsort()[::-1][:24]
    assert listed(text, "Suspects") == [str(one) for one in worst]
    for section in ("transition", "classes", "suspects", "scores", "kernels", "store"):
        assert Page(text).having(id=section)


def test_a_null_gives_false_discovery_rates(run: Any, store: ts.FeatureStore, out: Path) -> None:
    asked = ["report", store.location, "-o", out, "--k", "4", "--count", "2"]
    ends = ["--before", "1", "--after", "2"]
    run(*asked, *ends)
    assert "FDR" not in out.read_text() and "descriptions, not findings" in out.read_text()
    run(*asked, *ends, "--null", "2,final")
    scores = ts.trak_scores(store)
    null = [(scores.epoch(2), scores.epoch("final"))]
    found = transition(scores.epoch(1), scores.epoch(2), null, k=4)
    shown = re.findall(r", FDR ([^<\s]+)", out.read_text())
    wanted = [*found.gained["q"].values, *found.lost["q"].values]
    assert shown == [f"{one:.2g}" for one in wanted]
    assert "1 null pair of epochs" in out.read_text()


def test_the_kernels_are_those_of_the_scores(run: Any, tmp_path: Path, out: Path) -> None:
    rng, output = np.random.default_rng(0), OutputSpec("margin")
    spec = ts.ProjectionSpec("sjlt", dim=3)
    store = ts.FeatureStore.create(tmp_path / "m.zarr", projection=spec, output=output)
    for split in ("train", "test"):
        features, q = rng.normal(size=(9, 3)).astype("f4"), rng.uniform(size=9)
        store.write_split(0, split, features, out_to_loss=q)
    weighted = {"trak": "logistic-2", "published-trak": "none", "influence": "logistic"}
    for method, weighting in weighted.items():
        ran = run("report", store.location, "-o", out, "--k", "2", "--method", method)
        assert ran.code == 0, ran.err
        lam = ts.kernel_report(store, 0, weighting=weighting).lam
        assert f"<td>{lam:.3g}</td>" in out.read_text()


def test_it_loads_and_leaks_nothing(run: Any, store: ts.FeatureStore, out: Path) -> None:
    run("report", store.location, "-o", out, "--count", "3")
    page = Page(out.read_text())
    links = [a.get(name) or "" for _, a in page.tags for name in ("src", "href") if name in a]
    assert links and all(one.startswith(("#", "data:")) for one in links)
    assert not any("style" in a or any(k.startswith("on") for k in a) for _, a in page.tags)
    (policy,) = page.having(**{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in (policy["content"] or "")
    assert "unsafe" not in (policy["content"] or "")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, one in page.tags:
        for name in ("aria-controls", "aria-labelledby"):
            assert name not in one or one[name] in ids


def test_a_render_function_that_raises_is_told_in_a_line(
    run: Any, store: ts.FeatureStore, render: Path, out: Path
) -> None:
    render.write_text("def words(sample):\n    return sample.text\n")
    ran = run("report", store.location, "-o", out, "--render", f"{render}:words", "--count", "1")
    assert "words: AttributeError: 'StoredSample' object has no attribute 'text' (rend" in ran.error
    assert not out.exists()


def test_hostile_names_are_text(run: Any, tmp_path: Path, out: Path) -> None:
    rng, place = np.random.default_rng(0), tmp_path / "h.zarr"
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", dim=3))
    for epoch in (1, 2):
        for split in ("train", "test"):
            features = rng.normal(size=(3, 3)).astype(np.float32)
            store.write_split(epoch, split, features, out_to_loss=np.ones(3), ids=HOSTILE)
    renders = tmp_path / "r.py"
    renders.write_text("def hostile(sample):\n    return sample.id\n")
    ran = run("report", place, "-o", out, "--k", "3", "--render", f"{renders}:hostile")
    assert ran.code == 0, ran.err
    text = out.read_text()
    assert "<script>alert" not in text and "<img src=x" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 6
    assert text.count("<script>") == 1 and "{{ 7*7 }}" in text
    assert not any("onerror" in attributes for _, attributes in Page(text).tags)


def test_sections_say_why_they_are_not_there(run: Any, tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    bare = ts.FeatureStore.create(tmp_path / "b", projection=ts.ProjectionSpec("sjlt", dim=3))
    for split in ("train", "test"):
        bare.write_split(0, split, rng.normal(size=(5, 3)).astype("f4"))
    ran = run("report", bare.location, "-o", out, "--k", "2", "--method", "grad-dot", "--json")
    assert ran.code == 2 and "out_to_loss" in ran.err and not out.exists()
    for split in ("train", "test"):
        features = rng.normal(size=(5, 3)).astype("f4")
        bare.write_split(1, split, features, out_to_loss=np.ones(5))
    found = json.loads(
        run("report", bare.location, "-o", out, "--k", "2", "--epoch", "1", "--json").out
    )
    assert set(found["left_out"]) == {"Over epochs", "Transition", "Classes"}
    text = out.read_text()
    assert found["bytes"] == len(text.encode()) and found["targets"] == 5
    for reason in found["left_out"].values():
        assert reason in text
    assert "Over epochs</h4>" not in text and 'id="transition"' not in text


def test_samples_of_a_job(run: Any, jobs: Path, render: Path, tmp_path: Path, out: Path) -> None:
    place = tmp_path / "j.zarr"
    assert run("featurize", f"{jobs}:small", "--store", place).code == 0
    small = ["-o", out, "--k", "2", "--count", "2"]
    assert run("report", place, "--job", f"{jobs}:small", *small).code == 0
    first = ts.open_store(place)
    assert 'class="sample cells"' in out.read_text()
    words = ["--render", f"{render}:words"]
    ran = run("report", place, "--job", f"{jobs}:small", *words, *small)
    assert ran.code == 0 and "sample of 2: tensor([" in out.read_text()
    loss = first.split("final", "test").column("loss").read(0, 6)
    tabs = Page(out.read_text()).having(role="tab")
    assert (tabs[0]["data-words"] or "").split()[0] == str(loss.argmax())
    changed = tmp_path / "other.py"
    changed.write_text(jobs.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    before = out.read_text()
    ran = run("report", place, "--job", f"{changed}:small", "-o", out, "--k", "2")
    assert "holds other samples than the store was made from" in ran.error
    changed.write_text(jobs.read_text().replace('("test", 6)', '("test", 7)'))
    ran = run("report", place, "--job", f"{changed}:small", "-o", out, "--k", "2")
    assert "7 samples, the store has 6" in ran.error and out.read_text() == before


def test_what_the_model_predicts(run: Any, jobs: Path, tmp_path: Path, out: Path) -> None:
    place = tmp_path / "j.zarr"
    run("featurize", f"{jobs}:small", "--store", place)
    targets = [part for row in range(6) for part in ("--target", f"@{row}")]
    asked = ["report", place, "-o", out, "--k", "2"]
    assert run(*asked, *targets, "--job", f"{jobs}:small").code == 0
    job = load_job(f"{jobs}:small")
    inputs, labels = job.datasets["test"].tensors
    classes = job.load("final")(inputs).argmax(1)
    said = re.findall(r"<dt>predicted</dt><dd>(\d)", out.read_text())
    assert said == [str(one) for one in classes.tolist()]
    wrong = (classes != labels).tolist()
    assert True in wrong and False in wrong
    tabs = Page(out.read_text()).having(role="tab")
    assert ["wrong" in (tab["data-words"] or "").split() for tab in tabs] == wrong
    gone = jobs.with_name("gone.py")
    gone.write_text(jobs.read_text().replace("checkpoints=states", "checkpoints={'final': 'a.pt'}"))
    ran = run(*asked, "--target", "@0", "--job", f"{gone}:small")
    missing = "there is no checkpoint file or folder a.pt"
    assert ran.code == 0 and f"left out: Predictions: {missing}" in ran.out
    assert missing in out.read_text()
    assert "<dt>predicted</dt>" not in out.read_text()


TEXTS = """
import torch
from trakstore.features import Job

class Texts:
    def __init__(self, rows, wrap):
        self.rows, self.wrap = rows, wrap
    def __len__(self):
        return self.rows
    def __getitem__(self, index):
        return self.wrap(torch.tensor([index, 1, 2]))

def job(wrap):
    return Job(torch.nn.Linear(3, 2), {"train": Texts(40, wrap), "test": Texts(7, wrap)})

def mapped():
    return job(lambda ids: {"input_ids": ids})

def texts():
    return job(lambda ids: {"input_ids": ids, "text": f"text of {ids}"})

def rows():
    return job(lambda ids: (ids, 0))

def numbers():
    return job(lambda ids: (ids / 2, 0))

def words(sample):
    return str(sample)
"""


def test_token_ids_ask_for_a_render(
    run: Any, store: ts.FeatureStore, tmp_path: Path, out: Path
) -> None:
    texts = tmp_path / "texts.py"
    texts.write_text(TEXTS)
    said = "samples are numbers: --render jobs.py:tokenizer, or a function, shows their text\n"
    for name, render, hints in [
        ("mapped", [], True),
        ("texts", [], False),
        ("rows", [], True),
        ("numbers", [], False),
        ("rows", ["--render", f"{texts}:words"], False),
    ]:
        asked = ["--job", f"{texts}:{name}", "-o", out, "--k", "2", "--count", "1", *render]
        ran = run("report", store.location, *asked)
        assert (ran.code, ran.out.endswith(said)) == (0, hints), ran.err


def test_a_function_draws_without_a_job(
    run: Any, store: ts.FeatureStore, render: Path, out: Path
) -> None:
    run("report", store.location, "--render", f"{render}:picture", "-o", out, "--count", "2")
    assert out.read_text().count("data:image/png") > 50
    run("report", store.location, "--render", f"{render}:nothing", "-o", out, "--count", "1")
    assert "data:image" not in out.read_text()


BAD = {
    "folder": (["-o", "{folder}"], "is a folder"),
    "no folder": (["-o", "{folder}/none/page.html"], "there is no folder"),
    "k": (["--k", "21"], "see trakstore report --help"),
    "count": (["--count", "0"], "see trakstore report --help"),
    "target": (["--target", "x"], "no sample id 'x'"),
    "epoch": (["--epoch", "3"], "no epoch 3"),
    "before": (["--before", "3"], "no epoch 3 among"),
    "null": (["--null", "1"], "a null takes two epochs"),
    "null epoch": (["--null", "1,3"], "no epoch 3 among"),
    "null itself": (["--null", "final,1"], "is the transition itself"),
    "same": (["--before", "2", "--after", "2"], "takes two epochs"),
    "split": (["--targets", "tset"], "did you mean 'test'"),
    "method": (["--method", "track"], "did you mean 'trak'"),
    "job": (["--job", "{folder}/none.py:job"], "there is no job file"),
    "render file": (["--render", "{folder}/none.py:one"], "there is no render file"),
    "render name": (["--render", "{folder}/renders.py:wards"], "did you mean 'words'"),
    "render": (
        ["--render", "{folder}/renders.py:number"],
        "render must be a function of a sample",
    ),
    "render form": (["--render", "words"], "a render is named like"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use(
    case: str, run: Any, store: ts.FeatureStore, render: Path, tmp_path: Path, out: Path
) -> None:
    arguments, said = BAD[case]
    given = [one.format(folder=render.parent) for one in arguments]
    before = {one for one in tmp_path.rglob("*") if "__pycache__" not in one.parts}
    ran = run("report", store.location, *([] if "-o" in given else ["-o", out]), *given)
    assert said in ran.error
    assert {one for one in tmp_path.rglob("*") if "__pycache__" not in one.parts} == before


def test_k_beyond_the_train_rows(run: Any, tmp_path: Path, out: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", dim=3))
    for split in ("train", "test"):
        store.write_split(0, split, np.eye(5, 3, dtype="f4"), out_to_loss=np.ones(5))
    assert "k must be in 1..5" in run("report", store.location, "-o", out).error


def test_without_the_extra(
    run: Any, store: ts.FeatureStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "matplotlib", "PIL"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)  # type: ignore[arg-type]
            assert (
                'pip install "trakstore[report]"' in run("report", store.location, "-o", out).error
            )
    assert not out.exists()


def test_a_page_stays_small(
    run: Any, store: ts.FeatureStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["report", store.location, "-o", out, "--count", "2"]
    run(*asked)
    one = out.stat().st_size
    assert one < 200_000
    monkeypatch.setattr("trakstore.report.page.MOST_BYTES", 1000)
    assert "ask for fewer targets" in run(*asked).error and out.stat().st_size == one
