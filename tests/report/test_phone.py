"""The page on a telephone and on a wide screen: nothing is cut without a sign, all can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from browser import emulate
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.features import Job, featurize_job
from trakstore.report import write_report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

CLASSES = 14


def images(rows: int, generator: torch.Generator) -> TensorDataset:
    return TensorDataset(
        torch.rand(rows, 4, generator=generator),
        torch.randint(CLASSES, (rows,), generator=generator),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty targets that the model gets wrong, three epochs, more classes than a telephone is wide."""
    folder, generator = tmp_path_factory.mktemp("page"), torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, CLASSES)
    states = {
        epoch: {
            name: torch.randn(one.shape, generator=generator)
            for name, one in model.state_dict().items()
        }
        for epoch in (1, 20, 300)
    }
    job = Job(
        model,
        {"train": images(60, generator), "test": images(30, generator)},
        output="margin",
        projector=ts.ProjectionSpec("sjlt", dim=8),
        checkpoints=states,
        ids={"train": [f"group-{row % 3}/sample-{row:04}" for row in range(60)]},
    )
    featurize_job(job, folder / "s.zarr")
    store = ts.open_store(folder / "s.zarr")
    return write_report(store, folder / "page.html", job=job, count=30).path.as_uri()


@pytest.fixture
def browser(started: Any, page: str) -> Iterator[Any]:
    """At the page, freshly opened on a telephone."""
    emulate(started, width=390)
    started.get("about:blank")
    started.get(page)
    yield started
    assert started.get_log("browser") == []


WIDTH = "return document.documentElement.scrollWidth"
CUT = """
const cut = (box) => box.scrollWidth - box.clientWidth > 1;
return [...document.querySelectorAll("body *")].filter(
  (one) => cut(one) && one.checkVisibility() && getComputedStyle(one).overflowX === "auto"
).map((one) => [one.id || one.getAttribute("aria-label"), getComputedStyle(one).maskImage]);
"""
OUTSIDE = """
return [...document.querySelectorAll(".caption-above, .lead, h2, h3, h4, dd, .warning")].filter(
  (one) => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1
).map((one) => one.textContent);
"""


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_the_document_is_as_wide_as_the_window(browser: Any, page: str, width: int) -> None:
    emulate(browser, width=width)
    browser.get(page)
    assert browser.find_elements("css selector", "[role=tab] .wrong .unseen")
    assert browser.execute_script(WIDTH) <= width
    # Nor are texts wider than the window, hidden by a box that happens to clip them.
    assert browser.execute_script(OUTSIDE) == []


def test_what_is_cut_fades_out(browser: Any) -> None:
    cut = dict(browser.execute_script(CUT))
    assert {"tabs", "Mean scores between classes"} <= set(cut)
    assert all("linear-gradient" in mask for mask in cut.values())
    table = "const box = document.querySelector('#classes .scroll');"
    browser.execute_script(f"{table} box.scrollLeft = box.scrollWidth")
    masked = f"{table} return getComputedStyle(box).maskImage"
    for _ in range(100):
        if browser.execute_script(masked) == "none":
            break
    assert browser.execute_script(masked) == "none"
    # The classes of the lines are still seen, at the left.
    place = f"{table} return box.querySelector('th[scope=row]').getBoundingClientRect().left"
    left = f"{table} return box.getBoundingClientRect().left"
    assert browser.execute_script(place) == pytest.approx(browser.execute_script(left), abs=1)


LETTERS = """
const texts = document.querySelectorAll("#t0 svg text, #scores svg text, #kernels svg text");
return [...texts].map((one) => {
  const scale = one.getScreenCTM();
  return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(scale.a, scale.b);
});
"""
BEYOND = """
const out = [];
for (const svg of document.querySelectorAll("#t0 figure svg, #scores svg, #kernels svg")) {
  const box = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll("text")) {
    const own = text.getBoundingClientRect();
    if (own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1) {
      out.push(text.textContent);
    }
  }
}
return out;
"""
OVERLAPPING = """
const names = [...document.querySelectorAll("#t0 figure:first-of-type svg text")].filter(
  (one) => one.textContent.startsWith("group-")
);
const boxes = names.map((one) => one.getBoundingClientRect()).sort((a, b) => a.top - b.top);
const near = boxes.slice(1).filter((box, at) => box.top + box.height / 2 < boxes[at].bottom - 3);
return [names.map((one) => one.textContent), near.length];
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_charts_can_be_read(browser: Any, page: str, width: int) -> None:
    emulate(browser, width=width)
    browser.get(page)
    letters = browser.execute_script(LETTERS)
    assert len(letters) > 40 and min(letters) >= 11
    assert browser.execute_script(BEYOND) == []
    # Each line has its name at its end, and no name is written over another.
    names, near = browser.execute_script(OVERLAPPING)
    assert len(names) == len(set(names)) == 10 and near == 0


def test_lines_are_told_apart_without_colours(browser: Any) -> None:
    lines = "return [...document.querySelectorAll('#t0 figure:first-of-type svg path')]"
    dashes = browser.execute_script(f"{lines}.map(one => one.getAttribute('stroke-dasharray'))")
    marks = "return document.querySelectorAll('#t0 figure:first-of-type svg defs path').length"
    assert sum(one is not None for one in dashes) == 5
    assert browser.execute_script(marks) > 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_button_says_what_it_does(browser: Any, page: str, scheme: str) -> None:
    emulate(browser, scheme, width=390)
    browser.get(page)
    button = browser.find_element("id", "theme")
    other = "Light colours" if scheme == "dark" else "Dark colours"
    own = "Dark colours" if scheme == "dark" else "Light colours"
    assert button.text == button.accessible_name == other
    button.click()
    look = "return document.documentElement.dataset.theme"
    assert browser.execute_script(look) == other.split()[0].lower()
    assert button.text == own


def test_a_link_opens_what_is_folded(browser: Any) -> None:
    facts = browser.find_element("css selector", "#store .facts")
    assert not facts.is_displayed()
    browser.find_element("css selector", "nav a[href='#store']").click()
    for _ in range(100):
        if facts.is_displayed():
            break
    assert facts.is_displayed()


def test_without_scripts_there_is_no_button(browser: Any, page: str) -> None:
    switch = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(switch, {"value": True})
    try:
        browser.get(page)
        assert not browser.find_element("id", "theme").is_displayed()
        assert browser.find_element("id", "t0").is_displayed()
    finally:
        browser.execute_cdp_cmd(switch, {"value": False})
