"""The report in a real browser: what a click and a key do, and that nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import emulate, events

import trakstore as ts
from trakstore.cli import main

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.slow

RENDER = """
import numpy as np

def draw(sample):
    if sample.split == "train":
        return np.random.default_rng(sample.row).random((8, 8))
    return f"words about {sample.id} </script><script>document.title = 'broken'</script>"

def text(sample):
    if sample.row % 2:
        return "def short():\\n\\treturn " + "x" * 300
    return "\\n".join(f"line {at} of {sample.id}" for at in range(60))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    store = ts.FeatureStore.create(folder / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=6))
    for epoch in (1, 2, "final"):
        for split, rows in (("train", 40), ("test", 7)):
            store.write_split(
                epoch,
                split,
                rng.normal(size=(rows, 6)).astype(np.float32),
                out_to_loss=rng.uniform(0.1, 1, rows),
                ids=[f"{split}<b>{i}" for i in range(rows)],
                labels=np.arange(rows) % 3,
            )
    (folder / "draws.py").write_text(RENDER)
    asked = ["report", str(store.location), "-o", str(folder / "page.html"), "--k", "5"]
    assert main([*asked, "--render", f"{folder}/draws.py:draw"]) == 0
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def texts(page: str) -> str:
    """A page of texts, from the same store."""
    folder = Path(page.removeprefix("file://")).parent
    asked = ["report", f"{folder}/s.zarr", "-o", f"{folder}/texts.html", "--k", "5"]
    assert main([*asked, "--render", f"{folder}/draws.py:text", "--target", "@0"]) == 0
    return (folder / "texts.html").as_uri()


@pytest.fixture
def browser(started: Any, page: str) -> Iterator[Any]:
    """At the page, freshly opened; whatever a test does, the console must stay silent."""
    emulate(started)
    started.get("about:blank")
    started.get_log("browser")
    events(started, "Network.requestWillBeSent")
    started.get(page)
    yield started
    assert started.get_log("browser") == []


def shown(browser: Any) -> list[str]:
    """Ids of the panels that can be seen."""
    panels = browser.find_elements("css selector", "[role=tabpanel]")
    return [one.get_attribute("id") for one in panels if one.is_displayed()]


def tabs(browser: Any) -> list[Any]:
    found = browser.find_elements("css selector", "[role=tab]")
    return [one for one in found if one.is_displayed()]


def background(browser: Any) -> str:
    return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_six_epochs_with_long_names_need_no_scrollbar(started: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=6))
    for epoch in range(10, 70, 10):
        for split, rows in (("train", 200), ("test", 1)):
            store.write_split(
                epoch,
                split,
                rng.normal(size=(rows, 6)).astype(np.float32),
                out_to_loss=rng.uniform(0.1, 1, rows),
                ids=[f"module.some_long_function_name_{split}:{i}" for i in range(rows)],
            )
    page = tmp_path / "page.html"
    assert main(["report", str(store.location), "-o", str(page), "--k", "5"]) == 0
    emulate(started, width=1280)
    started.get(page.as_uri())
    table = started.find_element("css selector", '[aria-label="Scores over epochs"]')
    inner, outer = (int(table.get_property(f"{one}Width")) for one in ("scroll", "client"))
    assert 0 < inner <= outer < 500  # beside the lines, not below them


def test_it_asks_for_nothing(browser: Any, page: str) -> None:
    sent = events(browser, "Network.requestWillBeSent")
    asked = {one["request"]["url"] for one in sent}
    assert {url for url in asked if not url.startswith("data:")} == {page}
    assert browser.title.startswith("trakstore report: ")
    images = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert len(browser.find_elements("css selector", "img.sample")) > 50
    assert browser.execute_script(images)


def test_what_would_be_loaded_is_blocked(started: Any, page: str) -> None:
    started.get(page)
    events(started, "Network.loadingFailed")
    put = "document.body.append(Object.assign(document.createElement(arguments[0]), arguments[1]))"
    started.execute_script(put, "img", {"src": "https://example.invalid/a.png"})
    started.execute_script(put, "script", {"textContent": "document.title = 'broken'"})
    refused = [one["message"] for one in started.get_log("browser")]
    assert len(refused) == 2 and all("Content Security Policy" in one for one in refused)
    failed = events(started, "Network.loadingFailed")
    assert [one["blockedReason"] for one in failed] == ["csp"]
    assert started.title.startswith("trakstore report: ")


def test_a_click_changes_the_panel(browser: Any) -> None:
    assert shown(browser) == ["t0"]
    tabs(browser)[3].click()
    assert shown(browser) == ["t3"]
    chosen = [one.get_attribute("aria-selected") for one in tabs(browser)]
    assert chosen == ["false"] * 3 + ["true"] + ["false"] * 3
    heading = browser.find_element("css selector", "#t3 h3").text
    assert heading == "target test<b>3"
    browser.refresh()  # the address names the target
    assert shown(browser) == ["t3"]


def test_keys_move_between_targets(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    tabs(browser)[0].click()
    for key, panel in (
        (Keys.ARROW_DOWN, "t1"),
        (Keys.END, "t6"),
        (Keys.ARROW_DOWN, "t0"),
        (Keys.ARROW_UP, "t6"),
        (Keys.HOME, "t0"),
        (Keys.ARROW_RIGHT, "t1"),
    ):
        browser.switch_to.active_element.send_keys(key)
        assert shown(browser) == [panel]
        assert browser.switch_to.active_element.get_attribute("aria-controls") == panel
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "t1"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"


def test_the_filter(browser: Any) -> None:
    box = browser.find_element("id", "filter")
    box.send_keys("ABOUT test<b>5")  # of the text that is shown
    assert [one.get_attribute("id") for one in tabs(browser)] == ["t5-tab"]
    assert shown(browser) == ["t5"]
    assert browser.find_element("id", "count").text == "1 of 7"
    box.clear()
    box.send_keys("nothing of this kind")
    assert tabs(browser) == [] and browser.find_element("id", "count").text == "0 of 7"
    box.clear()
    box.send_keys("test")
    browser.find_element("css selector", "#label option:nth-child(3)").click()
    assert [one.get_attribute("id") for one in tabs(browser)] == ["t1-tab", "t4-tab"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, page: str, scheme: str) -> None:
    emulate(browser, scheme)
    browser.get(page)
    levels = [int(one) for one in background(browser)[4:-1].split(",")]
    assert (max(levels) < 60) == (scheme == "dark")
    button = browser.find_element("id", "theme")
    button.click()
    turned = [int(one) for one in background(browser)[4:-1].split(",")]
    assert (max(turned) < 60) == (scheme == "light")
    assert button.text == ("Light colours" if scheme == "light" else "Dark colours")


def test_charts_follow_the_look(browser: Any) -> None:
    colour = "return getComputedStyle(document.querySelector('#t0 figure text')).fill"
    before = browser.execute_script(colour)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) != before
    size = browser.find_element("css selector", "#t0 figure svg").size
    assert size["width"] > 250 and size["height"] > 100


def test_a_telephone(browser: Any, page: str) -> None:
    emulate(browser, width=390)
    browser.get(page)
    width = "return document.documentElement.scrollWidth"
    assert browser.execute_script(width) <= 390
    tab = tabs(browser)[1]
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", tab)
    tab.click()
    assert shown(browser) == ["t1"]


def test_names_that_a_reader_says(browser: Any) -> None:
    for tab in tabs(browser):
        assert "test<b>" in tab.accessible_name and tab.aria_role == "tab"
    assert browser.find_element("id", "t0").accessible_name == tabs(browser)[0].accessible_name
    assert browser.find_element("id", "filter").accessible_name == "Filter"
    charts = browser.find_elements("css selector", "figure svg")
    assert charts and all(one.get_attribute("aria-label") for one in charts)
    images = browser.find_elements("css selector", "#t0 .cards img")
    assert all(one.get_attribute("alt").startswith("train sample") for one in images)


def seen(browser: Any) -> list[Any]:
    """Texts of the first target's own sample that can be seen."""
    every = browser.find_elements("css selector", "#t0 .target .words")
    return [one for one in every if one.is_displayed()]


@pytest.mark.parametrize("scripts", [True, False])
def test_long_texts_open_by_keyboard(browser: Any, texts: str, scripts: bool) -> None:
    from selenium.webdriver.common.keys import Keys

    switch = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(switch, {"value": not scripts})
    try:
        browser.get(texts)
        (closed,) = seen(browser)
        assert closed.text.splitlines()[:12] == [f"line {at} of test<b>0" for at in range(12)]
        assert len(closed.text.splitlines()) == 13
        browser.find_element("css selector", "#t0 .target summary").send_keys(Keys.ENTER)
        (opened,) = seen(browser)
        assert opened.text == "\n".join(f"line {at} of test<b>0" for at in range(60))
        browser.switch_to.active_element.send_keys(Keys.SPACE)
        assert [one.text for one in seen(browser)] == [closed.text]
    finally:
        browser.execute_cdp_cmd(switch, {"value": False})


@pytest.mark.parametrize("width", [360, 1280])
def test_lines_of_texts_go_on_below(browser: Any, texts: str, width: int) -> None:
    emulate(browser, width=width)
    browser.get(texts)
    opened = "return [...document.querySelectorAll('#t0 details')].map(o => o.open = true).length"
    assert browser.execute_script(opened) > 3
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = (
        "return [...document.querySelectorAll('.words')].filter(o => o.scrollWidth > o.clientWidth)"
    )
    assert browser.execute_script(wide) == []
    font = "return getComputedStyle(document.querySelector('.words')).fontFamily"
    assert "monospace" in browser.execute_script(font)
