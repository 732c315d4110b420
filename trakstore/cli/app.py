"""The ``trakstore`` command: its list of commands, and its exit codes and error lines."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer import Option

import trakstore
from trakstore.cli.commands import COMMANDS, EVALUATIONS, NO_RESULT, named_command
from trakstore.cli.help_text import HelpedCommand, HelpedGroup, paragraphs
from trakstore.cli.output import error_line, tolerant_streams
from trakstore.cli.uncollected import uncollected
from trakstore.errors import NO_THREADS, TrakStoreError, lacks_threads

BAD_USE, INTERRUPTED = 2, 130


def _root(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"trakstore {trakstore.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# Since 0.26 typer has its own copy of click; earlier versions use the installed one.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line; by default those of the process.

    Returns
    -------
    int
        0; 2 after bad use, a :class:`~trakstore.errors.TrakStoreError` or a refusal of the system, with
        one line on standard error; 130 when interrupted. Any other exception is a fault, and is not
        caught.
    """
    tolerant_streams()
    try:
        with _warnings_as_lines():
            return _run(arguments)
    except TrakStoreError as error:
        error_line(error)
    except _ClickException as error:
        error_line(_usage(error, sys.argv[1:] if arguments is None else arguments))
    except OSError as error:
        # Without a number it is a library's error, not the system's, and so a fault.
        if error.errno is None:
            raise
        error_line(_refused(error))
    except RuntimeError as error:
        if not lacks_threads(error):
            raise
        error_line(NO_THREADS)
    return BAD_USE


def command_line(words: Sequence[str] | None = None) -> Any:
    """Build the command line.

    Parameters
    ----------
    words : sequence of str, optional
        Line to be run: only commands that it names are imported, and others are known by name. By
        default all are imported.
    """
    app = typer.Typer(
        name="trakstore",
        cls=HelpedGroup,
        help="Which training examples made the model do this, and when did it learn it?",
        epilog="Start with: trakstore demo",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    evaluate = typer.Typer(
        name="evaluate", cls=HelpedGroup, help="Are the scores true? Checks, and comparisons."
    )
    app.callback(invoke_without_command=True)(_root)
    for group, commands in ((app, COMMANDS), (evaluate, EVALUATIONS)):
        for command in commands:
            asked = words is None or command.name in words
            function = command.load() if asked else _not_imported
            register = group.command(
                command.name,
                cls=HelpedCommand,
                help=paragraphs(function) if asked else command.summary,
                epilog=f"Example: {command.example}",
            )
            register(function)
    app.add_typer(evaluate)
    line = typer.main.get_command(app)
    _hide_missing_defaults(line)
    return line


def _not_imported() -> None:
    """Stand in for a command that the line does not name, and so does not run."""


def _hide_missing_defaults(command: Any) -> None:
    """Leave out "[default: None]", which older releases of typer write if there is no default."""
    for option in command.params:
        option.show_default = option.show_default and option.default is not None
    for below in getattr(command, "commands", {}).values():
        _hide_missing_defaults(below)


def _run(arguments: Sequence[str] | None) -> int:
    given = None if arguments is None else list(arguments)
    # Not standalone, since typer would then print errors in its own way and end the process.
    try:
        with uncollected():
            line = command_line(_words(given))
        code = line.main(given, prog_name="trakstore", standalone_mode=False)
        # A closed pipe shows only when output is flushed, which is done here, where it is expected.
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return _closed_pipe()
    if code == INTERRUPTED:
        command = named_command(sys.argv[1:] if given is None else given)
        error_line(NO_RESULT if command is None else command.interrupted, "interrupted")
    return int(code or 0)


def _words(given: list[str] | None) -> list[str] | None:
    """Return the words of the line; None if a shell asks to complete it, which may name any command."""
    if "_TRAKSTORE_COMPLETE" in os.environ:
        return None
    return sys.argv[1:] if given is None else given


def _refused(error: OSError) -> str:
    """Write what the system refused, and for which file."""
    file = "" if error.filename is None else f" ({error.filename})"
    return f"the system refuses: {error.strerror}{file}; choose another place, or make it possible"


def _closed_pipe() -> int:
    """End quietly if nobody reads any more (``| head``), and so does the interpreter's last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _usage(error: Any, words: Sequence[str]) -> str:
    """Write the fault of the command line, and which help to read."""
    context = getattr(error, "ctx", None)
    # The parser names no command if an option at the end of the line lacks its value.
    command = named_command(words) if context is None else None
    path = getattr(context, "command_path", "trakstore") if command is None else command.path
    return f"{error.format_message().rstrip('.')}{_got(error)}; see {path} --help"


def _got(error: Any) -> str:
    """Write the refused value; an empty text if the message has it."""
    # In newer releases of typer pydantic checks values, and only its error holds the value.
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    return f", got {problems[0]['input']!r}" if problems else ""


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each warning on one line, without its place and source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: error_line(message, "warning")
        yield
