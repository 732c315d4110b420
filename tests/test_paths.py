"""What is at a path, and that the package asks for it in one way."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import trakstore
from trakstore.paths import exists, is_file, is_folder, is_link

QUESTIONS = (exists, is_file, is_folder, is_link)


def test_answers(tmp_path: Path) -> None:
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.touch()
    loop.symlink_to(loop)
    links = {name: tmp_path / f"to {name}" for name in ("file", "folder", "nothing")}
    links["file"].symlink_to(file)
    links["folder"].symlink_to(tmp_path)
    links["nothing"].symlink_to(tmp_path / "nothing")
    expected = {
        file: (True, True, False, False),
        tmp_path: (True, False, True, False),
        links["file"]: (True, True, False, True),
        links["folder"]: (True, False, True, True),
        links["nothing"]: (False, False, False, True),
        loop: (False, False, False, True),
        tmp_path / "nothing": (False,) * 4,
        file / "below": (False,) * 4,
        Path("a\0b"): (False,) * 4,
    }
    assert {path: tuple(ask(path) for ask in QUESTIONS) for path in expected} == expected


@pytest.mark.parametrize("ask", QUESTIONS)
def test_what_the_system_refuses_to_tell_is_raised(ask: Callable[[Path], bool]) -> None:
    with pytest.raises(OSError) as refused:
        ask(Path("x" * 300))
    assert refused.value.errno == errno.ENAMETOOLONG


def test_nothing_in_the_package_asks_pathlib() -> None:
    asked = []
    for file in Path(trakstore.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                plain = not node.args and not node.keywords
                if plain and node.func.attr in ("exists", "is_file", "is_dir", "is_symlink"):
                    asked.append(f"{file}:{node.lineno}")
    assert asked == []
