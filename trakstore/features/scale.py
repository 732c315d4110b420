"""The scale of gradients before they are projected, as a job asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trakstore.errors import TrakStoreError
from trakstore.quantities import shown

__all__ = ["ESTIMATED", "Scale", "as_scale"]

# "samples" or "adam", the path of an optimizer's file, or given second moments.
Scale: TypeAlias = str | Path | Mapping[str, Any] | None
ESTIMATED = ("samples", "adam")


def as_scale(asked: Scale) -> Scale:
    """Return a scale as a job has it: a word of :data:`ESTIMATED`, the path of a file, or a mapping.

    Raises
    ------
    TrakStoreError
        When it is something else.
    """
    if asked is None or isinstance(asked, Path | Mapping):
        return asked
    if not isinstance(asked, str):
        raise TrakStoreError(
            f"scale is 'samples', 'adam', the path of an optimizer.pt or a mapping of parameter names "
            f"to second moments, got {shown(asked)}"
        )
    return asked if asked in ESTIMATED else Path(asked)
