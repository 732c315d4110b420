"""The live page in a real browser: asked by keys and clicks, on a phone, light and dark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import emulate, events
from served import Served, serving

import trakstore as ts

for needed in ("jinja2", "uvicorn", "PIL"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=\"document.title='broken'\"></script><script>document.title='broken'"
RENDER = f"""
def text(sample):
    return {EVIL!r} + "\\n" + str(sample.id) + "\\n" + "word " * 400
"""


@pytest.fixture(scope="module")
def served(folder: Path, job_name: str) -> Iterator[Served]:
    with serving(folder / "run.zarr", "--job", job_name) as one:
        yield one


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A store whose ids and texts would be HTML."""
    folder, rng = tmp_path_factory.mktemp("evil"), np.random.default_rng(0)
    store = ts.FeatureStore.create(folder / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=6))
    for split, rows in (("train", 40), ("test", 3)):
        rows_of = rng.normal(size=(rows, 6)).astype(np.float32)
        ids = [f"{EVIL}{i}" for i in range(rows)]
        store.write_split(1, split, rows_of, out_to_loss=np.ones(rows), ids=ids)
    (folder / "draws.py").write_text(RENDER)
    with serving(folder / "s.zarr", "--render", f"{folder}/draws.py:text") as one:
        yield one


@pytest.fixture
def browser(started: Any, served: Served) -> Iterator[Any]:
    """At the page, freshly opened; whatever a test does, the console must stay silent."""
    emulate(started)
    opened(started, served.address)
    yield started
    assert started.get_log("browser") == []


def opened(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get_log("browser")
    events(browser, "Network.requestWillBeSent")
    browser.get(address)
    until(lambda: browser.find_element("id", "place").text != "")


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def said(browser: Any) -> str:
    return str(browser.find_element("id", "said").text)


def answered(browser: Any, name: str) -> None:
    """Wait until an answer about a sample is there."""
    until(lambda: said(browser) == f"Answered: {name}")


def ids(browser: Any, side: int = 0, title: str = "Proponents") -> list[str]:
    found = browser.find_elements("css selector", f"#side{side} .ask[data-list={title}]")
    return [one.text for one in found]


def ask(browser: Any, target: str, button: str = "go") -> None:
    field = browser.find_element("id", "target")
    field.clear()
    field.send_keys(target)
    browser.find_element("id", button).click()


def lists_of(store: ts.FeatureStore, row: int, k: int = 12) -> list[str]:
    top = ts.top_k(ts.trak_scores(store).isel(target=[row]), k)
    return [str(one) for one in top["train"].values[0]]


def test_a_typed_question_changes_the_lists(browser: Any, store: ts.FeatureStore) -> None:
    ask(browser, "103")
    answered(browser, "test 103")
    assert ids(browser) == lists_of(store, 3)
    assert len(ids(browser, 0, "Opponents")) == 12
    whole = "return [...document.images].every(i => i.naturalWidth > 0 || !i.src)"
    assert browser.execute_script(whole)
    ask(browser, "107")
    answered(browser, "test 107")
    assert ids(browser) == lists_of(store, 7)
    sent = {one["request"]["url"] for one in events(browser, "Network.requestWillBeSent")}
    own = browser.current_url.split("#")[0]
    assert {one for one in sent if not one.startswith(("data:", own))} <= {"about:blank"}


def test_a_click_on_a_sample_asks_about_it(browser: Any) -> None:
    ask(browser, "103")
    answered(browser, "test 103")
    first = ids(browser)[0]
    browser.find_element("css selector", "#side0 .card img").click()
    answered(browser, f"train {first}")
    assert ids(browser)[0] == first  # its own first proponent
    assert browser.find_element("id", "target").get_attribute("value") == first
    assert browser.find_element("id", "split").get_attribute("value") == "train"
    browser.back()
    answered(browser, "test 103")
    assert browser.find_element("id", "split").get_attribute("value") == "test"


def test_two_answers_are_compared_and_the_address_holds_them(browser: Any) -> None:
    ask(browser, "103")
    answered(browser, "test 103")
    browser.find_element("css selector", ".epochs summary").click()
    for box in browser.find_elements("css selector", "#epochs input")[1:]:
        box.click()
    assert browser.find_element("id", "chosen").text == "1"
    ask(browser, "103", "beside")
    until(lambda: browser.find_element("id", "both").is_displayed())
    left, right = ids(browser, 0), ids(browser, 1)
    shared = len(set(left) & set(right))
    assert f"{shared} of 12 proponents" in browser.find_element("id", "both").text
    outlined = browser.find_elements("css selector", "#side0 [aria-label=Proponents] .shared")
    assert len(outlined) == shared
    address = browser.current_url
    browser.get("about:blank")
    browser.get(address)
    until(lambda: (ids(browser, 0), ids(browser, 1)) == (left, right))
    browser.find_element("css selector", "#side1 .close").click()
    assert not browser.find_element("id", "side1").is_displayed()
    assert not browser.find_element("id", "both").is_displayed()


def test_an_image_is_chosen_or_dropped(browser: Any, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(255, size=(8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    browser.find_element("css selector", "input[value=image]").click()
    browser.find_element("id", "image").send_keys(str(tmp_path / "one.png"))
    until(lambda: said(browser) == "Image taken: ask.")
    browser.find_element("id", "go").click()
    answered(browser, "new sample typed or dropped here")
    chosen = ids(browser)
    assert len(chosen) == 12
    drop = """
const [bytes] = arguments;
const data = new DataTransfer();
data.items.add(new File([new Uint8Array(bytes)], "b.png", {type: "image/png"}));
const how = {dataTransfer: data, bubbles: true, cancelable: true};
document.body.dispatchEvent(new DragEvent("drop", how));
"""
    browser.execute_script(drop, list((tmp_path / "one.png").read_bytes()))
    until(lambda: said(browser) == "Image taken: ask.")
    browser.find_element("id", "label").send_keys("1")
    browser.find_element("id", "go").click()
    answered(browser, "new sample typed or dropped here")
    facts = browser.find_element("css selector", "#side0 .facts").text
    assert "class\n1" in facts


def test_keys_alone_suffice(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    body = browser.find_element("css selector", "body")

    def press(*keys: str) -> None:
        for key in keys:
            browser.switch_to.active_element.send_keys(key)

    def focused() -> str:
        script = "const e = document.activeElement; return e.id || e.className || e.name"
        return str(browser.execute_script(script))

    body.send_keys(Keys.TAB)
    seen = []
    while focused() != "target":
        seen.append(focused())
        press(Keys.TAB)
        assert len(seen) < 8
    assert "theme" in seen
    press("103", Keys.ENTER)
    answered(browser, "test 103")
    first = ids(browser)[0]
    for _ in range(15):
        press(Keys.TAB)
        if focused() == "name ask":
            break
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    press(Keys.ENTER)
    answered(browser, f"train {first}")
    # The reader goes on at the answer.
    assert browser.switch_to.active_element.tag_name == "h3"


def test_what_is_wrong_is_said(browser: Any) -> None:
    ask(browser, "")
    assert said(browser) == "Name, type or drop a sample first."
    ask(browser, "103")
    answered(browser, "test 103")
    before = ids(browser)
    ask(browser, "none of them")
    until(lambda: "no sample id 'none of them'" in said(browser))
    assert ids(browser) == before
    ask(browser, "a3")  # a train sample, while the form names the test split
    until(lambda: "train has it" in said(browser))
    # A browser writes a line for each reply that is not 200; there is no other.
    logged = [one["message"] for one in browser.get_log("browser")]
    assert len(logged) == 2 and all("404" in one for one in logged)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(browser: Any, scheme: str, width: int) -> None:
    emulate(browser, scheme, width)
    browser.refresh()
    until(lambda: browser.find_element("id", "place").text != "")
    ask(browser, "103")
    answered(browser, "test 103")
    ask(browser, "104", "beside")
    answered(browser, "test 104")
    assert browser.execute_script("return innerWidth") == width
    root = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.execute_script(root)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    light, dark = (sum(map(int, one[4:-1].split(","))) for one in (background, ink))
    assert (light > dark) == (scheme == "light") and abs(light - dark) > 400
    browser.find_element("id", "theme").click()
    turned = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert turned != background


def test_ids_and_texts_are_never_html(started: Any, evil: Served) -> None:
    emulate(started)
    opened(started, evil.address)
    title = started.title
    ask(started, "@1")
    until(lambda: said(started).startswith("Answered"))
    assert started.find_element("css selector", "#side0 h3").get_attribute("title") == f"{EVIL}1"
    assert ids(started)[0].startswith("<img src=x")
    started.find_element("css selector", "#side0 .ask").click()
    until(lambda: said(started).startswith("Answered: train"))
    assert started.title == title
    assert not started.find_elements("css selector", "#answers img, #answers script")
    assert started.get_log("browser") == []


def test_a_script_would_not_run_and_nothing_be_loaded(started: Any, served: Served) -> None:
    opened(started, served.address)
    put = "document.body.append(Object.assign(document.createElement(arguments[0]), arguments[1]))"
    started.execute_script(put, "img", {"src": "https://example.invalid/a.png"})
    started.execute_script(put, "script", {"textContent": "document.title = 'broken'"})
    send = "return fetch('https://example.invalid/').then(() => 'sent', () => 'blocked')"
    assert started.execute_script(send) == "blocked"
    refused = [one["message"] for one in started.get_log("browser")]
    assert refused and all("Content Security Policy" in one for one in refused)
    assert started.title != "broken"


def test_a_token_is_asked_for(started: Any, folder: Path) -> None:
    token = "a-token-of-many-letters"
    with serving(folder / "run.zarr", "--token", token) as served:
        emulate(started)
        started.get(served.address)
        until(lambda: started.find_element("id", "enter").is_displayed())
        assert "token is needed" in said(started)
        started.find_element("id", "token").send_keys(token)
        started.find_element("css selector", "#enter button").click()
        until(lambda: started.find_element("id", "place").text == "run.zarr")
        ask(started, "103")
        answered(started, "test 103")
        assert token not in started.current_url
        assert served.end() == 0


def test_an_answer_in_a_notebook_looks_like_the_page(
    started: Any, query: ts.Query, tmp_path: Path
) -> None:
    html = query.ask(target=103, k=5)._repr_html_()
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    started.get("about:blank")
    started.get_log("browser")
    started.get(path.as_uri())
    started.switch_to.frame(started.find_element("css selector", "iframe"))
    cards = started.find_elements("css selector", ".card")
    assert len(cards) == 10 and all(one.is_displayed() for one in cards[:5])
    pictures = started.find_elements("css selector", ".card img")
    assert len(pictures) == 10
    names = [one.text for one in started.find_elements("css selector", ".helpful .name")]
    assert names == [str(one.id) for one in query.ask(target=103, k=5).proponents]
    assert not started.find_elements("css selector", "button, script")
    started.switch_to.default_content()
    assert started.get_log("browser") == []
