"""The size and shape of the package's source.

    python benchmarks/house.py [FOLDER ...]

Prints, for each folder (by default the package beside this file): modules, lines, lines of code (with
neither comments nor docstrings), comment lines for each hundred of those, the imports of its own that
the median module has, file names that stand more than once (but ``__init__``), modules above 400 lines,
and docstrings that begin with neither a noun nor a verb.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "trakstore"
WEAK = ("What", "Whether", "Of", "How", "So", "Where", "Which", "That", "When", "Why", "Who", "As")


def docstrings(tree: ast.Module) -> list[ast.Constant]:
    """The docstrings of a module, its classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            found.append(first.value)
    return found


def code_and_comments(text: str, tree: ast.Module) -> tuple[int, int]:
    """Lines that hold code, and lines that hold a comment."""
    prose = {
        line
        for one in docstrings(tree)
        for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)
    }
    code, comments = set(), set()
    silent = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in silent:
            code.update(lines)
    return len(code - prose), len(comments)


def own_imports(path: Path, tree: ast.Module, package: Path) -> int:
    """Modules of the package that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").startswith(package.name)
        ):
            base = package.parent.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                inner = base / alias.name
                own = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(inner if own else base)
    return len(found - {path.with_suffix("")})


def measure(package: Path) -> dict[str, object]:
    """Counts of one package."""
    paths = sorted(package.rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    counts = {path: code_and_comments(texts[path], trees[path]) for path in paths}
    code, comments = (sum(one[at] for one in counts.values()) for at in (0, 1))
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    opened = [str(one.value).split() for tree in trees.values() for one in docstrings(tree)]
    return {
        "modules": len(paths),
        "lines": sum(text.count("\n") for text in texts.values()),
        "lines of code": code,
        "comments in 100 lines of code": round(100 * comments / code, 1),
        "own imports of the median module": statistics.median(
            own_imports(path, trees[path], package) for path in paths if path.name != "__init__.py"
        ),
        "names that stand twice": sum(count > 1 for count in names.values()),
        "modules above 400 lines": sum(text.count("\n") > 400 for text in texts.values()),
        "docstrings that open weakly": sum(
            bool(words) and words[0].strip(",") in WEAK for words in opened
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[PACKAGE])
    found = [measure(folder.resolve()) for folder in parser.parse_args().folders]
    for name in found[0]:
        print(f"{name:36}", *(f"{one[name]!s:>10}" for one in found))


if __name__ == "__main__":
    main()
