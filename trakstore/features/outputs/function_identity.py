"""Identity of a user's function: a digest of its code, and of the values that it uses.

Installed code (the standard library, packages, trakstore) counts by its name, since it changes with
every version and is not what people edit between two runs.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trakstore.features.outputs.code import (
    FUNCTIONS,
    function_of,
    global_values,
    installed,
    is_installed,
    layers,
)

__all__ = ["code_digest", "function_name"]

_SIMPLE = (bool, int, float, complex, str, bytes, range, slice, PurePath, torch.dtype, np.dtype)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
_RECORDS = (Namespace, types.SimpleNamespace)  # of which all is a user's
_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_MODULE = frozenset(vars(nn.Module()))  # attributes that torch keeps, ``training`` among them


def function_name(function: Any) -> str:
    """Return the name of a function, of that within a ``partial``, or of an object's class."""
    if isinstance(function, functools.partial):
        return f"partial({function_name(function.func)})"
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def code_digest(function: Callable[..., Any]) -> str:
    """Return a digest that is equal for functions that compute the same, and Python's version.

    It covers the compiled code, closures, defaults, arguments of ``functools.partial``, and global
    names that the code reads, and in turn the functions, classes and objects among these. An object
    counts by its class and its attributes; for an installed class only by plain ones: numbers, strings,
    arrays, trees of them, functions. A torch module also counts by its weights. Devices do not count.
    Files, random states and imports within a function are not seen.
    """
    digest = _Digests(function).of(function).hex()[:16]
    return f"{digest} of Python {sys.version_info.major}.{sys.version_info.minor}"


class _Digests:
    """Digests of values, each computed once.

    Parameters
    ----------
    first : callable
        Function whose code counts even where it is installed.
    """

    def __init__(self, first: Any) -> None:
        self._own = list(layers(first))
        self._done: dict[int, bytes] = {}
        self._kept: list[Any] = []  # an id stands for a value only as long as there is that value

    def of(self, value: Any) -> bytes:
        """Return the digest of any value."""
        if _is_device(value):  # each worker has its own, and computes the same there
            return _digest(["device"])
        if _simple(value):
            return _digest([type(value).__name__, repr(value)])
        if id(value) not in self._done:
            # Values may contain themselves, as functions that call each other do: such a value is
            # represented by its number here.
            self._done[id(value)] = _digest(["again", str(len(self._done))])
            self._kept.append(value)
            self._done[id(value)] = _digest([_place(type(value)), *self._parts(value)])
        return self._done[id(value)]

    def _parts(self, value: Any) -> Iterator[bytes | str]:
        """Yield all that tells a value from others of its class."""
        if isinstance(value, Enum):
            yield value.name
        elif isinstance(value, Tensor | np.ndarray | np.generic):
            yield from self._array(value)
        elif isinstance(value, Mapping):
            yield from sorted(self.of(key) + self.of(one) for key, one in value.items())
        elif isinstance(value, tuple | list):
            yield from map(self.of, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.of, value))
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value, None)
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from map(self.of, (value.__func__, value.__self__))
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        else:
            yield from self._object(value)

    def _function(self, function: types.FunctionType) -> Iterator[bytes | str]:
        yield function.__qualname__
        decorated = getattr(function, "__wrapped__", None)
        of_others = installed(function.__code__.co_filename)
        if of_others and (decorated is not None or not self._is_own(function)):
            yield self.of(decorated)  # by such as torch.no_grad
            return
        yield from self._code(function.__code__, function.__doc__)
        yield from map(self.of, (function.__defaults__, function.__kwdefaults__, vars(function)))
        yield from (self.of(_content(cell)) for cell in function.__closure__ or ())
        yield self.of(dict(global_values(function)))

    def _code(self, code: types.CodeType, doc: str | None) -> Iterator[bytes | str]:
        """Yield instructions and constants: no line numbers, no variables' names, no docstring."""
        yield code.co_code
        yield code.co_exceptiontable
        yield from code.co_names
        for value in code.co_consts:
            yield self.of(None if doc is not None and value is doc else value)

    def _class(self, cls: type) -> Iterator[bytes | str]:
        for base in cls.__mro__:
            yield _place(base)
            if is_installed(base) and not self._is_own(base):
                continue
            for name, value in sorted(vars(base).items()):
                held = function_of(value)
                if isinstance(held, FUNCTIONS) or (_plain(held) and not name.startswith("__")):
                    yield name
                    yield self.of(held)

    def _object(self, value: Any) -> Iterator[bytes | str]:
        """Yield name, class and attributes."""
        if isinstance(value, torch.jit.ScriptFunction | torch.jit.ScriptModule):
            yield str(value.code)
        if is_installed(type(value)):  # a built-in function, a cached one
            names = (
                getattr(value, name, None) for name in ("__module__", "__qualname__", "__name__")
            )
            yield from (name if isinstance(name, str) else "" for name in names)
            yield self.of(getattr(value, "__wrapped__", None))
        if isinstance(value, _GETTERS):  # what they get is in no attribute
            yield self.of(value.__reduce__())
        yield self.of(type(value))
        yield self.of(self._attributes(value))

    def _attributes(self, value: Any) -> dict[str, Any]:
        held = {**getattr(value, "__dict__", {})}
        held |= {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
        whole = isinstance(value, _RECORDS) or is_dataclass(value)
        if is_installed(type(value)) and not whole:
            held = {k: v for k, v in held.items() if _plain(v) or isinstance(v, FUNCTIONS)}
            held = {k: v for k, v in held.items() if not k.startswith("_")}
        if not isinstance(value, nn.Module):
            return held
        settings = {k: v for k, v in held.items() if k not in _MODULE}
        weights = {**dict(value.named_parameters(recurse=False)), **dict(value.named_children())}
        return settings | weights | dict(value.named_buffers(recurse=False))

    def _array(self, value: Any) -> Iterator[bytes | str]:
        if is_lazy(value):  # it has no numbers yet
            return
        yield f"{value.dtype} {tuple(value.shape)}"
        if isinstance(value, Tensor) and not value.is_meta:
            dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            dense = dense.resolve_conj().resolve_neg().cpu().contiguous()
            yield dense.reshape(-1).view(torch.uint8).numpy().tobytes()
        elif not isinstance(value, Tensor):
            yield self.of(value.tolist()) if value.dtype.kind == "O" else value.tobytes()

    def _is_own(self, value: Any) -> bool:
        return any(value is one for one in self._own)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that is not set yet
        return None


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        names = vars(base).get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def _is_device(value: Any) -> bool:
    named = isinstance(value, str) and _DEVICE.fullmatch(value) is not None
    return named or isinstance(value, torch.device)


def _simple(value: Any) -> bool:
    known = value is None or value is ... or isinstance(value, (*_SIMPLE, torch.device))
    return known and not isinstance(value, Enum)


def _plain(value: Any) -> bool:
    """Tell whether a value is a number, a string, an array, or a tree of them."""
    if isinstance(value, Mapping):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_plain, value))
    return _simple(value) or isinstance(value, Tensor | np.ndarray | np.generic | Enum)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _digest(parts: list[bytes | str]) -> bytes:
    """Return a digest of the parts and their lengths, so that different lists differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
