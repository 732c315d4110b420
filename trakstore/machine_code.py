"""Loops on arrays as machine code, compiled by numba when they first run, and kept for later processes.

Where it cannot be kept, or what was kept cannot be read, the loop is compiled again: a full disk, or a
file that a loss of power left empty, must not stand in the way of reading a store elsewhere.
"""

from __future__ import annotations

import logging
import pickle
import platform
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
from numba.core.caching import FunctionCache

_Function = TypeVar("_Function", bound=Callable[..., Any])
log = logging.getLogger("trakstore")
# Whatever pickle raises of bytes that it did not write, and the system of files.
_UNREADABLE = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
)

# Sums in any order, which vector instructions need, but no more: NaN and infinity stay what they are.
_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}


def compiled(function: _Function) -> _Function:
    """Compile a loop on finite numbers, which then holds no lock."""
    return _compiled(function, True)


def compiled_for_all(function: _Function) -> _Function:
    """Compile a loop on numbers that may be NaN or infinite, which then holds no lock."""
    return _compiled(function, _IN_ANY_ORDER)


def _compiled(function: _Function, fastmath: bool | set[str]) -> _Function:
    made: Any = numba.njit(nogil=True, fastmath=fastmath)(function)
    if not numba.core.config.DISABLE_JIT:  # type: ignore[attr-defined]
        # There may be nowhere to keep the machine code.
        with suppress(RuntimeError):
            made._cache = _Kept(function)
    return cast("_Function", made)


_FunctionCache: Any = FunctionCache


class _Kept(_FunctionCache):  # type: ignore[misc]
    """Machine code in files of numba."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except _UNREADABLE as error:
            log.warning(
                "machine code in %s cannot be read (%r): compiled again", self.cache_path, error
            )
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except _UNREADABLE:
            # Of an index of files that cannot be read, a new one is begun.
            try:
                self.flush()
                super().save_overload(sig, data)
            except OSError as error:
                log.warning("machine code cannot be kept in %s: %s", self.cache_path, error)


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
