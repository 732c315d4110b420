"""Help of the commands: paragraphs that wrap at the terminal's width, and a word for each value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand, TyperGroup


def paragraphs(function: Callable[..., object]) -> str:
    """Return a function's docstring, each paragraph on one line.

    Typer keeps line ends in all paragraphs but the first: on a terminal narrower than the source, they
    would wrap a second time.
    """
    return "\n\n".join(
        " ".join(one.split()) for one in inspect.cleandoc(function.__doc__ or "").split("\n\n")
    )


class HelpedCommand(TyperCommand):
    """Command whose help names no type: a flag takes no value, an argument is its own word."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options, ``--help`` too."""
        return _without_types(super().get_params(ctx))


class HelpedGroup(TyperGroup):
    """Group of commands whose help names no type either."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options, ``--help`` and those of completion too."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    """Take ``<bool>`` from flags and ``<str>`` from arguments; return the parameters."""
    for one in parameters:
        if getattr(one, "is_flag", False):
            one.metavar = ""
        elif one.param_type_name == "argument":
            # A metavar would not help: it is the word in the first column. Releases of typer before
            # 0.26 do not call this method, and show a type of their own.
            one.display_type_rich = _no_type
    return parameters


def _no_type(ctx: Any) -> None:
    """Hide the type of an argument, which a reader does not need."""
