"""The size and shape of the package's source.

    python benchmarks/house.py [FOLDER ...]

Prints, for each folder (by default the package beside this file): modules, lines, lines of code (with
neither comments nor docstrings), comment lines for each hundred of those, the imports of its own that
the median module has, file names that stand more than once (but ``__init__``), modules above 400 lines,
and docstrings that begin with neither a noun nor a verb. Then, for each of its rooms (a folder or a
module of it): lines of code, and comment lines for each hundred.
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
# A docstring begins with a noun or a verb; tests/test_docstrings.py looks at this list, too.
WEAK = ("What", "Whether", "Of", "How", "So", "Where", "Which", "That", "When", "Why", "Who", "As")


def opens_weakly(docstring: str) -> bool:
    """Tell whether a docstring begins with a word that is neither a noun nor a verb."""
    words = docstring.split()
    return bool(words) and words[0].strip(",") in WEAK


def docstrings(tree: ast.Module) -> list[ast.Constant]:
    """List the docstrings of a module, its classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            texts.append(first.value)
    return texts


def code_and_comments(text: str, tree: ast.Module) -> tuple[int, int]:
    """Count lines that hold code, and lines that hold a comment."""
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


def own_imports(path: Path, tree: ast.Module) -> int:
    """Count the modules of the whole package that a module imports."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            base = PACKAGE.parent.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                inner = base / alias.name
                own = inner.with_suffix(".py").exists() or inner.is_dir()
                modules.add(inner if own else base)
    return len(modules - {path.with_suffix("")})


def measure(package: Path) -> dict[str, object]:
    """Count what the first lines of this module say, for one folder."""
    paths = sorted(package.rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    counts = {path: code_and_comments(texts[path], trees[path]) for path in paths}
    code, comments = (sum(one[at] for one in counts.values()) for at in (0, 1))
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    opened = [str(one.value) for tree in trees.values() for one in docstrings(tree)]
    return {
        "modules": len(paths),
        "lines": sum(text.count("\n") for text in texts.values()),
        "lines of code": code,
        "comments in 100 lines of code": round(100 * comments / code, 1),
        "own imports of the median module": statistics.median(
            own_imports(path, trees[path]) for path in paths if path.name != "__init__.py"
        ),
        "names that stand twice": sum(count > 1 for count in names.values()),
        "modules above 400 lines": sum(text.count("\n") > 400 for text in texts.values()),
        "docstrings that open weakly": sum(map(opens_weakly, opened)),
    }


def rooms(package: Path) -> dict[str, tuple[int, int]]:
    """Lines of code and comment lines of each folder and module of a package."""
    counts: dict[str, tuple[int, int]] = {}
    for path in sorted(package.rglob("*.py")):
        room, text = path.relative_to(package).with_suffix("").parts[0], path.read_text()
        code, comments = code_and_comments(text, ast.parse(text))
        before = counts.get(room, (0, 0))
        counts[room] = before[0] + code, before[1] + comments
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[PACKAGE])
    folders = [folder.resolve() for folder in parser.parse_args().folders]
    measured = [measure(folder) for folder in folders]
    for name in measured[0]:
        print(f"{name:36}", *(f"{one[name]!s:>10}" for one in measured))
    for folder in folders:
        for room, (code, comments) in rooms(folder).items():
            print(
                f"{folder.name + '/' + room:36} {code:>10} {100 * comments / max(code, 1):>10.1f}"
            )


if __name__ == "__main__":
    main()
