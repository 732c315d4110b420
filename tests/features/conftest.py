"""Kernels, interpreted without a GPU in two thirds of the time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def the_language_is_patched_once_a_kernel() -> Iterator[None]:
    """Call trakstore's functions of a kernel that runs as they are.

    Triton's interpreter patches its language for each kernel, and again for each function that the
    kernel calls, though it finds nothing to patch in the same module. That was a third of its time.
    Triton's own functions see another module.
    """
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        yield
        return

    patching = interpreter.InterpretedFunction.__call__

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        if function.fn.__module__.startswith("trakstore."):
            return function.rewrite()(*arguments, **named)
        return patching(function, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
