"""Command lines of ``trakstore`` found in texts: whether the command takes them, and running some."""

from __future__ import annotations

import re
import shlex
from functools import cache
from itertools import groupby
from typing import Any

from trakstore.cli.app import command_line, main

OPERATORS = {"&&", "||", "|", ";", "&", ">", ">>"}
OTHERS = {"pip", "git", "cd"}  # where the name is that of a package or a folder


def trakstore_lines(script: str) -> list[list[str]]:
    """Of each use of ``trakstore`` in a shell script, what follows the name.

    Variables count as the number 1, which does for paths too.
    """
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        plain = re.sub(r"\$\{?\w+\}?|\$\(.*?\)", "1", line)
        words = shlex.split(plain, comments=True)
        for operator, group in groupby(words, lambda word: word in OPERATORS):
            command = list(group)
            programs = [word.rsplit("/", 1)[-1] for word in command]
            if not operator and programs[0] not in OTHERS and "trakstore" in programs:
                found.append(command[programs.index("trakstore") + 1 :])
    return found


@cache
def _every_command() -> Any:
    """The command line with all that it has: to build it takes a tenth of a second."""
    return command_line()


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words begin with, and the rest of them."""
    command = _every_command()
    rest = list(words)
    while hasattr(command, "commands") and not (rest and rest[0].startswith("-")):
        assert rest and rest[0] in command.commands, f"no such command: trakstore {words}"
        command = command.commands[rest.pop(0)]
    return command, rest


def check_whole(words: list[str]) -> None:
    """Parse a line, as running it would."""
    command, rest = find_command(words)
    command.make_context(command.name, rest)


def check_options(words: list[str]) -> None:
    """The command and the options that a line names, which may lack others."""
    command, rest = find_command(words)
    known = {name for one in command.params for name in one.opts}
    unknown = [word for word in rest if word.startswith("-") and word not in known]
    assert not unknown, f"trakstore {words} has options that are not known: {unknown}"


def run_lines(script: str, about: set[str], but: set[str]) -> int:
    """Run the lines of a script that name one of some jobs or stores; return how many these were.

    Commands ``but`` are not run: one that does not end, or that was run before.
    """
    lines = [words for words in trakstore_lines(script) if about & set(words)]
    ran = [words for words in lines if words[0] not in but]
    for words in ran:
        assert main(words) == 0, words
    return len(ran)
