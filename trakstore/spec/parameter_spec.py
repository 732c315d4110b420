"""The parameters of a store: those that gradients were taken of."""

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
    """The parameters that gradients are taken of: canonical names and shapes, in model order."""

    # Their order counts: the identity's features lie in it.
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
        """Read what :meth:`to_dict` gives."""
        return cls(**documents.fields(document, _FIELDS, what="the list of parameters"))
