"""Docstrings open with a noun or a verb, and say of the public names what a caller must know."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import docstrings, opens_weakly
from numpydoc.docscrape import NumpyDocString

import trakstore as ts
from trakstore import analysis, attributors, errors, evaluation, features, kernels, report, serve

ROOT = Path(ts.__file__).parent
DOORS = (ts, analysis, attributors, evaluation, features, report, serve)
SELF = ("self", "cls")


def source_of(value: Any) -> str:
    """File in which a class or function of this package is written; empty for others."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(value)) or ""
    except TypeError:  # an alias of types
        return ""
    return path if Path(path).is_relative_to(ROOT) else ""


def public() -> Iterator[tuple[str, Any]]:
    """Public classes, their methods and properties, and functions, by their name."""
    for door in DOORS:
        for name in door.__all__:
            value = getattr(door, name)
            if not source_of(value):
                continue
            yield f"{door.__name__}.{name}", value
            for member, made in vars(value).items() if inspect.isclass(value) else ():
                made = getattr(made, "__func__", getattr(made, "fget", made))
                if member[0] != "_" and inspect.isfunction(made) and source_of(made):
                    yield f"{door.__name__}.{name}.{member}", made


PUBLIC = dict(public())


def parsed(value: Any) -> NumpyDocString:
    """Sections of a docstring; one that is not known, or stands twice, is an error."""
    return NumpyDocString(inspect.getdoc(value) or "")


def described(value: Any) -> dict[str, str]:
    """Parameters that have an entry, with its text; a class may leave them to those it is made of."""
    texts = {}
    for one in reversed(value.__mro__) if inspect.isclass(value) else [value]:
        sections = parsed(one) if source_of(one) else {}
        for entry in (*sections.get("Parameters", ()), *sections.get("Attributes", ())):
            names = [name.strip().lstrip("*") for name in entry.name.split(",")]
            texts |= dict.fromkeys(names, " ".join(entry.desc))
    return texts


def parameters(value: Any) -> list[str]:
    """Parameters that a caller may give."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return []
    names = inspect.signature(value).parameters
    return [name for name in names if name not in SELF and name[0] != "_"]


def raised(value: Any) -> set[str]:
    """Names of the errors that a function, or a class when it is made, raises in its own body."""
    if inspect.isclass(value):
        value = vars(value).get("__post_init__") or vars(value).get("__init__")
        if not inspect.isfunction(value) or not source_of(value):
            return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    named = [one.func for one in calls if isinstance(one, ast.Call)]
    return {one.id for one in named if isinstance(one, ast.Name) and one.id[0].isupper()}


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_docstring_opens_with_a_noun_or_a_verb(path: Path) -> None:
    weak = [
        f"line {one.lineno}: {str(one.value).strip()[:60]!r}"
        for one in docstrings(ast.parse(path.read_text()))
        if opens_weakly(str(one.value))
    ]
    assert not weak


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name: str) -> None:
    summary = " ".join(parsed(PUBLIC[name])["Summary"])
    assert summary and summary.endswith("."), "a docstring begins with a sentence"


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_are_described(name: str) -> None:
    """Each has an entry that says more than its type, or all are named in the text."""
    value = PUBLIC[name]
    entries, text = described(value), inspect.getdoc(value) or ""
    wanted = parameters(value)
    if entries:
        missing = [one for one in wanted if one not in entries]
    else:
        missing = [one for one in wanted if not re.search(rf"\b{one}\b", text)]
    assert not missing, f"no word about {missing}"
    bare = [one for one in wanted if entries and not entries[one]]
    assert not bare, f"a type alone describes {bare}"


@pytest.mark.parametrize("name", PUBLIC)
def test_sections_name_parameters_that_there_are(name: str) -> None:
    value = PUBLIC[name]
    entries = [one for entry in parsed(value)["Parameters"] for one in entry.name.split(",")]
    known = parameters(value)
    assert [one for one in entries if one.strip().lstrip("*") not in known] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_results_of_several_parts_are_described(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value):
        return
    result, sections = str(inspect.signature(value).return_annotation), parsed(value)
    several = result.startswith(("tuple", "dict", "xr.Dataset")) and "..." not in result
    if several and parameters(value):
        assert sections["Returns"] or sections["Yields"], f"no word about the {result}"


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_are_named(name: str) -> None:
    value = PUBLIC[name]
    entries = parsed(value)["Raises"]
    named = {one.strip() for entry in entries for one in (entry.name or entry.type).split(",")}
    assert not raised(value) - named


def named() -> Iterator[tuple[str, Any]]:
    """Names that people import, without members of classes."""
    for door in (*DOORS, kernels, errors):
        for name in door.__all__:
            value = getattr(door, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{door.__name__}.{name}", value


# What is not for users: they meet the messages that these make.
INTERNAL = ("trakstore.errors.lacks_threads",)


@pytest.mark.parametrize("name", [one for one, _ in named() if one not in INTERNAL])
def test_a_public_name_has_an_example(name: str) -> None:
    examples = parsed(dict(named())[name])["Examples"]
    assert any(line.strip() for line in examples), "no section Examples"
