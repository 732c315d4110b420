"""Options that commands on scores share: which command has which, with one help text and default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trakstore.cli.app import command_line

SCORES = {"targets", "train", "epoch", "damping", "method", "memory_limit", "allow_other_weights"}
WORK = {"workers", "scheduler"}
RATES = {"learning_rate"}
KERNEL = {"epoch", "damping", "memory_limit"}
OPTIONS = {
    "score": SCORES | WORK | RATES,
    "topk": SCORES | WORK | RATES,
    "evolve": SCORES | WORK,
    "groups": SCORES | WORK,
    "report": SCORES | WORK,
    "counterfactual": SCORES | WORK,
    "stability": SCORES | WORK,
    "lds": SCORES | WORK,
    "transitions": SCORES - {"epoch"} | WORK,
    "neighbours": SCORES - {"damping", "method"} | WORK,
    "kernel": KERNEL | WORK,
    "mislabels": KERNEL | WORK,
    "checks": KERNEL | {"train"},
}
ONE_EPOCH, SEVERAL_METHODS = ("neighbours", "epoch"), ("lds", "method")  # with help of their own


def commands(group: Any) -> Iterator[Any]:
    """All commands below a group."""
    for one in group.commands.values():
        yield from commands(one) if hasattr(one, "commands") else [one]


def options(command: str) -> dict[str, Any]:
    """Options of a command that others have, too, by name."""
    (found,) = (one for one in commands(command_line()) if one.name == command)
    return {one.name: one for one in found.params if one.name in SCORES | WORK | RATES}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_has_its_shared_options(command: str) -> None:
    found, first = options(command), options("score")
    assert found.keys() == OPTIONS[command]
    for name, option in found.items():
        if (command, name) not in (ONE_EPOCH, SEVERAL_METHODS):
            own = (option.opts, option.default, option.help, option.metavar)
            shared = first[name]
            assert own == (shared.opts, shared.default, shared.help, shared.metavar)


def test_help_names_no_default_where_there_is_none() -> None:
    for command in commands(command_line()):
        for option in command.params:
            assert option.default is not None or not option.show_default, option.name
