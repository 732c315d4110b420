"""Help of the commands: nothing wraps twice, nothing names a type, examples are one line."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from trakstore.cli.app import command_line
from trakstore.cli.commands import COMMANDS, EVALUATIONS, Command

NAMES = [
    *([one.name] for one in COMMANDS),
    *(["evaluate", one.name] for one in EVALUATIONS),
    ["evaluate"],
    [],
]
# What counterfactual requires fills more than a line.
ONE_LINE = [one for one in (*COMMANDS, *EVALUATIONS) if one.name != "counterfactual"]


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("words", NAMES, ids=lambda words: "-".join(words) or "trakstore")
def test_help_wraps_once_and_names_no_type(
    words: list[str], columns: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line.rstrip() for line in run(*words, "--help").out.splitlines()]
    assert max(len(line) for line in lines) <= columns
    assert not [line for line in lines if re.search(r"<\w+|range>|10{9}", line)]
    first_panel = next(at for at, line in enumerate(lines) if line.startswith("╭"))
    for line, following in pairwise(lines[:first_panel]):
        if line and following:
            # A line of a paragraph ends where the next word had no room, one space kept at each side.
            assert len(line) + 1 + len(following.split()[0]) > columns - 1, line


@pytest.mark.parametrize("command", ONE_LINE, ids=lambda command: command.name)
def test_an_example_is_one_line_to_copy(
    command: Command, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["evaluate"] * (command in EVALUATIONS) + [command.name]
    assert f" Example: {command.example}\n" in re.sub(" +\n", "\n", run(*words, "--help").out)


def test_options_show_the_word_of_their_value(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = run("topk", "--help").out
    assert re.search(r"--method +METHOD +trak,", said)
    assert re.search(r"--smallest +List", said)
    assert re.search(r"STORE +Path or address", said)


def test_an_option_that_takes_a_value_has_a_word_for_it() -> None:
    def commands(group: Any) -> list[Any]:
        below = group.commands.values()
        return [one for at in below for one in (commands(at) if hasattr(at, "commands") else [at])]

    options = [
        option
        for command in commands(command_line())
        for option in command.params
        if option.param_type_name == "option" and not option.is_flag
    ]
    assert len(options) > 150
    assert not [option.opts for option in options if not option.metavar]
