"""Code of functions: the global names that it reads, and whether it is a user's or installed."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FUNCTIONS", "function_of", "global_values", "installed", "is_installed", "layers"]

FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)

_PLACES = ("site-packages", "dist-packages")
_LIBRARIES = (
    Path(sysconfig.get_path("stdlib")),
    Path(sysconfig.get_path("platstdlib")),
    Path(__file__).parents[2],
)


def installed(file: str | None) -> bool:
    """Tell whether a file belongs to Python, an installed package or trakstore; None means built in."""
    if file is None or file.startswith("<frozen"):
        return True
    path = Path(file)
    return any(path.is_relative_to(one) for one in _LIBRARIES) or any(
        place in path.parts for place in _PLACES
    )


def is_installed(cls: type) -> bool:
    """Tell whether a class is; see :func:`installed`."""
    if cls.__module__ in ("__main__", "__mp_main__"):
        return False
    return installed(getattr(sys.modules.get(cls.__module__), "__file__", None))


def layers(function: Any) -> Iterator[Any]:
    """Yield a callable and its parts: functions below partial and methods, an object's class."""
    yield function
    if isinstance(function, functools.partial):
        inner = function.func
    elif isinstance(function, types.MethodType):
        inner = function.__func__
    else:
        inner = inspect.getattr_static(function, "__wrapped__", None)
    if inner is not None:
        yield from layers(inner)
    if not isinstance(function, FUNCTIONS):
        yield type(function)


def function_of(value: Any) -> Any:
    """Return the function that a class or static method, or a property, calls; else the value."""
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else value


def global_values(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield global names that a function reads and does not set, with their values.

    For a module that is not installed, the names read from it are yielded.
    """
    # Only globals that the code reads can change its result. The instruction after one that loads a
    # module names the module's attribute.
    steps = [step for code in _codes(function.__code__) for step in dis.get_instructions(code)]
    own = {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        read = step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval not in own
        if not read or step.argval not in function.__globals__:  # else of Python
            continue
        value = function.__globals__[step.argval]
        if not isinstance(value, types.ModuleType) or installed(getattr(value, "__file__", None)):
            yield step.argval, value
        elif after is not None and after.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            yield f"{step.argval}.{after.argval}", getattr(value, after.argval, None)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code, and that of functions within it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _codes(value)
