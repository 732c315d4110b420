"""Fenced blocks of Markdown pages: found, run in order, and compared with what the page shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block, and the line of its fence."""

    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """List the fenced blocks of a page, also those in comments, which readers do not see."""
    fences = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    return [Block(one[1], one[2], text[: one.start()].count("\n") + 1) for one in fences]


def run_block(page: Path, block: Block, names: dict[str, Any]) -> str:
    """Run statements and return what they print, or compare a session with its answers.

    Errors name the page's line.
    """
    if ">>> " in block.text:
        session = doctest.DocTestParser().get_doctest(
            block.text, names, page.name, str(page), block.line
        )
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, clear_globs=False)
        names.update(session.globs)
        assert not failed.failed, f"the session at line {block.line} of {page.name}"
        return ""
    code = compile("\n" * block.line + block.text, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)  # noqa: S102
    return printed.getvalue()


def run_page(page: Path, names: dict[str, Any]) -> int:
    """Run a page's Python blocks in order, and return how many there were.

    A ``text`` block straight below a Python block is what that prints: ``...`` stands for anything, and
    any white space for any other.
    """
    text = page.read_text()
    ran, printed, end = 0, None, 0
    for block in blocks(text):
        lines = block.text.count("\n")
        if block.language == "python":
            printed, end = run_block(page, block, names), block.line + lines + 1
            ran += 1
        elif block.language == "text" and printed is not None and block.line <= end + 2:
            assert shows(block.text, printed), (
                f"line {block.line} of {page.name} shows\n{block.text}but printed was\n{printed}"
            )
            printed = None
    return ran


def shows(wanted: str, printed: str) -> bool:
    """Tell whether a page shows what was printed."""
    return doctest.OutputChecker().check_output(wanted, printed, SHOWN)


def without_blocks(text: str) -> str:
    """Return a page's prose, without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    """List what stands between backticks in a page's prose."""
    return re.findall(r"`([^`]+)`", without_blocks(text))
