"""Python objects that a command line names, like ``jobs.py:digits``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.paths import is_file

_FRAMES = 3  # places in somebody's code that a message names
_OWN = str(Path(__file__).parent)


def load_named(name: str, what: str) -> Any:
    """Load what ``file.py:name`` or ``package.module:name`` names.

    Parameters
    ----------
    name : str
        Name as on a command line.
    what : str
        One word for messages: ``"job"``.

    Raises
    ------
    NotFoundError
        When the file, module or name does not exist.
    TrakStoreError
        When it is no such name, or the code there raises.
    """
    source, separator, attribute = name.rpartition(":")
    if not separator or not source or not attribute:
        raise TrakStoreError(
            f"a {what} is named like {what}s.py:name or package.module:name, got {name!r}"
            f"{_without_name(name)}"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the working directory, as `python -m` finds them
    file = source.endswith(".py")
    module = _import_file(Path(source), what) if file else _import_module(source, what)
    if not hasattr(module, attribute):
        public = [one for one in vars(module) if not one.startswith("_")]
        # What the file makes itself before what it imports: a job is made of imported things.
        public.sort(key=lambda one: _is_imported(vars(module)[one], module))
        raise NotFoundError(f"{source} has no {attribute!r}{did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def _without_name(name: str) -> str:
    """Write the tail of a message where only the name behind a file is missing."""
    file = name.removesuffix(":")
    return f"; add a name of that file: {file}:name" if file.endswith(".py") else ""


def _is_imported(value: Any, module: ModuleType) -> bool:
    """Tell whether a value of a module is another module, or was defined in one."""
    if isinstance(value, ModuleType):
        return True
    # Instances are not asked: theirs is the module of their class.
    defined = isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__"))
    return defined and getattr(value, "__module__", None) != module.__name__


def needs_arguments(function: Any) -> bool:
    """Tell whether a callable needs arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a built-in function that does not tell
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in optional for p in parameters)


def call_named(function: Any, name: str, what: str) -> Any:
    """Call a function without arguments, such as the one that makes a job.

    Parameters
    ----------
    function : callable
        The function that ``name`` names.
    name, what : str
        As for :func:`load_named`.

    Raises
    ------
    TrakStoreError
        When it needs arguments, must be awaited, or raises.
    """
    if needs_arguments(function):
        raise TrakStoreError(f"{name} needs arguments; a {what} is made by a function without any")
    if inspect.iscoroutinefunction(function):
        raise TrakStoreError(f"{name} must be awaited; a {what} is made by a plain function")
    with blamed_on(name):
        return function()


def call_with_sample(function: Any, name: str, what: str, sample: Any) -> Any:
    """Call a function of one sample, such as the one that draws it.

    Parameters
    ----------
    function : callable
        The function that ``name`` names.
    name, what : str
        As for :func:`load_named`.
    sample : object

    Raises
    ------
    TrakStoreError
        When it takes none or needs more than one argument, or raises.
    """
    try:
        inspect.signature(function).bind(sample)
    except ValueError:  # a built-in function that does not tell
        pass
    except TypeError as error:
        raise TrakStoreError(
            f"{name} must take one argument, a sample, to be a {what}: {error}"
        ) from None
    with blamed_on(name):
        return function(sample)


@contextmanager
def blamed_on(name: str, remedy: str = "") -> Iterator[None]:
    """Raise errors of somebody else's code as bad use, in a line that says where.

    The error is kept as the cause. An error that trakstore itself raises by mistake is a fault, and
    passes.

    Parameters
    ----------
    name : str
        What the code belongs to; the message begins with it.
    remedy : str
        What to do about it; the message ends with it.

    Examples
    --------
    >>> with blamed_on("jobs.py:digits"):  # doctest: +ELLIPSIS
    ...     [][0]
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: jobs.py:digits: IndexError: list index out of range (...)
    """
    try:
        yield
    except TrakStoreError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1].filename
        # A built-in function has no frame: where it raised, the last frame is this module's own.
        if last.startswith(_OWN) and last != __file__:
            raise
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        advice = f"; {remedy}" if remedy else ""
        raise TrakStoreError(f"{name}: {said} ({_places(frames)}){advice}") from error


def _places(frames: Sequence[traceback.FrameSummary]) -> str:
    """Name the last lines of somebody's own code, else the very last one."""
    others = (_OWN, "<frozen", str(Path(sys.prefix)), sysconfig.get_path("stdlib"))
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    last = own[-_FRAMES:] or frames[-1:]
    return "; ".join(f"{Path(one.filename).name}, line {one.lineno}" for one in last)


def _import_file(path: Path, what: str) -> Any:
    try:
        there = is_file(path)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise NotFoundError(f"{path} cannot be a {what} file: {error.strerror}") from error
    if not there:
        beside = sorted(one.name for one in path.parent.glob("*.py"))
        others = did_you_mean(path.name, beside) if beside else ""
        raise NotFoundError(f"there is no {what} file {path}{others}")
    specification = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if specification is None or specification.loader is None:
        raise NotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(specification)
    # Pickle looks for a class by its module's name, so that the module must be known by it.
    sys.modules[path.stem] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _import_errors(path):
        specification.loader.exec_module(module)
    return module


@contextmanager
def _import_errors(source: object) -> Iterator[None]:
    """Raise as bad use that a module cannot be read, lacks another module or raises."""
    with blamed_on(str(source)):
        try:
            yield
        except SyntaxError as error:
            raise TrakStoreError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
        except ModuleNotFoundError as error:
            raise NotFoundError(
                f"{source} imports {error.name!r}, which is not there; install it, or put its "
                f"folder on PYTHONPATH"
            ) from error


def _import_module(name: str, what: str) -> Any:
    hint = f"name a file like {what}s.py:name"
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotFoundError(f"{name!r} names no module; {hint}")
    with _import_errors(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # The module is not there, or a package above it; else it imports another that is not.
            if error.name is None or not name.startswith(error.name):
                raise
            raise NotFoundError(f"there is no module {name!r}; {hint}") from None
