"""Loops on arrays as machine code, compiled by numba when they first run."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


# Sums in any order, which vector instructions need, but no more: NaN and infinity stay what they are.
_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}


def compiled(function: _Function) -> _Function:
    """Compile a loop on finite numbers, which then holds no lock."""
    return _compiled(function, True)


def compiled_for_all(function: _Function) -> _Function:
    """Compile a loop on numbers that may be NaN or infinite, which then holds no lock."""
    return _compiled(function, _IN_ANY_ORDER)


def _compiled(function: _Function, fastmath: bool | set[str]) -> _Function:
    compiler: Any = partial(numba.njit, nogil=True, fastmath=fastmath)
    try:
        return cast("_Function", compiler(cache=True)(function))
    except RuntimeError:  # there is nowhere to keep the machine code
        return cast("_Function", compiler()(function))


def has_x86_feature(name: str) -> bool:
    """Tell whether numba compiles for an x86 processor of 64 bits with a feature, as LLVM names it."""
    chosen: Any = numba.core.config
    if chosen.DISABLE_JIT or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose another processor than this one. Where it has no
    # such instruction, the call of a function is compiled that is nowhere: the process would end.
    if chosen.CPU_FEATURES is not None:
        return f"+{name}" in chosen.CPU_FEATURES.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(name, False))
