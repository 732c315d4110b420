"""Python objects that a command line names, like ``jobs.py:digits``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean

__all__ = ["load_named", "needs_arguments"]


def load_named(name: str, what: str) -> Any:
    """What ``file.py:name`` or ``package.module:name`` names.

    Parameters
    ----------
    name : str
    what : str
        One word for messages: ``"job"``.

    Raises
    ------
    NotFoundError
        When the file, module or name does not exist.
    TrakStoreError
        When it is no such name.
    """
    source, separator, attribute = name.rpartition(":")
    if not separator or not source or not attribute:
        raise TrakStoreError(
            f"a {what} is named like {what}s.py:name or package.module:name, got {name!r}"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the working directory, as with python -m
    file = source.endswith(".py")
    module = _import_file(Path(source), what) if file else _import_module(source, what)
    if not hasattr(module, attribute):
        public = [one for one in vars(module) if not one.startswith("_")]
        raise NotFoundError(f"{source} has no {attribute!r}{did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def needs_arguments(function: Any) -> bool:
    """Whether a callable cannot be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in optional for p in parameters)


def _import_file(path: Path, what: str) -> Any:
    if not path.is_file():
        raise NotFoundError(f"there is no {what} file {path}")
    specification = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if specification is None or specification.loader is None:
        raise NotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _told_in_a_line(path):
        specification.loader.exec_module(module)
    return module


@contextmanager
def _told_in_a_line(source: object) -> Iterator[None]:
    """A module that cannot be read or lacks another is bad use; what its code raises is a fault."""
    try:
        yield
    except SyntaxError as error:
        raise TrakStoreError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        raise NotFoundError(
            f"{source} imports {error.name!r}, which is not there; install it, or put its folder "
            f"on PYTHONPATH"
        ) from error


def _import_module(name: str, what: str) -> Any:
    hint = f"name a file like {what}s.py:name"
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotFoundError(f"{name!r} names no module; {hint}")
    with _told_in_a_line(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise NotFoundError(f"there is no module {name!r}; {hint}") from None
