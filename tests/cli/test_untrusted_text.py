"""Ids, names and messages that somebody else chose steer no terminal and turn no line round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import DamagedError, NotFoundError, TrakStoreError
from trakstore.markup import printable
from trakstore.storage import layout
from trakstore.storage.group_documents import group_document

pytestmark = pytest.mark.filterwarnings("always:.*the record has no:UserWarning")

RED, TITLE, CLEAR = "\x1b[31mRED", "\x1b]0;title\x07", "\x1b[2J"
IDS = [
    RED + TITLE + CLEAR,
    "\x9b31mC1",
    "\x7fdelete",
    "\u202etxt.exe",
    "\u2066isolate\u2069",
    "line\nerror: another\r",
    "\u2028separator",
    "[bold red]rich[/]",
    "ordinary dög ✓",
]
STEERING = {one for one in "".join(IDS) if not one.isprintable()}


def rows_of(count: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted") / "s.zarr"
    store = ts.FeatureStore.create(folder, projection=ts.ProjectionSpec("external", dim=4))
    for epoch in (0, 1):
        for seed, split in enumerate(("train", "test")):
            labels, ones = np.arange(9) % 2, np.ones(9)
            X = rows_of(9, seed + epoch)
            store.write_split(epoch, split, X, out_to_loss=ones, labels=labels, ids=IDS)
    ts.save_scores(ts.grad_dot_scores(store), store, "a")
    (folder / "scores" / "a").rename(folder / "scores" / (RED + TITLE))
    record = group_document({"job": RED, "epoch": CLEAR})
    store.location.put({f"runs/{RED}/zarr.json": record, f"0/train/x{RED}\nerror: y": b""})
    return folder


COMMANDS = [
    ["info"],
    ["info", "--json"],
    ["topk", "--k", "3"],
    ["topk", "--target", IDS[0], "--k", "2"],
    ["topk", "--target", TITLE],
    ["neighbours", "--epoch", "0", "--k", "2"],
    ["evolve", "--k", "2"],
    ["transitions", "--before", "0", "--after", "1"],
    ["groups"],
    ["verify"],
    ["verify", "--split", RED],
    ["kernel", "--epoch", TITLE],
    ["evaluate", "mislabels"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: " ".join(one)[:12].strip())
def test_nothing_steers_the_terminal(command: list[str], run: Any, place: Path) -> None:
    names = 2 if command[0] == "evaluate" else 1
    ran = run(*command[:names], place, *command[names:])
    assert not (STEERING - {"\n"}) & set(ran.out + ran.err)
    assert not any(line.startswith("error: another") for line in ran.err.splitlines())
    assert all(line.startswith(("error: ", "warning: ")) for line in ran.err.splitlines())


def test_colours_of_our_own_stay(run: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = run("topk", place, "--k", "3").out
    assert "\x1b[32m" in out and TITLE not in out and CLEAR not in out
    assert r"\x1b[31mRED\x1b]0;title\x07\x1b[2J" in out and "[bold red]rich[/]" in out


def test_programs_get_the_ids_as_they_are(run: Any, place: Path) -> None:
    found = json.loads(run("topk", place, "--k", "9", "--json").out)
    assert [one["target"] for one in found["targets"]] == IDS


def test_a_page_keeps_its_order_of_reading(run: Any, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    assert run("report", place, "-o", tmp_path / "a.html", "--k", "3").code == 0
    page = (tmp_path / "a.html").read_text()
    assert not (STEERING - {"\n", "\r"}) & set(page) and r"\u202etxt.exe" in page


@pytest.mark.parametrize("kind", [TrakStoreError, NotFoundError, DamagedError])
def test_an_error_is_one_line_without_controls(kind: type[TrakStoreError]) -> None:
    assert str(kind(f"no {RED}\nthere\x00 \ud800")) == r"no \x1b[31mRED there\x00 \ud800"


def test_only_what_cannot_be_seen_is_spelled_out() -> None:
    every = map(chr, [*range(0x3000), *range(0xD7F0, 0x10000), 0x1F600])
    for one in every:
        spelled = printable(one) != one
        assert spelled or one.isprintable() or one.isspace() or ord(one) > 0xAC
        assert printable(one).isascii() == (one.isascii() or spelled)
    assert printable("a\tb\nc", keep="\n") == r"a\tb" + "\nc"
    assert layout.check_name("train", "split") == "train"
