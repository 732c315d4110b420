"""Progress of long work: what it says, on a terminal and in a log."""

from __future__ import annotations

import time
from typing import Any

import pytest

from trakstore import progress
from trakstore.progress import ProgressLine, StepLine, begin_step, told_on_terminal


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_log_gets_a_plain_line_now_and_then(clock: Clock, capsys: Any) -> None:
    with ProgressLine("train", 1000, item_bytes=2000, begun=200) as line:
        for _ in range(6):
            clock.now += 4
            line.advance(100)
    said = capsys.readouterr().err.splitlines()
    assert said == [  # at 12 s and 24 s; rows that were there before are not in the rate
        "train: 500/1,000 rows (50%), 1.0 MB, 25.0 rows/s, 20.0 s left",
        "train: 800/1,000 rows (80%), 1.6 MB, 25.0 rows/s, 8.0 s left",
    ]


def test_what_others_did_counts(clock: Clock, capsys: Any) -> None:
    line = ProgressLine("train", 100, unit="models")
    assert not line.wants_a_look()
    clock.now += 20
    assert line.wants_a_look() and not line.wants_a_look()
    line.reach(60)
    line.reach(40)  # an older listing
    assert line.done == 60
    assert "train: 60/100 models (60%), 3.0 models/s, 13.3 s left" in capsys.readouterr().err


def test_a_silent_one_never_looks(clock: Clock, capsys: Any) -> None:
    line = ProgressLine("train", 100, show=False)
    clock.now += 1000
    line.advance(100)
    assert not line.wants_a_look()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_colours_can_be_off(
    clock: Clock, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    shown = {}
    for colours in (True, False):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not colours:
            monkeypatch.setenv("NO_COLOR", "1")
        with ProgressLine("train [1]", 400, item_bytes=1000) as line:
            clock.now += 2
            line.advance(100)
        shown[colours] = capsys.readouterr().err
        for part in ("train [1]", "100/400 rows (25%), 100.0 kB, 50.0 rows/s, 6.0 s left"):
            assert part in shown[colours]
    assert "\x1b[38;5;" in shown[True]
    assert "\x1b[38;5;" not in shown[False] and "\x1b[3" not in shown[False]


def told(capsys: Any, part: str, seconds: float = 5.0) -> str:
    """What was printed until a part of it was there."""
    text, until = "", time.monotonic() + seconds
    while part not in text and time.monotonic() < until:
        text += capsys.readouterr().err
        time.sleep(0.01)
    assert part in text
    return text


def test_a_step_that_takes_long_is_told_in_a_log(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.05)
    with StepLine() as steps:
        time.sleep(0.2)
        assert capsys.readouterr().err == ""  # nothing has begun
        steps.step("hash of the weights")
        first = told(capsys, "hash of the weights, ").splitlines()
        assert all(line.endswith(" so far") for line in first)
        steps.step("first passes\x1b[2J")  # a name may be anybody's
        assert "\x1b" not in told(capsys, "first passes")
        # What is counted takes the place of the step, until it has ended.
        with ProgressLine("train", 10):
            capsys.readouterr()
            time.sleep(0.2)
            assert "first passes" not in capsys.readouterr().err
        told(capsys, "first passes")
        with StepLine() as inner:
            capsys.readouterr()
            inner.step("within")
            assert "first passes" not in told(capsys, "within")
    capsys.readouterr()
    steps.step("after the end")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_quick_or_silent_step_says_nothing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with StepLine() as steps:
        steps.step("hash of the weights")
    monkeypatch.setattr(progress, "_SECONDS", 0.01)
    with StepLine(show=False) as steps:
        steps.step("hash of the weights")
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_the_step_and_keeps_what_is_printed(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with StepLine() as steps:
        steps.step("hash of the weights")
        print("of the job")
        steps.step("first passes")
        with ProgressLine("train [1]", 400) as line:
            line.advance(100)
        steps.step("opening the store")
    said = capsys.readouterr()
    assert said.out == "of the job\n"
    for part in ("hash of the weights", "first passes", "100/400 rows (25%)", "opening the store"):
        assert part in said.err
    counted = said.err[said.err.index("train [1]") : said.err.rindex("100/400")]
    assert "first passes" not in counted


def test_a_function_tells_its_caller_or_a_terminal(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.05)

    @told_on_terminal
    def work() -> int:
        begin_step("kernels")
        time.sleep(0.2)
        return 3

    begin_step("of nobody")
    assert work() == 3 and capsys.readouterr().err == ""  # a log, and a caller who shows nothing
    with StepLine():
        assert work() == 3
    assert "kernels, " in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert work() == 3 and "kernels" in capsys.readouterr().err
