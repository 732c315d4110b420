"""The page of commands, made of the command line itself."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from trakstore.cli.app import command_line

HEAD = """# Command line

`trakstore` and `python -m trakstore` are the same. A command ends with 0 when it did its work,
with 1 where `verify` or a check found something, with 2 and one line on standard error for bad use, and
with 130 when it was interrupted. `--json` prints one document for programs. This page is made of the
commands' own help.

"""


def page() -> str:
    """Return the page as Markdown: a section a command, with its arguments, options and an example."""
    line = command_line()
    context = typer.Context(line, info_name="trakstore")
    text = get_docs_for_click(obj=line, ctx=context, name="trakstore")
    body = text[text.index("\n## ") + 1 :]
    body = re.sub(r"^### `", "## `", body, flags=re.MULTILINE)
    body = re.sub(
        r"^Example: (.*)$",
        r"**Example**:\n\n```console\n$ \1\n```",
        body,
        flags=re.MULTILINE,
    )
    # Descriptions are plain text, in which these begin no markup.
    outside = re.split(r"(```.*?```|`[^`\n]*`)", body, flags=re.DOTALL)
    outside[::2] = [one.replace("<", "&lt;").replace("[", r"\[") for one in outside[::2]]
    return HEAD + "".join(outside)
