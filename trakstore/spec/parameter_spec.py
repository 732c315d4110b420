"""The parameters of a store, by which its gradients were taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from trakstore import documents
from trakstore.errors import TrakStoreError

_FIELDS = {
    "patterns": documents.each(documents.text()),
    "shapes": documents.each(
        documents.row_of(documents.text(), documents.each(documents.whole(0, 2**53)))
    ),
}


@dataclass(frozen=True)
class ParameterSpec:
    """Parameters by which gradients are taken: canonical names and shapes, in model order."""

    # Their order matters: features of the identity projection are in it.
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    patterns: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not self.shapes:
            raise TrakStoreError(
                f"no parameter that requires a gradient matches {list(self.patterns)}; "
                f"patterns are shell-style, like 'layer4.*'"
            )

    @property
    def count(self) -> int:
        """Number of scalars."""
        return sum(prod(shape) for _, shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {
            "patterns": list(self.patterns),
            "shapes": [[name, list(shape)] for name, shape in self.shapes],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ParameterSpec:
        """Read a result of :meth:`to_dict`."""
        return cls(**documents.fields(document, _FIELDS, what="the list of parameters"))
