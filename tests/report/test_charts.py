"""Charts hold what they were given, return their axes, and become SVG of the page's colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import trakstore as ts
from trakstore.analysis import distribution, trajectories
from trakstore.errors import NotFoundError, TrakStoreError

matplotlib = pytest.importorskip("matplotlib")

from matplotlib import pyplot  # noqa: E402

from trakstore.report import plot_distribution, plot_evolution, plot_spectrum, plot_top  # noqa: E402
from trakstore.report.inline_svg import inline_svg  # noqa: E402


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        pyplot.close("all")


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=6))
    for epoch in (1, 2, "final"):
        for split, rows in (("train", 30), ("test", 4)):
            ids = [f"${split}_{i}$<b>" for i in range(rows)]
            features = rng.normal(size=(rows, 6)).astype(np.float32)
            made.write_split(epoch, split, features, out_to_loss=rng.uniform(size=rows), ids=ids)
    return made


def test_top(store: ts.FeatureStore) -> None:
    top = ts.top_k(ts.trak_scores(store), 5, order="magnitude")
    axes = plot_top(top, 2)
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, top["score"].values[2])
    assert [one.get_text() for one in axes.get_yticklabels()] == top["train"].values[2].tolist()
    assert axes.get_title(loc="left") == "target $test_2$<b>"
    axes.figure.canvas.draw()  # dollar signs are no mathematics


def test_prompts_as_ids_are_a_line(store: ts.FeatureStore) -> None:
    top = ts.top_k(ts.trak_scores(store), 2)
    prompts = np.full(top["train"].shape, "def f():\n\treturn 1\n" * 9)
    axes = plot_top(top.assign(train=(top["train"].dims, prompts)))
    labels = [one.get_text() for one in axes.get_yticklabels()]
    assert labels == ["def f():\\n\\treturn 1\\ndef …eturn 1\\n"] * 2


def test_evolution(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    found = trajectories(scores, ts.top_k(scores, 3)["position"].values)
    own = pyplot.figure().add_subplot()
    assert plot_evolution(found, 1, own) is own
    lines = [line.get_ydata() for line in own.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(lines, found["standard"].values[:, 1].T)
    assert [one.get_text() for one in own.get_xticklabels()] == ["1", "2", "final"]
    # Each line has its name at its end, apart from the others, and a look that says which way it goes.
    names = [str(one) for one in found["train"].values[1]]
    assert [one.get_text() for one in own.texts] == names
    heights = np.array([one.get_position()[1] for one in own.texts])
    np.testing.assert_array_equal(np.argsort(heights), np.argsort(found["standard"].values[-1, 1]))
    height = own.texts[0].get_window_extent().height
    pixels = np.sort(own.transData.transform([(0, one) for one in heights])[:, 1])
    assert (np.diff(pixels) >= 0.8 * height).all()


def test_lines_of_what_helped_and_what_harmed(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    ends = [
        ts.top_k(scores, 2, order=order)["position"].values for order in ("largest", "smallest")
    ]
    axes = plot_evolution(trajectories(scores, np.concatenate(ends, 1)))
    looks = [(o.get_marker(), o.get_linestyle()) for o in axes.lines if len(o.get_xdata()) == 3]
    assert looks == [("o", "-")] * 2 + [("s", "--")] * 2
    # Of one epoch there are points, and their names.
    assert len(plot_evolution(trajectories(scores.epoch(2), ends[0])).texts) == 2


def test_spectrum(store: ts.FeatureStore) -> None:
    reports = [ts.kernel_report(store, epoch) for epoch in store.epochs]
    axes = plot_spectrum(reports)
    drawn = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 6]
    np.testing.assert_allclose(drawn, [one.eigenvalues for one in reports])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    marks = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(set(marks)) == 3
    assert len(plot_spectrum(reports[0]).lines) == 3
    with pytest.raises(TrakStoreError, match="needs a kernel report"):
        plot_spectrum([])


@pytest.mark.parametrize("target", [None, 3])
def test_distribution(store: ts.FeatureStore, target: int | None) -> None:
    found = distribution(ts.trak_scores(store), 7)
    values, edges, _ = plot_distribution(found, target).patches[0].get_data()
    names = ("pooled", "pooled_edge") if target is None else ("count", "edge")
    one = found.isel(target=target or 0)
    assert values.tolist() == one[names[0]].values.tolist()
    assert edges.tolist() == one[names[1]].values.tolist()


def test_what_is_no_finding(store: ts.FeatureStore) -> None:
    top = ts.top_k(ts.trak_scores(store), 2)
    with pytest.raises(NotFoundError, match=r"takes what analysis\.trajectories gives"):
        plot_evolution(top)
    with pytest.raises(NotFoundError, match="target 4 is outside of 4"):
        plot_top(top, 4)


def test_inline_svg(store: ts.FeatureStore) -> None:
    top = ts.top_k(ts.trak_scores(store), 3)
    backend = matplotlib.get_backend(auto_select=False)
    text, other = (inline_svg(lambda axes: plot_top(top, 0, axes), "a <b>", n) for n in "ab")
    assert matplotlib.get_backend(auto_select=False) == backend and not pyplot.get_fignums()
    root = ElementTree.fromstring(text)
    assert root.tag == "svg" and root.attrib["aria-label"] == "a <b>"
    every: list[Any] = list(root.iter())
    assert not any("style" in one.attrib or one.tag in ("style", "metadata") for one in every)
    ids = {one.attrib["id"] for one in every if "id" in one.attrib}
    links = {one.attrib["href"][1:] for one in every if "href" in one.attrib}
    clips = {one.attrib["clip-path"][5:-1] for one in every if "clip-path" in one.attrib}
    assert links and clips and links | clips <= ids
    assert "currentColor" in text and "var(--good)" in text and "#000000" not in text
    assert not ids & {o.attrib.get("id") for o in ElementTree.fromstring(other).iter()}
    assert any(one.text == top["train"].values[0, 0] for one in every)
